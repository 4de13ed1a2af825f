"""Two connections that carry a WebSocket, joined: what comes from one goes to the other, as it comes.

Bytes go through unchanged and at once. What one side does not take is not read from the other, so no more
waits here than a transport's buffer and one piece. Frames are looked at for two things only: the latency
line, and where a close frame can be put in when the sidecar stops.

How it ends: that a side has closed is passed on, and the other one may finish what it was saying, for a
moment. A side that vanishes takes the other one with it. No close frame is made up for either: to the one who
is left it looks like what it is (RFC 6455, 7.1.5: code 1006).
"""

import asyncio
import os

from sidecar.core.types import Outcome
from sidecar.core.websocket import Frames, close_frame
from sidecar.engine.wire import Wire

LINGER = 0.75
"""Seconds for the other side to finish, once one has closed: so long may a client that has left cost."""
REPLY = 3.0
"""Seconds where it was told why, and has not replied: closing before that could take the reason from it."""
RESTART, AWAY, POLICY = 1012, 1001, 1008
"""What a server and a client say that are stopped, and a server to who may not go on (RFC 6455, 7.4.1, and
IANA's registry of close codes)."""


class Relay:
    """Both ends, and what became of them."""

    def __init__(
        self, client: Wire, upstream: Wire, client_patience: float, upstream_patience: float
    ) -> None:
        """Patience: seconds for which a side may take nothing of what waits for it."""
        self._loop = asyncio.get_running_loop()
        self.client = End(self, client, client_patience)
        self.upstream = End(self, upstream, upstream_patience)
        self.client.peer, self.upstream.peer = self.upstream, self.client
        self.over: asyncio.Future[None] = self._loop.create_future()
        """Done when both ends are closed."""
        self.close_code: int | None = None
        """Of the first close frame that was passed on whole, or else of our own to the client."""
        self.outcome: Outcome | None = None
        """What became of it, once that is clear: `complete` if a close frame had been passed on whole, in
        whichever direction; else who vanished first."""
        self.error: str | None = None
        self._closing = False
        self._lingered = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, with what has come already."""
        self.upstream.wire.listen(self.upstream)
        self.client.wire.listen(self.client)

    def stop(self, error: str = "draining", code: int = RESTART) -> None:
        """End it because the sidecar stops, or because of another `error`, with that `code` for the client.
        Each side gets a close frame, unless the other one has sent it one already; where that would be inside
        of a frame, once the frame is over, if that is soon."""
        self.settle(Outcome.TRUNCATED, error)
        self.upstream.dismiss(code, None)
        self.client.dismiss(AWAY, os.urandom(4))
        self._linger(LINGER)

    def close(self) -> None:
        """End it now. What was written may still be delivered: to the client as long as clients may take for
        anything, to the upstream no longer than it lingers. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.settle(Outcome.CANCELLED)
        self.upstream.wire.close(0.0 if self._lingered else LINGER)
        self.client.wire.close(self.client.patience)

    def settle(self, outcome: Outcome, error: str | None = None) -> None:
        """Say what became of it. The first word counts, and a close frame before that."""
        if self.outcome is None and self.close_code is not None:
            self.outcome = Outcome.COMPLETE
        elif self.outcome is None:
            self.outcome, self.error = outcome, error

    # What the ends tell.

    def ended(self, end: "End") -> None:
        """No more comes from there."""
        if end is self.client:
            self.settle(Outcome.CANCELLED)
        else:
            self.settle(Outcome.TRUNCATED, "upstream_closed")
        if end.peer.over or (end is self.client and end.gone) or self._said:
            self.close()
        elif not self._closing:
            # What the other side is still sending has to be read: closing on it would be a reset, which may
            # take from it what it was just told.
            end.peer.wire.finish()
            replies = end.frames.close_code is not None and end.peer.frames.close_code is None
            self._linger(REPLY if replies else LINGER)

    def closing(self, end: "End") -> None:
        """A close frame from there has been passed on."""
        if self.close_code is None:
            self.close_code = end.frames.close_code
        if self._said and end.peer.over:
            self.close()

    def gone(self) -> None:
        """One of them is closed, both ways."""
        if self.client.gone and self.upstream.gone and not self.over.done():
            self.over.set_result(None)

    def stuck(self, end: "End") -> None:
        """That one takes nothing."""
        if end is self.client:
            self.settle(Outcome.CANCELLED)
        else:
            self.settle(Outcome.TIMEOUT, "upstream_stalled")
        end.wire.close(0.0)
        self.close()

    @property
    def _said(self) -> bool:
        """Whether both have sent their close frames, after which there is nothing to say."""
        return self.client.frames.close_code is not None and self.upstream.frames.close_code is not None

    def _linger(self, seconds: float) -> None:
        if self._timer is None and not self._closing:
            self._timer = self._loop.call_later(seconds, self._linger_no_more)

    def _linger_no_more(self) -> None:
        self._lingered = True
        self.close()


class End:
    """One side, and what comes from there; see `engine.wire.Ear`."""

    peer: "End"

    def __init__(self, relay: Relay, wire: Wire, patience: float) -> None:
        self._relay = relay
        self.wire = wire
        self.patience = patience
        self.frames = Frames()
        self.passed = 0
        """Bytes that were passed on from here."""
        self.over = False
        """No more comes from here."""
        self.gone = False
        """Nor does anything get there."""
        self._due: bytes | None = None
        """A close frame that is to follow the current frame; what comes after that is for nobody."""
        self._code = RESTART
        self._dismissed = False
        self._taken = 0
        self._watch: asyncio.TimerHandle | None = None

    def dismiss(self, code: int, mask: bytes | None) -> None:
        """Let the other side hear no more from here but a close frame, as soon as there is room for one."""
        if self.frames.close_code is None:
            self._due, self._code = close_frame(code, mask=mask), code
            self._dismiss()

    def _dismiss(self) -> None:
        if self._due is None or self._dismissed or not self.frames.at_boundary:
            return
        self._dismissed = True
        self._pass(self._due)
        self.peer.wire.finish()
        if self is self._relay.upstream and self._relay.close_code is None:
            self._relay.close_code = self._code

    def _pass(self, data: bytes) -> None:
        self.passed += len(data)
        self.peer.wire.write(data)

    def received(self, data: bytes) -> None:
        """See `Ear`."""
        if self._dismissed:
            return
        if self._due is not None:
            self._pass(data[: self.frames.feed_frame(data)])
            self._dismiss()
            return
        self.frames.feed(data)
        self._pass(data)
        if self.frames.close_code is not None:
            self._relay.closing(self)

    def ended(self) -> None:
        """See `Ear`."""
        self.over = True
        self._relay.ended(self)

    def lost(self) -> None:
        """See `Ear`."""
        self.over = self.gone = True
        self.ready()
        self._relay.ended(self)
        self._relay.gone()

    def full(self) -> None:
        """See `Ear`."""
        self.peer.wire.pause()
        self._taken = self._delivered
        self._watch = asyncio.get_running_loop().call_later(self.patience, self._look)

    def ready(self) -> None:
        """See `Ear`."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
            self.peer.wire.resume()

    @property
    def _delivered(self) -> int:
        """Bytes that have left for this side: all that matters is that they get more."""
        return self.peer.passed - self.wire.waiting

    def _look(self) -> None:
        if self._delivered > self._taken:
            self._taken = self._delivered
            self._watch = asyncio.get_running_loop().call_later(self.patience, self._look)
        else:
            self._watch = None
            self._relay.stuck(self)
