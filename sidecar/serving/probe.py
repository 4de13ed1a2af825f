"""A paced stream that shows what lies between a client and this process: `GET /_slipstream/probe`.

It is sent exactly as streams of models are: the same header fields, the same framing, one write per event.
`slipstream doctor --url` asks for it and compares when each event was sent with when it came. First come
small events with pauses between them, which a proxy that buffers holds back; then large ones, which push
through a buffer that is full; then silence, without any keepalive, which a proxy with a short idle timeout
cuts; then the last one.

It costs next to nothing (about 25 KB in seconds), and only a few are served at once.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

import orjson

from sidecar.config import Config
from sidecar.core.errors import RefusedError
from sidecar.core.types import Request
from sidecar.serving.visit import Visit

PACE = 0.15
"""Seconds between two events."""
SMALL = 12
"""Events of some tens of bytes: 1.8 s of them."""
LARGE = 4
PADDING = 4096
"""Characters that make an event large; no compression makes them much fewer."""
LONGEST_SILENCE = 120
"""Seconds."""
AT_ONCE = 8
"""Probes of one process."""
_SECONDS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3})?")
_FORWARDED = (b"via", b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip")
"""Fields by which proxies show themselves. Their names are told, never their values."""


class Probe:
    """Serves probes. One per process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._running = 0
        self._drain = asyncio.Event()

    def reload(self, config: Config) -> None:
        """Go by that configuration from now on."""
        self._config = config

    @property
    def running(self) -> int:
        """How many are being served."""
        return self._running

    def drain(self) -> None:
        """Those that are under way end, and say why."""
        self._drain.set()

    async def serve(self, visit: Visit, request: Request) -> None:
        """Serve one to its end. Raises RefusedError, ClientGoneError."""
        silence = _silence(request)
        if self._running >= AT_ONCE:
            raise RefusedError("overloaded", f"{AT_ONCE} probes are being served; try again", close=False)
        self._running += 1
        try:
            await self._play(visit, request, silence)
        finally:
            self._running -= 1

    async def _play(self, visit: Visit, request: Request, silence: float) -> None:
        reply = visit.reply
        # As with health checks: it is slow on purpose, and would spoil the figures.
        visit.logged = True
        fields = [
            (b"Content-Type", b"text/event-stream"),
            (b"X-Accel-Buffering", b"no"),
            (b"Cache-Control", b"no-cache"),
        ]
        began = time.perf_counter()
        first = self._event(began, 0, self._hello(request, silence))
        reply.start(200, b"OK", fields, sized=False, body=first)
        await reply.drained()
        for number in range(1, SMALL + LARGE + 1):
            if await self._wait(began + number * PACE):
                break
            more = {"padding": secrets.token_urlsafe(PADDING * 3 // 4)} if number > SMALL else {}
            reply.write(self._event(began, number, more))
            await reply.drained()
        else:
            await self._wait(time.perf_counter() + silence)
        end = "draining" if self._drain.is_set() else "whole"
        reply.write(self._event(began, SMALL + LARGE + 1, {"end": end}))
        await reply.drained()
        reply.finish()

    async def _wait(self, until: float) -> bool:
        """Until then, by `time.perf_counter`; returns whether the process drains, which ends it sooner."""
        try:
            async with asyncio.timeout(until - time.perf_counter()):
                await self._drain.wait()
        except TimeoutError:
            return False
        return True

    def _hello(self, request: Request, silence: float) -> dict[str, object]:
        """What came here of the request, and what goes for streams of this process."""
        return {
            "probe": 1,
            "http": "1.0" if request.http10 else "1.1",
            "forwarded": [name.decode() for name in _FORWARDED if name in request.fields],
            "keepalive": float(self._config.keepalive.interval),
            "events": SMALL + LARGE + 2,
            "pace": PACE,
            "silence": silence,
        }

    @staticmethod
    def _event(began: float, number: int, more: Mapping[str, object]) -> bytes:
        """`at`: milliseconds since the first one, by the clock that paces them."""
        at = round((time.perf_counter() - began) * 1000, 1)
        return b"data: %b\n\n" % orjson.dumps({"n": number, "at": at, **more})


def _silence(request: Request) -> float:
    """Seconds of silence that were asked for. Raises RefusedError."""
    text = dict(parse_qsl(request.query, keep_blank_values=True)).get("idle", "0")
    if _SECONDS.fullmatch(text) is None or float(text) > LONGEST_SILENCE:
        raise RefusedError("bad_request", f"idle: expected seconds up to {LONGEST_SILENCE}", close=False)
    return float(text)
