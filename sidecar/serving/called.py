"""A call to an upstream that has ended, as it is counted."""

from sidecar.core.types import Outcome
from sidecar.engine.pump import Live
from sidecar.serving.visit import NAME
from sidecar.telemetry.counting import Call


def called(live: Live, now: float) -> Call | None:
    """What there is to count of it; None where nobody was asked anything. `now`: when it ended, by
    `time.perf_counter`."""
    timings, answer, end = live.timings, live.answer, live.recording.end
    if not timings.started or end is None:
        return None
    live.learn()
    facts = answer.facts
    return Call(
        labels=live.labels,
        total=now - timings.started,
        first=answer.first_at - timings.started if answer.first_kind and answer.first_at else None,
        gaps=answer.gaps,
        response_model=facts.model and facts.model[:NAME],
        input_tokens=facts.input_tokens,
        output_tokens=facts.output_tokens,
        error=_error(live),
        complete=end.outcome is Outcome.COMPLETE,
        retries=timings.retries,
    )


def _error(live: Live) -> str | None:
    head, end = live.recording.head, live.recording.end
    if end is None or end.outcome is Outcome.CANCELLED:
        return None
    if end.fault is not None:
        return end.fault.kind
    if head is not None and head.status >= 400:
        return str(head.status)
    if live.answer.facts.error:
        return Outcome.UPSTREAM_ERROR.value
    return None if end.outcome is Outcome.COMPLETE else end.outcome.value
