"""sidecar.cache.embed.weights: a safetensors file may say anything."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sidecar.cache.embed.weights import Weights, WeightsError
from tests.cache.bert_rig import safetensors

SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.array([1.5], np.float32)}
FILE = safetensors(SMALL)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / "model.safetensors"


def read(path, raw):
    path.write_bytes(raw)
    found = Weights(path)
    return {name: found[name] for name in found}


def entry(**changed):
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changed
    header = json.dumps({"x": {name: value for name, value in fields.items() if value is not None}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@given(
    st.dictionaries(st.text(max_size=8), arrays(np.float32, array_shapes(max_dims=3, max_side=5)), max_size=4)
)
def test_what_is_written_is_read(path, named):
    named = {name: values for name, values in named.items() if name != "__metadata__"}
    found = read(path, safetensors(named))
    assert list(found) == list(named)
    for name, values in named.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(("kind", "off"), [("F32", 0), ("F16", 1e-3), ("BF16", 1e-2)])
def test_kinds(path, kind, off):
    values = np.linspace(-3, 3, 20, dtype=np.float32)
    assert np.allclose(read(path, safetensors({"x": values}, kind))["x"], values, rtol=off, atol=off / 10)


@given(st.integers(0, len(FILE) - 1))
def test_a_file_without_its_end(path, size):
    with pytest.raises(WeightsError) as raised:
        read(path, FILE[:size])
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=200))
def test_garbage(path, raw):
    try:
        found = read(path, raw)
    except WeightsError:
        return
    assert all(values.nbytes <= 2 * len(raw) for values in found.values())


@given(st.integers(0, len(FILE) * 8 - 1))
def test_a_flipped_bit(path, bit):
    raw = bytearray(FILE)
    raw[bit // 8] ^= 1 << bit % 8
    try:
        found = read(path, bytes(raw))
    except WeightsError:
        return
    assert all(values.dtype == np.float32 for values in found.values())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["x", "dtype", "shape", "data_offsets"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_any_json_as_a_header(path, tree):
    header = json.dumps(tree).encode()
    try:
        read(path, len(header).to_bytes(8, "little") + header + bytes(16))
    except WeightsError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "raw",
    [
        entry(shape=[3]),
        entry(shape=[-2]),
        entry(shape=[-1, -2]),
        entry(shape=[2**40, 2**40]),
        entry(shape=[2**62, 2**62]),
        entry(data_offsets=[0, 9]),
        entry(data_offsets=[8, 0]),
        entry(data_offsets=[-8, 0]),
        entry(data_offsets=[2**70, 2**70]),
        entry(data_offsets=[0]),
        entry(dtype="I64"),
        entry(dtype="F8_E4M3"),
        entry(dtype=None),
        entry(shape=None),
        entry(shape="2"),
        (2**63).to_bytes(8, "little") + bytes(100),
        (90).to_bytes(8, "little") + b"[" * 90,
    ],
)
def test_what_does_not_fit_together(path, raw):
    with pytest.raises(WeightsError):
        read(path, raw)


def test_a_header_is_not_read_for_its_length_alone(path):
    """100 GB of header, by its own account."""
    with path.open("wb") as file:
        file.write((100 << 30).to_bytes(8, "little"))
        file.truncate(101 << 30)
    with pytest.raises(WeightsError):
        Weights(path)


def test_a_file_that_gets_shorter(path):
    path.write_bytes(FILE)
    found = Weights(path)
    path.write_bytes(FILE[:-1])
    with pytest.raises(WeightsError, match="shorter"):
        found["b.c"]


def test_what_is_not_there(path):
    path.write_bytes(FILE)
    with pytest.raises(KeyError):
        Weights(path)["z"]
    assert Weights(path).shape("a") == (2, 3)
    assert len(Weights(path)) == 2
