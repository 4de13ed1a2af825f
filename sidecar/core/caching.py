"""The decisions about stored answers, as pure functions: may this request have one, is it fresh, is this
answer worth keeping, and what is said of it."""

import math
import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from sidecar.core.answer import Answer
from sidecar.core.entry import Known
from sidecar.core.headers import directives, tokens
from sidecar.core.types import End, Head, Intent, Outcome

_SECONDS = re.compile(rb'"?([0-9]{1,12})"?')

Reason = Literal[
    "off",
    "no_store",
    "stateful",
    "temperature",
    "unkeyed",
    "incomplete",
    "status",
    "error",
    "format",
    "compressed",
    "unreadable",
    "upstream_no_store",
    "finish",
    "refusal",
    "tools",
    "too_large",
]
"""Why an answer is not stored: `off` is a time to live of 0, `unkeyed` a request that cannot be judged,
`format` an answer in another format than was asked for."""


class Wish(msgspec.Struct, frozen=True):
    """What a request's `Cache-Control` says (RFC 9111, 5.2.1)."""

    read: bool = True
    """An answer may be used that was not made for it."""
    write: bool = True
    """Its answer may be kept."""
    max_age: float | None = None
    min_fresh: float | None = None
    only_if_cached: bool = False


NO_WISH = Wish()


def wish(fields: Mapping[bytes, bytes]) -> Wish:
    """The wish of a request with these header fields. A number that is none counts as 0 for `max-age`, and
    as more than anything has for `min-fresh`: who writes one wants something fresh."""
    value = fields.get(b"cache-control")
    if value is None:
        return NO_WISH
    said = directives(value)
    return Wish(
        read=b"no-store" not in said and b"no-cache" not in said,
        write=b"no-store" not in said,
        max_age=_least(said.get(b"max-age"), 0.0),
        min_fresh=_most(said.get(b"min-fresh")),
        only_if_cached=b"only-if-cached" in said,
    )


class Terms(msgspec.Struct, frozen=True):
    """What is configured for the answers of a path."""

    ttl: float
    stale_if_error: float
    largest: int
    max_temperature: float | None
    finish: frozenset[str]
    tools: bool


def refused(intent: Intent, wish: Wish, terms: Terms) -> Reason | None:
    """Why a request has nothing to do with stored answers; None if it has.

    A request that says nothing of the temperature is taken for one at 1, the default of most providers.
    """
    if terms.ttl <= 0:
        return "off"
    if not wish.write:
        return "no_store"
    if intent.stateful:
        return "stateful"
    heat = 1.0 if intent.temperature is None else intent.temperature
    if terms.max_temperature is not None and heat > terms.max_temperature:
        return "temperature"
    return None


def unfit(head: Head) -> Reason | None:
    """Why an answer that begins with this head is not kept; None if it may be."""
    if head.status != 200:
        return "status"
    if head.fields.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
        return "compressed"
    if b"no-store" in directives(head.fields.get(b"cache-control", b"")):
        return "upstream_no_store"
    return None


def for_one(fields: Mapping[bytes, bytes], counted: frozenset[bytes]) -> bool:
    """Whether an answer with these header fields is for its own request only: it says so, or depends on
    fields that are not `counted` in what is the same request (RFC 9111, 4.1)."""
    said = directives(fields.get(b"cache-control", b""))
    return b"no-store" in said or not tokens(fields.get(b"vary", b"")) <= counted


def unkept(
    head: Head | None, end: End | None, answer: Answer, body: bytes | None, terms: Terms, *, clean: bool
) -> Reason | None:
    """Why an answer that has ended is not kept; None if it is. `body`: None where it is not all there, or too
    large. `clean`: nothing broke off, not even after what looked like the end."""
    facts, dialect = answer.facts, answer.dialect
    if head is None or end is None:
        return "incomplete"
    if (reason := unfit(head)) is not None:
        return reason
    if facts.error is not None:
        return "error"
    if end.outcome is not Outcome.COMPLETE:
        return "incomplete"
    if dialect is None or not dialect.stored:
        return "format"
    if dialect.declared and answer.streaming is not answer.intent.stream:
        return "format"
    if dialect.opaque and not answer.streaming and not _is_json(head):
        return "format"
    if not clean and not (dialect.marked and answer.streaming):
        return "incomplete"
    if body is None or len(body) > terms.largest:
        return "too_large"
    if head.fields.get(b"content-length", b"%d" % len(body)) != b"%d" % len(body):
        return "incomplete"
    if answer.unreadable or not answer.settled or not _is_text(body):
        return "unreadable"
    # Where nobody says why a choice has ended, the end of the whole has to do.
    if not facts.terminal or (facts.finished and facts.finished != facts.begun):
        return "incomplete"
    if not terms.tools and facts.tools:
        return "tools"
    if facts.refused and "refusal" not in terms.finish:
        return "refusal"
    if dialect.finishes and not facts.reasons <= dialect.finishes | terms.finish:
        return "finish"
    return None


Freshness = Literal["fresh", "stale", "refused", "over"]
"""Of a stored answer, for one request: may be used; only if the upstream fails; not this request; not at
all."""

_SKEW = 2.0
"""Seconds by which an answer may be from the future: clocks are corrected by that much."""


def freshness(known: Known, wish: Wish, terms: Terms, now: float) -> Freshness:
    """`now`: unix seconds. An answer from the future was stored before the clock was set back: nobody knows
    how old it is, and it must not live until that future."""
    age = now - known.stored
    ttl = min(known.ttl, terms.ttl)
    if age < -_SKEW or age >= ttl + terms.stale_if_error:
        return "over"
    if wish.max_age is not None and age > wish.max_age:
        return "refused"
    if age >= ttl:
        return "stale" if wish.min_fresh is None else "refused"
    if wish.min_fresh is not None and ttl - age < wish.min_fresh:
        return "refused"
    return "fresh"


def hit_status(known: Known, terms: Terms, now: float, similarity: float | None = None) -> bytes:
    """`Cache-Status` of an answer from the cache (RFC 9211, 2). `similarity`: of the question that it was an
    answer to, if that was another one; it is said with three digits, rounded down."""
    detail = b"exact" if similarity is None else b"semantic:%.3f" % (math.floor(similarity * 1000) / 1000)
    return b"slipstream; hit; ttl=%d; detail=%b" % (_left(known, terms, now), detail)


def stale_status(known: Known, terms: Terms, now: float, status: int | None) -> bytes:
    """The same where it stands in for an upstream that failed; `status`: its answer, if there was one."""
    said = b"; fwd-status=%d" % status if status is not None else b""
    return b"slipstream; fwd=stale%b; ttl=%d; detail=stale-if-error" % (said, _left(known, terms, now))


def _left(known: Known, terms: Terms, now: float) -> int:
    return math.floor(min(known.ttl, terms.ttl) - max(now - known.stored, 0.0))


def age(known: Known, now: float) -> bytes:
    """`Age` in whole seconds (RFC 9111, 5.1)."""
    return b"%d" % max(now - known.stored, 0)


def _is_json(head: Head) -> bool:
    kind = head.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json")


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _least(value: bytes | None, otherwise: float) -> float | None:
    if value is None:
        return None
    found = _SECONDS.fullmatch(value)
    return float(found[1]) if found else otherwise


def _most(value: bytes | None) -> float | None:
    return _least(value, float("inf"))
