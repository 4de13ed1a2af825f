"""The decisions, as pure functions: facts in, decision out. Effects are somebody else's business."""

from sidecar.core.errors import outcome_of
from sidecar.core.types import End, Fault, Outcome


def cancels_upstream(readers: int, *, ended: bool) -> bool:
    """Whether an upstream call is given up now that one of its readers has left.

    A call that nobody reads costs money for nothing; one that another client reads lives on.
    """
    return readers == 0 and not ended


def end_of_body(*, whole: bool, declared_error: str | None, status: int) -> End:
    """How a body that ended cleanly ended. A clean end of the bytes is not completion by itself."""
    if declared_error is not None or status >= 400:
        return End(Outcome.UPSTREAM_ERROR)
    if whole:
        return End(Outcome.COMPLETE)
    detail = "the stream ended without its terminal marker"
    return End(Outcome.TRUNCATED, Fault("upstream_incomplete", detail))


def end_of_leaving(*, over: bool, declared_error: str | None, taken: bool) -> End:
    """How an answer ended whose client left.

    Many SDKs hang up on the terminal marker, before the end of the body. `taken`: the client had been
    sent all there was.
    """
    if over and taken:
        return End(Outcome.COMPLETE if declared_error is None else Outcome.UPSTREAM_ERROR)
    return End(Outcome.CANCELLED)


def end_of_fault(fault: Fault, *, begun: bool, over: bool, declared_error: str | None) -> End:
    """How an answer ended whose connection was lost. `begun`: its head had come.

    `over`: its terminal marker had gone by, so nothing of it is missing, whatever the connection
    did then. Servers that close without a last chunk are common.
    """
    if over:
        return End(Outcome.COMPLETE if declared_error is None else Outcome.UPSTREAM_ERROR)
    outcome = outcome_of(fault)
    if begun and outcome is Outcome.REFUSED:
        outcome = Outcome.TRUNCATED
    elif not begun and outcome is Outcome.TRUNCATED:
        outcome = Outcome.UPSTREAM_ERROR
    return End(outcome, fault)
