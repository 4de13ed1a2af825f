"""Live recordings: starts them, finds them again, hands out readers, and gives up what nobody wants.

A call is found by its id (a client that comes back), by what was asked (an identical request), or by the
very request (an SDK that sends it again). Whoever finds it gets a reader, and reads what there is.
"""

import asyncio
import math
from collections.abc import Callable
from typing import cast

from sidecar.core import policy
from sidecar.core.types import End, Fault, Outcome
from sidecar.engine.pump import Ask, Live, pump
from sidecar.engine.reader import Reader
from sidecar.engine.rest import Rested, lay, wake
from sidecar.engine.shelf import Shelf
from sidecar.engine.source import Call, Upstream

_LEFT = End(Outcome.CANCELLED, Fault("stopped", "nobody read it any more, and the call was given up"))


class Hub:
    """All upstream calls of this process."""

    def __init__(self, upstream: Upstream, on_fault: Callable[[BaseException], None], shelf: Shelf) -> None:
        """`on_fault` is told of exceptions that no upstream can cause: our own mistakes."""
        self._upstream = upstream
        self._on_fault = on_fault
        self._shelf = shelf
        self._live: set[Live] = set()
        self._by_key: dict[bytes, list[Live]] = {}
        self._by_identity: dict[bytes, list[Live]] = {}
        self._draining = False
        self.left: set[Live] = set()
        """Calls that run though nobody reads them and no job holds them."""
        self.keep: Callable[[Live], bool] = lambda _live: False
        """Told of each call that has ended; returns whether it is about to store the answer, and will
        `settle` the call when that is done."""
        self.ended: Callable[[Live], None] = lambda _live: None
        """Told of each call that has ended, before `keep`."""
        self.retract: Callable[[Live], None] = lambda _live: None
        """Told of a call that `keep` was told of, and whose answer must not be stored after all."""
        shelf.evicted = lambda kept: self._evicted(cast("Live", kept))
        shelf.lay = lambda kept: lay(cast("Live", kept))
        self._loop = asyncio.get_running_loop()
        self.idle = asyncio.Event()
        """Set while no call is running."""
        self.idle.set()

    def __len__(self) -> int:
        return len(self._live)

    # Starting and finding.

    def start(self, live: Live, call: Call, upstream: Upstream | None = None) -> None:
        """Make the call of which `live` is the record. `upstream`: who answers it, if not the usual one."""
        task = self._loop.create_task(pump(upstream or self._upstream, call, live))
        self.adopt(live, task.cancel)
        task.add_done_callback(lambda task: self._pumped(live, task))

    def adopt(self, live: Live, abort: Callable[[], object]) -> None:
        """`live` is the record of an answer that begins to be made elsewhere: whoever makes it calls `over`
        once the recording has ended, and stops when told to `abort`."""
        live.abort = abort
        self._live.add(live)
        self.idle.clear()
        if live.ask.key and not live.ask.alone:
            self._by_key.setdefault(live.ask.key, []).append(live)
        if live.ask.identity:
            self._by_identity.setdefault(live.ask.identity, []).append(live)

    def set_apart(self, live: Live) -> None:
        """It is for the request that began it, and for no other that may look the same."""
        live.apart = True
        self._unlist(live)

    async def until_over(self, live: Live) -> None:
        """Wait until the call has ended; at once if it is not running."""
        if live in self._live:
            waiter = self._loop.create_future()
            live.waiting += (waiter,)
            await waiter

    def read(self, live: Live, offset: int = 0, *, back: bool = False) -> Reader:
        """A further reader. `back`: its client was granted time to come back, and has. Raises ValueError
        when the bytes at its offset are gone."""
        reader = Reader(live.recording, self._loop, offset)
        self._found(live)
        if back and (finite := [grant for grant in live.grants if grant < math.inf]):
            at = live.grants.index(min(finite))
            live.grants = live.grants[:at] + live.grants[at + 1 :]
        if live.settled:
            self.settle(live)
        return reader

    def shared(self, ask: Ask) -> Live | None:
        """A running call that an identical request may share."""
        running = self._by_key.get(ask.key, ()) if ask.key and not ask.alone else ()
        return next((live for live in running if _joinable(live, ask)), None)

    def repeated(self, ask: Ask, *, retry: bool) -> Live | None:
        """The running call that this request was already sent for. `retry`: an SDK says so."""
        if not retry and ask.idempotency is None:
            return None
        running = self._by_identity.get(ask.identity, ()) if ask.identity else ()
        again = (live for live in running if is_again(ask, live.ask, retry=retry) and _joinable(live, ask))
        return next(again, None)

    # Streams that clients come back to.

    def publish(self, live: Live, name: str) -> None:
        """From now on it can be found under this id."""
        live.name = name
        self._shelf.put(name, live)
        if live.recording.end is not None:
            self._shelf.end(name, live)

    def find(self, name: str) -> Live | None:
        """The call of that id, if it can still be read from any of its events on. One that has ended is
        another record of it each time."""
        found = self._shelf.get(name)
        return wake(found) if isinstance(found, Rested) else cast("Live | None", found)

    def keeps(self, name: str) -> bool:
        """Whether there is a call of that id."""
        return self._shelf.get(name) is not None

    @property
    def brief(self) -> bool:
        """Whether memory is short: what begins now is kept no longer than its readers need it, and has no id
        to come back with."""
        return self._shelf.brief

    @property
    def kept(self) -> int:
        """Bytes that are kept for clients that may come back."""
        return self._shelf.used

    def relieve(self, room: int, *, brief: bool, running: bool = False) -> None:
        """Memory is short, or is no more. From now on streams that have ended are kept within `room`, in
        bytes and with those that run, the latest ones. With `running` what is kept of calls that run is
        given up; their readers do not notice."""
        self._shelf.brief = brief
        self._shelf.resize(room)
        if running:
            self._shelf.evict()

    def forget(self, live: Live) -> None:
        """Nobody can come back to it any more."""
        if live.name is not None:
            self._shelf.drop(live.name)

    # Ending.

    def leave(self, live: Live, reader: Reader, patience: float = 0.0) -> None:
        """A reader is gone; so is the upstream call, unless somebody still wants it."""
        recording, now = live.recording, self._loop.time()
        reader.close()
        live.grants = tuple([grant for grant in live.grants if grant > now])
        if patience > 0 and math.inf not in live.grants:
            live.grants += (now + patience,)
        wait = policy.lease(
            ended=recording.end is not None,
            over=live.answer.said,
            readers=recording.readers,
            held=live.held,
            patience=max(live.grants, default=now) - now,
            draining=self._draining,
        )
        if wait <= 0:
            self._abandon(live)
        elif recording.end is None and not recording.readers and not live.held:
            self.left.add(live)
            if wait < math.inf:
                live.timer = self._loop.call_later(wait, self._abandon, live)

    def cancel(self, live: Live, fault: Fault) -> None:
        """Somebody who may wants it to end: whoever reads it is told why, unless they have all of it."""
        self.forget(live)
        error = live.answer.facts.error
        end = policy.end_of_leaving(over=live.answer.said, declared_error=error)
        self._give_up(live, end or End(Outcome.CANCELLED, fault))

    def drain(self) -> None:
        """Nobody can come back from now on: give up what only waits for that."""
        self._draining = True
        for live in list(self.left):
            if live.timer is not None:
                self._abandon(live)

    def stop(self, fault: Fault) -> None:
        """End every call now: what is still running gets `fault`, unless all of it had been said."""
        for live in list(self._live):
            end = policy.end_of_fault(
                fault,
                begun=live.recording.head is not None,
                over=live.answer.over,
                declared_error=live.answer.facts.error,
            )
            self._give_up(live, end)

    def close(self) -> None:
        """Forget what is kept."""
        self._shelf.close()

    def _abandon(self, live: Live) -> None:
        """Nobody wants the call any more."""
        error = live.answer.facts.error
        self._give_up(live, policy.end_of_leaving(over=live.answer.said, declared_error=error) or _LEFT)

    def _evicted(self, live: Live) -> None:
        """Nobody can come back to it: there is no use in waiting for that."""
        live.brief = True
        if live.timer is not None:
            self._abandon(live)

    def _give_up(self, live: Live, end: End) -> None:
        self._found(live)
        if end.outcome is Outcome.CANCELLED:
            self.forget(live)  # half an answer is of no use to anybody
        live.cancel(end)

    def _unlist(self, live: Live) -> None:
        """Nobody finds it any more by what it was asked."""
        for found, key in ((self._by_key, live.ask.key), (self._by_identity, live.ask.identity)):
            if key and live in found.get(key, ()):
                found[key].remove(live)
                if not found[key]:
                    del found[key]

    def _found(self, live: Live) -> None:
        """It no longer waits for somebody to come back."""
        self.left.discard(live)
        if live.timer is not None:
            live.timer.cancel()
            live.timer = None

    def _pumped(self, live: Live, task: asyncio.Task[None]) -> None:
        self.over(live)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)

    def over(self, live: Live) -> None:
        """The call has ended, and nobody finds it any more who wants to share it."""
        if live not in self._live:
            return
        self._live.discard(live)
        live.abort = None  # it holds the task, whose traceback would hold this call
        self._unlist(live)
        self._found(live)
        if live.name is not None:
            self._shelf.end(live.name, live)
        try:
            self.ended(live)
            storing = self.keep(live)
        except Exception as mistake:  # noqa: BLE001 - reason: an answer that is not stored is no worse an answer
            self._on_fault(mistake)
            storing = False
        if not storing:
            self.settle(live)
        waiting, live.waiting = live.waiting, ()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        if not self._live:
            self.idle.set()

    @staticmethod
    def settle(live: Live) -> None:
        """Tell those who wait to hear what became of it."""
        settled, live.settled = live.settled, ()
        for tell in settled:
            tell()


def is_again(ask: Ask, before: Ask, *, retry: bool) -> bool:
    """Whether a request is one that was sent before. `retry`: an SDK says so; else the two have to say
    that they are one operation."""
    named = ask.idempotency is not None and ask.idempotency == before.idempotency
    same = policy.same_operation(ask.idempotency, before.idempotency)
    return bool(ask.identity) and ask.identity == before.identity and (named or (retry and same))


def _joinable(live: Live, ask: Ask) -> bool:
    recording = live.recording
    return policy.may_join(
        ended=recording.end is not None,
        retained=recording.retained,
        plain=recording.head is not None and live.answer.identity,
        same_coding=live.ask.coding == ask.coding,
        same_operation=policy.same_operation(ask.idempotency, live.ask.idempotency),
    )
