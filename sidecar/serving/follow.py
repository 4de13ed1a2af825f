"""Serving a recording to a client, from wherever it starts: a call of its own, another's, a stream it comes
back to, a job's result, a stored answer."""

from collections.abc import Callable

from sidecar.config import Config
from sidecar.core import policy
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller
from sidecar.core.ids import belongs, event_id, meant_as_one, mint
from sidecar.core.types import Fault, Head, Request
from sidecar.engine.hub import Hub
from sidecar.engine.pump import Live
from sidecar.serving import intake
from sidecar.serving.render import NO_FIELDS, Fields, Render, View
from sidecar.serving.visit import Visit


class Follow:
    """Serves them. One per process."""

    def __init__(self, config: Config, hub: Hub, secret: bytes, worker: int = 0) -> None:
        """`worker`: the number of this process, which ids name."""
        self._config = config
        self._hub = hub
        self._secret = secret
        self._worker = worker

    def reload(self, config: Config) -> None:
        """Go by that configuration from now on."""
        self._config = config

    def coming_back(self, request: Request, caller: Caller) -> tuple[str, int] | None:
        """The event after which a client wants to go on; None for a request of its own, which may carry
        an id that the upstream has set. Raises RefusedError for an id that is not this caller's."""
        last = request.fields.get(b"last-event-id", b"")
        found = event_id(last)
        if not belongs(self._secret, caller.scope, found[0]) if found is not None else meant_as_one(last):
            raise RefusedError("not_found", "no stream has such an event", close=False)
        return found

    def known(self, name: str) -> Live:
        """The call of an id that is the caller's own. Raises RefusedError when it is gone."""
        live = self._hub.find(name)
        if live is None:
            detail = "the stream was stopped, or is over and no longer kept; send the request again"
            raise RefusedError("gone", detail, close=False)
        return live

    @staticmethod
    def after(live: Live, number: int) -> int:
        """How many events a client has whose last id is that of event `number`. Raises RefusedError."""
        count = number + 1
        if count == live.answer.ids_until < live.answer.events:
            detail = "events without ids followed that one: it is not known how many of them you have"
            raise RefusedError("gone", detail, close=False)
        return count

    def stop(self, live: Live, fault: Fault) -> None:
        """End a call because somebody who may wants it."""
        self._hub.cancel(live, fault)

    async def follow(
        self,
        visit: Visit,
        live: Live,
        request: Request,
        caller: Caller,
        number: int = 0,
        *,
        resumed: bool = False,
        plain: bool = False,
        fields: Callable[[Head | None], Fields] = lambda _head: NO_FIELDS,
        spared: bool = False,
    ) -> None:
        """Serve a recording from event `number` on, to its end. `plain`: just the upstream's response.
        `fields`: further ones for the head; see `View` for `spared`.

        Raises RefusedError, SparedError, ApartError, ClientGoneError.
        """
        trace, reply, asking = visit.trace, visit.reply, request.fields
        asked = intake.patience(asking.get(b"slipstream-disconnect"))
        ids = policy.takes_ids(asking) and not plain
        told = resumed and _told(live, number)
        try:
            offset = _offset(live, number, told=told)
            reader = self._hub.read(live, offset, back=resumed)
        except IndexError:
            raise RefusedError("not_found", "no stream has such an event", close=False) from None
        except ValueError:
            raise RefusedError("gone", "what followed is no longer kept", close=False) from None
        # What a job cost is told by the job's own line.
        visit.live, visit.dialect = None if plain else live, visit.dialect or live.answer.dialect
        trace.labels = live.labels
        if resumed:
            trace.joined, trace.resumed_from = True, number
            trace.cache = "bypass" if self._config.cache.mode != "off" else "off"
        try:
            if told and policy.stays_away(request.method, asking):
                trace.status, trace.stream_id = 204, live.name
                reply.start(204, b"No Content", (), sized=True)
                return
            view = View(
                interval=self._config.keepalive.interval,
                early=0.0 if plain else live.early,
                ids=ids,
                number=number,
                told=told,
                named=None if plain or (live.fleeting and not ids) else lambda live: self._name(live, caller),
                fields=fields,
                back=resumed,
                spared=spared,
            )
            await Render(reply, trace, live, reader, visit.dialect, view).run()
        finally:
            visit.taken = reader.offset == live.recording.size and not reply.behind
            patience = policy.patience(
                asked=asked,
                configured=live.configured,
                resumable=ids and trace.stream_id is not None,
                short=self._config.resume.grace,
            )
            self._hub.leave(live, reader, patience)

    def _name(self, live: Live, caller: Caller) -> str:
        if live.name is None:
            self._hub.publish(live, mint(self._secret, caller.scope, "s", self._worker))
            assert live.name is not None
        return live.name


def _told(live: Live, number: int) -> bool:
    """Whether a client with that many events has all of a stream, to the error that ended it."""
    end, last = live.recording.end, len(live.recording.events)
    return end is not None and number == (last if end.fault is None else last + 1)


def _offset(live: Live, number: int, *, told: bool) -> int:
    """Where the client with that many events goes on. Raises IndexError when there were not so many."""
    recording = live.recording
    known = len(recording.events)
    if number == known + 1 and recording.end is None and live.answer.blank_begun:
        return recording.size  # the id went out with the CR that began the blank line
    return recording.after(known if told else number)
