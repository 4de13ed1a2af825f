"""Handshakes that fail, in the log: how many and why, at most one line a minute.

Whoever reaches the port can have as many of them fail as they like, so there is no line for each. There is
nothing in it that a client has sent.
"""

import asyncio
import ssl
from collections import Counter

from structlog.typing import FilteringBoundLogger

from sidecar.web.listen import CrowdedOutError

_PERIOD = 60.0
"""Seconds from one line to the next."""


class Handshakes:
    """Counts those of one process. The first one that fails is told of at once."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._failed: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def failed(self, error: BaseException) -> None:
        """One did."""
        self._failed[_reason(error)] += 1
        if self._timer is None:
            self._tell()

    def stop(self) -> None:
        """Tell of those that have not been told of."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._say()

    def _tell(self) -> None:
        if self._failed:
            self._say()
            self._timer = asyncio.get_running_loop().call_later(_PERIOD, self._tell)
        else:
            self._timer = None

    def _say(self) -> None:
        if self._failed:
            count, reasons = self._failed.total(), dict(self._failed.most_common())
            self._failed.clear()
            # That clients leave is ordinary: health checks of load balancers do.
            say = self._log.info if reasons.keys() == {"left"} else self._log.warning
            say("tls_handshake_failed", count=count, reasons=reasons)


def _reason(error: BaseException) -> str:
    """One of a few: what OpenSSL calls it, or what became of the connection."""
    if isinstance(error, CrowdedOutError):
        return "crowded_out"
    if isinstance(error, ssl.SSLError):
        return (getattr(error, "reason", None) or "ssl").lower()
    if isinstance(error, ConnectionAbortedError | TimeoutError):
        return "timeout"
    return "left"
