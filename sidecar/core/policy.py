"""The decisions, as pure functions: facts in, decision out. Effects are somebody else's business."""

import math
import re
from collections.abc import Mapping

from sidecar.core.errors import outcome_of
from sidecar.core.headers import directives
from sidecar.core.types import End, Fault, Outcome

_NONE = re.compile(rb"q=0(\.0{0,3})?")
"""A weight that refuses what it stands with (RFC 9110, 12.4.2)."""


def patience(*, asked: float | None, configured: float, resumable: bool, short: float) -> float:
    """Seconds that a call may go on for the sake of a client that has left: 0 is `cancel`, infinity `finish`.

    `asked`: by the request; `configured`: for its path or upstream; `resumable`: the client knows how to
    come back and where to, so it gets at least the `short` time that takes.
    """
    if asked is not None:
        return asked
    return max(configured, short) if resumable else configured


def lease(
    *, ended: bool, over: bool, readers: int, held: bool, patience: float, draining: bool = False
) -> float:
    """Seconds that an upstream call may go on now that one of its readers has left; 0: it ends now.

    A call that nobody reads costs money for nothing; one that another client reads, or a job holds,
    lives on. `over`: its terminal marker has gone by, so there is nothing left to wait for. `draining`:
    nobody can come back any more. `patience`: the most that those who have left were granted, as far as
    it has not passed.
    """
    if ended or readers or held:
        return math.inf
    if over or (draining and patience < math.inf):
        return 0.0
    return patience


def may_join(*, ended: bool, retained: bool, plain: bool, same_coding: bool, same_operation: bool) -> bool:
    """Whether a request that asks for the same may read an answer that another one began.

    `plain`: it is known not to be compressed, so that every client can read it. `same_operation`: the two
    do not say that they are different ones (`Idempotency-Key`).
    """
    return not ended and retained and same_operation and (plain or same_coding)


def is_retry(fields: Mapping[bytes, bytes]) -> bool:
    """Whether an SDK says that it sends this again. OpenAI's and Anthropic's count their attempts."""
    count = fields.get(b"x-stainless-retry-count", b"0")
    return count.isdigit() and int(count[:9]) > 0


def same_operation(name: bytes | None, before: bytes | None) -> bool:
    """Whether two requests may be one, by their `Idempotency-Key`."""
    return name is None or before is None or name == before


def starts_again(fault: Fault | None, *, begun: bool) -> bool:
    """Whether a request whose joined call came to nothing is worth a call of its own."""
    return not begun and fault is not None and fault.kind.startswith(("upstream_", "app_"))


def takes_ids(fields: Mapping[bytes, bytes]) -> bool:
    """Whether the client shows that it can use event ids: it names the type of event streams, as only
    their clients do (official SDKs ask for JSON), or comes back with an id."""
    if b"last-event-id" in fields:
        return True
    accept = fields.get(b"accept", b"").lower()
    if b"text/event-stream" not in accept:
        return False
    kinds = [kind.replace(b" ", b"").split(b";") for kind in accept.split(b",")]
    return any(
        name == b"text/event-stream" and not any(_NONE.fullmatch(part) for part in rest)
        for name, *rest in kinds
    )


def stays_away(method: str, fields: Mapping[bytes, bytes]) -> bool:
    """Whether a client that has all of a stream must be told not to come back: an EventSource would for
    ever, and takes a 204 for the end (WHATWG HTML, 9.2.3). Others want a stream, if an empty one."""
    return (
        method == "GET"
        and b"last-event-id" in fields
        and b"no-cache" in directives(fields.get(b"cache-control", b""))
        and takes_ids({b"accept": fields.get(b"accept", b"")})
    )


def end_of_body(*, whole: bool, declared_error: str | None, status: int) -> End:
    """How a body that ended cleanly ended. A clean end of the bytes is not completion by itself."""
    if declared_error is not None or status >= 400:
        return End(Outcome.UPSTREAM_ERROR)
    if whole:
        return End(Outcome.COMPLETE)
    detail = "the stream ended without its terminal marker"
    return End(Outcome.TRUNCATED, Fault("upstream_incomplete", detail))


def end_of_leaving(*, over: bool, declared_error: str | None) -> End | None:
    """How an answer whose last reader has left ended, if it had. Many SDKs hang up on the terminal marker,
    before the end of the body: all of it is there then."""
    if not over:
        return None
    return End(Outcome.COMPLETE if declared_error is None else Outcome.UPSTREAM_ERROR)


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
