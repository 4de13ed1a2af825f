"""Questions in other words as clients ask them, with the real model; and embedders in a test's own hands."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidecar.cache import embed
from sidecar.cache.embed.base import Embedded, Embedder, EmbedError
from sidecar.serving.semantics import Parts
from sidecar.tables import Semantic
from tests.faults.cache import Form, ask, asked, patched, settled
from tests.faults.conftest import Rig, eventually
from tests.faults.wire import GUARD, Answer

ASKED = "How can I change the email address of my account?"
AGAIN = "How do I change my account's email address?"
"""The same in other words; the real model says 0.95 or so."""
OTHER = "What is the capital of Portugal?"
PATIENT = {"semantic__deadline": 30}
"""For tests that are not about time: the machine may be slow."""


class Held:
    """The real embedder, which a test can hold up, or make fail."""

    def __init__(self, real: Embedder) -> None:
        self._real = real
        self.space = real.space
        self.texts: list[str] = []
        self.batches: list[int] = []
        self.broken: str | None = None
        self.mangle: Any = None
        self._gate = threading.Event()
        self.entered = threading.Event()
        self._gate.set()

    def hold(self) -> None:
        self.entered.clear()
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    async def inside(self) -> None:
        """Until a call is being held up."""
        await eventually(self.entered.is_set, lambda: "nothing is embedded")

    def embed(self, texts: Sequence[str]) -> list[Embedded | EmbedError]:
        self.texts += texts
        self.batches.append(len(texts))
        self.entered.set()
        assert self._gate.wait(GUARD * 2)
        if self.broken is not None:
            raise EmbedError(self.broken)
        made = self._real.embed(texts)
        return [self.mangle(one) for one in made] if self.mangle is not None else made

    def close(self) -> None:
        self._gate.set()
        self._real.close()


def held(model: Path) -> Held:
    """The real embedder, in a test's hands."""
    return Held(embed.load(Semantic(), model))


def parts(model: Path, folder: Path | None = None, embedder: Embedder | None = None) -> Parts:
    """What a sidecar needs. `folder`: where it writes down what it compares."""
    records = folder / "shadow.jsonl" if folder is not None else None
    return Parts(lambda: embedder or embed.load(Semantic(), model), None, records)


async def on_model(rig: Rig, model: Path, folder: Path, embedder: Any = None, **keys: Any) -> Any:
    """A sidecar that knows paraphrases; ready when this returns."""
    given = {"cache__mode": "semantic", "cache__ttl": 3600, **PATIENT, **keys}
    sidecar = await rig.start(folder=folder, parts=parts(model, folder, embedder), **given)
    semantics = sidecar.service.assembly.semantics
    await semantics.started(GUARD)
    assert semantics.cache.ready, sidecar.lines.all
    return sidecar


def asking(form: Form, text: str, **fields: Any) -> Form:
    """The form with that question."""
    body = dict(form.body)
    if "messages" in body:
        body["messages"] = [{"role": "user", "content": text}]
    elif "contents" in body:
        body["contents"] = [{"role": "user", "parts": [{"text": text}]}]
    else:
        body["prompt" if "prompt" in body else "input"] = text
    return patched(form._replace(body=body), **fields)


def likeness(answer: Answer) -> float | None:
    """How near another question was, of a semantic hit; None for anything else."""
    said = answer.header("cache-status") or b""
    found = [part for part in said.split(b"; ") if part.startswith(b"detail=semantic:")]
    if not found:
        return None
    assert said.split(b"; ")[:2] == [b"slipstream", b"hit"]
    assert (answer.header("age") or b"").isdigit()
    assert (answer.status, answer.end) == (200, "whole")
    return float(found[0].partition(b":")[2])


async def known(rig: Rig, form: Form, *fields: tuple[bytes, bytes]) -> Answer:
    """Ask upstream; what is asked is found by others when this returns."""
    counts = rig.sidecar.service.assembly.cache.counts
    before = asked(rig), counts["stored"], noted(rig)
    answer = await ask(rig, form, *fields)
    assert asked(rig) == before[0] + 1
    assert (answer.status, answer.end) == (200, "whole")
    await eventually(lambda: counts["stored"] > before[1], lambda: counts)
    await settled(rig)
    await eventually(lambda: noted(rig) > before[2], lambda: counts)
    return answer


def noted(rig: Rig) -> int:
    """Questions in the log."""
    store = rig.sidecar.service.assembly.cache._store
    return int(store.stats().vectors)


async def paraphrased(rig: Rig, form: Form, first: Answer, *fields: tuple[bytes, bytes]) -> Answer:
    """Ask: it is answered with what was said to another question, and the upstream hears nothing."""
    before = asked(rig)
    answer = await ask(rig, form, *fields)
    assert likeness(answer) is not None, (answer.headers, rig.sidecar.service.assembly.cache.counts)
    assert answer.body == first.body
    assert asked(rig) == before
    return answer


async def unmatched(rig: Rig, form: Form, *fields: tuple[bytes, bytes]) -> Answer:
    """Ask: the upstream is asked, too."""
    before = asked(rig)
    answer = await ask(rig, form, *fields)
    assert likeness(answer) is None, answer.headers
    assert asked(rig) == before + 1
    await settled(rig)
    return answer
