"""One job: what it is in memory, and what is said of it to its client, on disk, and back from there."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.core.answer import Answer
from sidecar.core.dialects import by_name, recognise
from sidecar.core.latency import Labels
from sidecar.core.recording import Recording
from sidecar.core.told import NEVER
from sidecar.core.types import End, Fault, Intent, Outcome, Request
from sidecar.engine.pump import Ask, Live
from sidecar.stores.jobs import JobRecord, Result, Status

_COUNTS = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")


_STOPPED = Fault("interrupted", "the sidecar was stopped before the answer was complete; send a new job")

LIMIT = 32 << 20
"""Bytes of a result: it is held in memory until it is whole."""


class Work(msgspec.Struct):
    """An order made ready to be sent."""

    start: Callable[[Live], None]
    """Makes the call of which it is given the record."""
    answer: Answer
    labels: Labels


class Job:
    """A job that is queued or running in this process."""

    __slots__ = ("ask", "done", "live", "record", "told")

    def __init__(self, record: JobRecord, live: Live, ask: Ask) -> None:
        self.record = record
        self.live = live
        self.ask = ask
        self.told = False
        """Somebody knows its id."""
        self.done = asyncio.Event()
        """Set once its end is on disk, or could not be put there, or the process ends before it has begun."""


def ended(record: JobRecord, live: Live, now: float) -> tuple[JobRecord, Result | None]:
    """A job whose recording has ended, as it is kept. `now`: unix seconds."""
    recording, end = live.recording, live.recording.end
    assert end is not None
    if end.fault is not None and end.fault.kind == "draining":
        # Whoever reads this asks a process that is not stopping.
        end = End(end.outcome, _STOPPED)
    live.learn()
    status, fault = _verdict(live, end)
    result = None
    if recording.head is not None:
        body = recording.whole()
        if body is None:
            status, fault = "failed", Fault("answer_too_large", f"it has over {LIMIT >> 20} MiB")
        else:
            result = Result(recording.head, body, recording.events, end)
    changes = {"status": status, "ended": now, "details": _details(live), "error": fault}
    return msgspec.structs.replace(record, **changes), result


def _verdict(live: Live, end: End) -> tuple[Status, Fault | None]:
    if end.outcome is Outcome.COMPLETE and live.answer.facts.error is None:
        return "complete", None
    if end.outcome is Outcome.CANCELLED:
        return "cancelled", end.fault
    if end.fault is not None:
        return "failed", end.fault
    head = live.recording.head
    status = head.status if head is not None else 0
    said = f"status {status}" if status >= 400 else f"an error in the answer: {live.answer.facts.error}"
    return "failed", Fault("upstream_refused", said)


def _details(live: Live) -> dict[str, int | float | str | None]:
    """What is known of an answer, to be kept with it."""
    answer, facts, timings = live.answer, live.answer.facts, live.timings
    known: dict[str, int | float | str | None] = {
        "events": answer.events,
        "deltas": answer.deltas,
        "bytes": live.recording.size,
        "response_model": facts.model,
        "ttft_ms": _ms(answer.first_at - timings.started) if answer.first_kind else None,
    }
    known |= {name: getattr(facts, name) for name in _COUNTS}
    if answer.ids_until != NEVER:
        known["ids_until"] = answer.ids_until
    return known


def status_of(record: JobRecord, live: Live | None = None, root: str = "") -> dict[str, Any]:
    """The document that `GET /_slipstream/jobs/{id}` answers with. Times are unix seconds, spans
    milliseconds. `root`: the path in front of the sidecar's own. While a provider has not said how many
    tokens it wrote, each event that brought something counts as one."""
    details = _details(live) if live is not None and record.ended is None else record.details
    tokens = details.get("output_tokens")
    if tokens is None:
        tokens = details.get("deltas")
    labels, error = record.labels, record.error
    return {
        "id": record.id,
        "status": record.status,
        "model": labels.get("model"),
        "path": labels.get("path"),
        "created_at": record.created,
        "started_at": record.started,
        "ended_at": record.ended,
        "progress": {
            "events": details.get("events", 0),
            "output_tokens": tokens or 0,
            "bytes": details.get("bytes", 0),
        },
        "timings": {
            "queued_ms": _ms(record.started - record.created) if record.started else None,
            "ttft_ms": details.get("ttft_ms"),
            "total_ms": _ms(record.ended - record.created) if record.ended else None,
        },
        "usage": {name: details.get(name) for name in _COUNTS},
        "error": {"kind": error.kind, "detail": error.detail} if error is not None else None,
        "webhook": record.webhook_state if record.webhook is not None else None,
        "result": f"{root}/_slipstream/jobs/{record.id}/result",
        "stream": f"{root}/_slipstream/streams/{record.id}",
    }


def sealed(record: JobRecord, result: Result) -> Live:
    """A result from disk, to be read like any other recording."""
    answer = answer_of(record)
    answer.begin(result.head)
    until = record.details.get("ids_until")
    answer.ids_until = until if isinstance(until, int) else NEVER
    answer.events = len(result.events)
    if result.end.fault is not None:
        # How a broken answer is closed off depends on what it ended with.
        tail = result.events[-1] if len(result.events) else 0
        answer.feed(result.body[tail:], 0.0)
        answer.events = len(result.events)
    live = Live(Recording.sealed(result.head, result.body, result.events, result.end), answer)
    live.labels = labels_of(record)
    live.name = record.id
    return live


def answer_of(record: JobRecord) -> Answer:
    """The reading of an answer, as far as the job's labels tell what was asked."""
    labels = record.labels
    method, path, query = (str(labels.get(name) or "") for name in ("method", "path", "query"))
    request = Request(method, b"", path, query, (), {})
    dialect = by_name(labels.get("dialect")) or recognise(method, path)
    return Answer(request, dialect, Intent(_text(labels.get("model")), labels.get("stream") is True))


def labels_of(record: JobRecord) -> Labels:
    """The labels of a job's lines."""
    labels = record.labels
    return Labels(
        upstream=_text(labels.get("upstream")),
        provider=_text(labels.get("provider")),
        operation=_text(labels.get("operation")),
        model=_text(labels.get("model")),
        stream=labels.get("stream") is True,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
