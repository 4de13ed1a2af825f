"""`slipstream doctor --url`: a paced stream through whatever stands between here and a sidecar."""

import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import msgspec

from sidecar.cli.doctor_http import Answer
from sidecar.cli.doctor_judge import Reading, Seen, pace, silent_for
from sidecar.cli.doctor_reach import UnreachableError, ends_soon, figures, origin_of, reach, told
from sidecar.cli.doctor_refused import WRONG_URL, refused, stranger
from sidecar.cli.doctor_show import Finding, fail, ok, warn
from sidecar.cli.doctor_verdicts import lively, reached, silence, streaming

PATH = "/_slipstream/probe"
PACED = 2.4
"""Seconds in which the events before the silence are sent."""


class Way(msgspec.Struct, frozen=True):
    """Where the probe goes, and with what."""

    url: str
    idle: float
    """Seconds of silence."""
    timeout: float
    token: str | None = None


class _NoProbeError(Exception):
    """What came was no probe."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.fact)
        self.finding = finding


async def probed(way: Way) -> AsyncIterator[Finding]:
    """Everything that is found, as it is found."""
    origin = origin_of(way.url)
    try:
        answer, timed = await reach(origin, way.timeout)
    except UnreachableError as error:
        yield fail("connection", error.fact, error.remedy)
        return
    if ends_soon(timed):
        yield warn("connection", told(timed), "renew the certificate of what answers there", **figures(timed))
    else:
        yield ok("connection", told(timed), **figures(timed))
    try:
        seen = await _seen(answer, way, way.idle, "gzip")
        yield reached(seen)
        plain = None
        if seen.compressed and not lively(seen):
            # Is it the compression that holds it back, or something else as well?
            answer, _ = await reach(origin, way.timeout)
            plain = await _seen(answer, way, 0, "identity")
    except _NoProbeError as error:
        yield error.finding
        return
    except UnreachableError as error:
        yield fail("connection", error.fact, error.remedy)
        return
    for finding in (*streaming(seen, plain), silence(seen)):
        yield finding


async def _seen(answer: Answer, way: Way, idle: float, encoding: str) -> Seen:
    """Ask, and take what comes. Raises _NoProbeError."""
    origin, base = origin_of(way.url), urlsplit(way.url).path.rstrip("/")
    fields = {"Accept": "text/event-stream", "Accept-Encoding": encoding}
    if way.token is not None:
        fields["Authorization"] = f"Bearer {way.token}"
    try:
        # No cache on the way has an answer to this very one.
        await answer.ask(origin, f"{base}{PATH}?idle={idle:g}&once={secrets.token_hex(8)}", fields)
        ended = await answer.ended(idle + way.timeout + PACED)
    finally:
        answer.close()
    if answer.status != 200:
        raise _NoProbeError(refused(answer, way.url, token=way.token is not None))
    kind = answer.fields.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise _NoProbeError(stranger(answer, way.url))
    reading = Reading(answer.fields.get("content-encoding", ""))
    try:
        for at, data in answer.pieces:
            reading.feed(at - answer.asked_at, data)
    except ValueError as error:
        fact = f"{way.url} answers with another stream than the probe's: {error}"
        raise _NoProbeError(fail("sidecar", fact, WRONG_URL)) from None
    lasted = (answer.ended_at if ended else answer.latest) - answer.asked_at
    cut = ended and reading.end is None
    return Seen(
        reading=reading,
        pace=pace(reading.arrivals, reading.last) if len(reading.arrivals) > 1 else None,
        idle=idle,
        lasted=lasted,
        cut_after=silent_for(reading.arrivals, PACED, lasted) if cut else None,
    )
