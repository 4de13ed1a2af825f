"""sidecar.cache.embed.local with the real model: the vectors are the right ones, whatever else goes on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cache import embed
from sidecar.cache.embed import make, model
from sidecar.cache.embed.base import Embedded, EmbedError
from sidecar.cache.embed.local import LocalEmbedder
from sidecar.tables import Semantic

QUESTION = "How do I change the email address of my account?"
ASIDE = [
    QUESTION,
    "hi",
    "Was ist die Hauptstadt von Portugal?",
    "word " * 300,
    "",
    "日本の首都は?",
    "🎉" * 50,
]


@pytest.fixture(scope="module")
def embedder(model_folder):
    loaded = embed.load(Semantic(), model_folder)
    yield loaded
    loaded.close()


def vectors(embedder, *texts):
    found = embedder.embed(list(texts))
    assert all(isinstance(one, Embedded) for one in found), found
    return np.array([one.vector for one in found])


def test_vectors_are_those_of_pytorch(embedder):
    known = make._reference()
    assert len(known) >= 24
    found = vectors(embedder, *[one.text for one in known])
    wanted = np.array([make._vector(one) for one in known])
    assert np.allclose((wanted**2).sum(1), 1, atol=2e-3)  # float16
    cosines = (found * wanted).sum(1)
    assert cosines.min() > make._LEAST
    assert cosines.mean() > 0.993


def test_the_shape_of_a_vector(embedder):
    (one,) = embedder.embed([QUESTION])
    assert (one.vector.dtype, one.vector.shape) == (np.float32, (384,))
    assert abs(float(one.vector @ one.vector) - 1) < 1e-5
    assert embedder.embed([]) == []


def test_meaning_is_what_counts(embedder):
    asked, again, other = vectors(
        embedder, QUESTION, "How can I change my account's email address?", "What is the capital of Portugal?"
    )
    assert asked @ again > 0.9
    assert asked @ other < 0.3


def test_a_vector_does_not_depend_on_what_else_is_asked(embedder):
    alone = np.array([vectors(embedder, text)[0] for text in ASIDE])
    together = vectors(embedder, *ASIDE)
    backwards = vectors(embedder, *ASIDE[::-1])[::-1]
    assert (alone == together).all()
    assert (alone == backwards).all()


def test_vectors_are_the_same_in_another_process(embedder, model_folder):
    code = (
        "import sys, json; from pathlib import Path; from sidecar.cache import embed; from sidecar.tables import Semantic\n"
        "e = embed.load(Semantic(), Path(sys.argv[1]))\n"
        "print(e.space); print(json.dumps([one.vector.tobytes().hex() for one in e.embed(json.loads(sys.argv[2]))]))"
    )
    command = [sys.executable, "-c", code, str(model_folder), json.dumps(ASIDE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    space, found = done.stdout.splitlines()
    assert json.loads(found) == [row.tobytes().hex() for row in vectors(embedder, *ASIDE)]
    assert space == embedder.space
    assert done.stderr == ""


def test_truncation_is_told(embedder):
    # 254 words of one token each, and the two special ones, are just what is read.
    whole, longer = embedder.embed(["word " * 254, "word " * 255])
    assert (whole.truncated, longer.truncated) == (False, True)
    assert (whole.vector == longer.vector).all()
    assert [one.truncated for one in embedder.embed([QUESTION, ""])] == [False, False]


def test_what_the_model_does_not_know_is_told(embedder):
    """To it all of these are the same text."""
    party, snow = embedder.embed(["🎉", "🏔"])
    assert (party.unknown, snow.unknown) == (True, True)
    assert (party.vector == snow.vector).all()
    assert [one.unknown for one in embedder.embed([QUESTION, "", "Größe", "x" * 101])] == [
        False,
        False,
        False,
        True,
    ]


def test_a_text_of_any_length_costs_no_more_than_its_beginning(embedder):
    seen = []

    class Tokenizer:
        def __init__(self, real):
            self._real = real

        def encode(self, text):
            seen.append(len(text))
            return self._real.encode(text)

    real = embedder._tokenizer
    embedder._tokenizer = Tokenizer(real)
    try:
        short, long, spaces = embedder.embed(["word " * 2000, "word " * 1_000_000, " " * 5_000_000 + "word"])
    finally:
        embedder._tokenizer = real
    assert max(seen) == 256 * 32
    assert (short.vector == long.vector).all()
    assert (short.truncated, long.truncated, spaces.truncated) == (True, True, True)


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t", "\x00", "a\x00b", "\u200b", "é" * 1000, "\U0010ffff", "¼ ﬁ Å ǆ"]
)
def test_any_text_has_a_vector(embedder, text):
    assert np.isfinite(vectors(embedder, text)).all()


@given(st.text(max_size=400))
def test_any_vector_is_of_length_one(embedder, text):
    (found,) = vectors(embedder, text)
    assert abs(float(found @ found) - 1) < 1e-4


def test_what_is_no_text_is_an_error_of_its_own(embedder):
    good, bad, again = embedder.embed([QUESTION, "half a \ud800 surrogate", QUESTION])
    assert isinstance(bad, EmbedError)
    assert "surrogate" not in str(bad)
    assert (good.vector == again.vector).all()


def test_numbers_that_are_none_are_an_error(model_folder):
    class Session:
        def run(self, outputs, inputs):
            return [np.full(384, np.nan, np.float32)]

    broken = embed.load(Semantic(), model_folder)
    broken._session = Session()
    (found,) = broken.embed([QUESTION])
    assert isinstance(found, EmbedError)


def test_after_close_there_are_no_vectors(model_folder):
    gone = embed.load(Semantic(), model_folder)
    gone.close()
    gone.close()
    assert isinstance(gone.embed([QUESTION])[0], EmbedError)


def test_one_thread_is_all_it_takes(model_folder):
    code = (
        "import sys, psutil; from pathlib import Path; from sidecar.cache import embed; from sidecar.tables import Semantic\n"
        "import numpy, onnxruntime, tokenizers; before = psutil.Process().num_threads()\n"
        "e = embed.load(Semantic(), Path(sys.argv[1])); e.embed(['hello there'] * 20)\n"
        "print(psutil.Process().num_threads() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_folder)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == 0


def test_the_space_names_the_model_and_how_it_was_built(embedder):
    kind, digest, builder = embedder.space.split(":")
    assert (kind, builder) == ("local", str(model.BUILDER))
    assert len(bytes.fromhex(digest)) == 16


def test_importing_the_package_is_light():
    heavy = ["numpy", "onnx", "onnxruntime", "tokenizers", "urllib.request"]
    code = f"import sys, sidecar.cache.embed, sidecar.cache.embed.background; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("graph", [b"", b"no graph", b"\x08\x07"])
def test_what_is_no_graph_is_not_loaded(graph, model_folder):
    tokenizer = (model.root(model_folder) / model.DEFAULT / model.TOKENIZER).read_bytes()
    with pytest.raises(EmbedError, match="cannot be loaded"):
        LocalEmbedder(graph, tokenizer, 256, "")


@pytest.mark.parametrize("tokenizer", [b"", b"{}", b"\xff\xfe", b'{"model": 1}'])
def test_what_is_no_tokenizer_is_not_loaded(tokenizer, model_folder):
    graph = (model.root(model_folder) / model.DEFAULT / model.GRAPH).read_bytes()
    with pytest.raises(EmbedError, match="cannot be loaded"):
        LocalEmbedder(graph, tokenizer, 256, "")
