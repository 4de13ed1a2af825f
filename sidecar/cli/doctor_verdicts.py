"""What a probe that came through says, and which setting cures what is wrong with it."""

import math

from sidecar.cli.doctor_judge import Seen
from sidecar.cli.doctor_show import Finding, fail, milliseconds, ok, plural, printable, warn

_MARGIN = 0.8
"""Keepalives have to come well before an idle timeout, not just before it."""
_UNBUFFERED = "`proxy_buffering off;` (or no `proxy_ignore_headers X-Accel-Buffering;`)"
_OTHERS = "elsewhere: turn off the buffering of responses"
_PLAIN = (
    "nginx: `gzip off;` in this location, or no text/event-stream in `gzip_types`; elsewhere: no compression "
    "of text/event-stream"
)
_LONGER = "nginx: a longer `proxy_read_timeout`; load balancers: a longer idle timeout"


def reached(seen: Seen) -> Finding:
    """What arrived at the sidecar."""
    hello = seen.reading.hello
    if not hello and not seen.reading.readable:
        fact = (
            f"the answer is compressed with {printable(seen.reading.encoding)[:40]}, which nobody asked for"
        )
        return fail("sidecar", fact, _PLAIN)
    if not hello:
        remedy = f"nginx: {_UNBUFFERED}; {_OTHERS}"
        return fail("sidecar", "it answers, but nothing of the stream came", remedy)
    forwarded = hello.get("forwarded")
    shown = ", ".join(printable(str(name)) for name in forwarded) if isinstance(forwarded, list) else ""
    between = f"; on the way somebody adds {shown}" if shown else ""
    fact = f"answers; requests reach it as HTTP/{_version(seen)}{between}"
    data = {"http": _version(seen), "forwarded": forwarded, "keepalive_s": hello.get("keepalive")}
    if _version(seen) == "1.0":
        remedy = (
            "nginx: `proxy_http_version 1.1;`. With 1.0 a stream ends where its connection ends, and one "
            "that broke off looks whole"
        )
        return warn("sidecar", fact, remedy, **data)
    return ok("sidecar", fact, **data)


def lively(seen: Seen) -> bool:
    """Whether events come as they are sent."""
    return seen.pace is not None and seen.pace.kind == "live"


def streaming(seen: Seen, plain: Seen | None) -> list[Finding]:
    """Buffering and compression. `plain`: the same without compression, where the first was held back."""
    cured = plain is not None and lively(plain)
    found = [_buffering(seen, compression=cured)]
    if not seen.compressed:
        return [*found, ok("compression", "none, though it was offered")]
    encoding = printable(seen.reading.encoding)[:40]
    if cured:
        fact = f"{encoding} holds the stream back: without it, events come as they are sent"
        return [*found, fail("compression", fact, _PLAIN, encoding=encoding)]
    fact = f"something on the way compresses the stream with {encoding}"
    fact += ", yet holds nothing back" if lively(seen) else ""
    return [*found, warn("compression", fact, _PLAIN, encoding=encoding)]


def _buffering(seen: Seen, *, compression: bool) -> Finding:
    """`compression`: that alone is the cause."""
    remedy = f"nginx: {_UNBUFFERED}; {_OTHERS}"
    if _version(seen) == "1.0":
        remedy = f"nginx: `proxy_http_version 1.1;` and {_UNBUFFERED}; {_OTHERS}"
    if compression:
        remedy = "it is the compression: see the next line"
    found = seen.pace
    if found is None:
        fact = f"buffered: nothing that can be read came within {milliseconds(seen.lasted)}"
        return fail("streaming", fact, remedy)
    count = len(seen.reading.arrivals)
    data = {
        "kind": found.kind,
        "late_ms": round(found.late * 1000),
        "events": count,
        "moments": found.moments,
    }
    late = milliseconds(found.late)
    if found.kind == "live":
        fact = f"not buffered: {plural(count, 'event')} came one by one, the slowest {late} late"
        return ok("streaming", fact, **data)
    span = seen.reading.arrivals[-1].sent - seen.reading.arrivals[0].sent
    how = "at once" if found.kind == "whole" else f"in {plural(found.moments, 'piece')}"
    fact = f"buffered: {plural(count, 'event')} sent over {milliseconds(span)} came {how}, up to {late} late"
    if found.kind == "tail":
        fact = (
            f"buffered in part: the last event before the silence came only with what followed, {late} late"
        )
    return fail("streaming", fact, remedy, **data)


def silence(seen: Seen) -> Finding:
    """Whether the connection lives through a pause, and whether keepalives would save it."""
    given = seen.reading.hello.get("keepalive")
    interval = float(given) if isinstance(given, int | float) else 0.0
    data: dict[str, object] = {"silence_s": seen.idle, "keepalive_s": interval}
    if seen.reading.end == "draining":
        return warn("silence", "not seen: the sidecar is shutting down", "try again when it is back", **data)
    if seen.reading.end is not None:
        fact = f"{seen.idle:g} s without a byte are survived"
        if interval > seen.idle:
            fact += f", but keepalives come every {interval:g} s only"
            return warn(
                "silence", fact, f"see whether it survives that: --idle {math.ceil(interval * 1.25)}", **data
            )
        return ok("silence", fact, **data)
    if seen.cut_after is None:
        fact = f"the stream has no end: {milliseconds(seen.lasted)}, and the last event has not come"
        return fail("silence", fact, "something on the way keeps the end: see its log", **data)
    cut = seen.cut_after
    fact = f"the connection is cut after {cut:.1f} s without a byte"
    data["cut_after_s"] = round(cut, 1)
    if 0 < interval <= cut * _MARGIN:
        return ok("silence", f"{fact}; keepalives come every {interval:g} s, before that", **data)
    fact += f", and keepalives come every {interval:g} s" if interval else ", and keepalives are off"
    below = max(round(cut / 2, 1), 0.1)
    remedy = f"{_LONGER}; or keepalives before that: `keepalive.interval = {below:g}` for the sidecar"
    return fail("silence", fact, remedy, **data)


def _version(seen: Seen) -> str:
    return printable(str(seen.reading.hello.get("http")))[:8]
