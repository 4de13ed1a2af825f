"""A request's way: check, admit, serve, account.

What is written here is the order in which things happen, and that each request ends in exactly one
latency line, whatever becomes of it.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sidecar.config import Config
from sidecar.core.errors import RefusedError, outcome_of, status_of
from sidecar.core.latency import Aside, trace_id
from sidecar.core.types import Fault, Outcome, Request
from sidecar.serving import intake
from sidecar.serving.backend import Backend
from sidecar.serving.calls import Calls
from sidecar.serving.clients import Clients
from sidecar.serving.errors import own_error
from sidecar.serving.own import RESERVED, Own
from sidecar.serving.routes import as_sent
from sidecar.serving.shell import Arriving, ClientGoneError
from sidecar.serving.siblings import HEADROOM, Handing
from sidecar.serving.submit import Submit
from sidecar.serving.upgrade import Upgrades
from sidecar.serving.visit import Visit, name

Line = dict[str, Any]
Take = Callable[[Line, Aside], None]


class Front:
    """Serves requests. One per process."""

    def __init__(
        self,
        config: Config,
        backend: Backend,
        calls: Calls,
        own: Own,
        submit: Submit,
        handing: Handing,
        upgrades: Upgrades | None,
        clients: Clients | None,
        take: Take,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`upgrades`: serves WebSockets; None where there are none. `clients`: who may ask; all may when left
        out. `take` gets the fields of one latency line per request, `on_fault` mistakes of our own."""
        self._config = config
        self._backend = backend
        self._calls = calls
        self._own = own
        self._submit = submit
        self._handing = handing
        self._upgrades = upgrades
        self.clients = clients
        if upgrades is not None and clients is not None:
            upgrades.allowed = lambda visit: visit.client is None or clients.knows(visit.client)
        self._take = take
        self._on_fault = on_fault
        self.written: Callable[[Visit, Line], None] = lambda _visit, _line: None
        """Told of each request that was answered from memory, and its line."""
        self.no_jobs: str | None = None
        """Why background jobs are refused for the time being."""
        self.full: str | None = None
        """Why new requests are refused for the time being; what is under `/_slipstream/` is served."""
        self.draining = False
        self.leaving = False
        """Whether somebody else takes what is new: what still comes here had come before, and is served."""
        self.visits: set[Visit] = set()
        """Requests being served."""
        self.idle = asyncio.Event()
        """Set while no request is being served."""
        self.idle.set()

    @property
    def active(self) -> int:
        """How many requests are being served."""
        return len(self.visits)

    def drain(self) -> None:
        """New requests are refused from now on, and what has no end of its own ends."""
        self.draining = True
        self._own.probe.drain()

    @property
    def ending(self) -> bool:
        """Whether each answer is the last one on its connection."""
        return self.draining or self.leaving

    async def handle(self, visit: Visit, raw: Arriving) -> None:
        """Serve one request to its end. Raises what nobody expects, after noting it."""
        self.visits.add(visit)
        self.idle.clear()
        try:
            try:
                await self._serve(visit, raw)
            except RefusedError as error:
                visit.reply.keep_alive = visit.reply.keep_alive and not error.close
                if raw.raised and not visit.reply.started:
                    self._left_to_the_server(visit, error.fault)
                else:
                    self.refuse(visit, error.fault, error.retry)
            await visit.reply.flush()
        except (ClientGoneError, ConnectionError):
            visit.trace.outcome = Outcome.CANCELLED
            visit.reply.cut()
        except asyncio.CancelledError:
            visit.trace.outcome = visit.left()
            raise
        except Exception:  # reason: it is logged as ours by the server; here it must not look like success
            visit.trace.outcome, visit.trace.error = Outcome.REFUSED, "internal"
            if visit.reply.started:
                visit.reply.cut()
            raise
        finally:
            self.visits.discard(visit)
            if self.clients is not None:
                self._leave(self.clients, visit)
            if not self.visits:
                self.idle.set()
            self.account(visit)

    async def _serve(self, visit: Visit, raw: Arriving) -> None:
        trace, reply, backend = visit.trace, visit.reply, self._backend
        request = came = as_sent(raw.head())
        # Any other form of target may hold a credential, and is refused anyway.
        trace.path = request.path[:1024] if request.path.startswith("/") else ""
        # Where an upgrade is ignored or refused, aiohttp's parser loses what is pipelined behind the request.
        if self.ending or b"upgrade" in request.fields:
            reply.keep_alive = False
        visit.dialect = backend.dialect(request, None)
        trace.parent = request.fields.get(b"traceparent")
        trace.trace_id = trace_id(trace.parent)
        client, clients = None, self.clients
        if clients is not None and clients:
            client, request = clients.identify(came)
            visit.came = came
        asking = backend.caller(request, raw, client)
        trace.tenant = asking.tenant if client is not None or not clients else None
        trace.feature = name(request.fields.get(b"slipstream-feature"))
        backend.check(came, HEADROOM if raw.handed else 0)
        if clients is not None and request.path != RESERVED + "healthz":
            clients.demand(client, request)
        if request.path != RESERVED + "healthz":
            self._admit()
        if self.full is not None and not request.path.startswith(RESERVED):
            raise RefusedError("overloaded", self.full, close=False)
        if clients is not None and client is not None and not _is_free(request):
            if not raw.handed:
                clients.enter(client, request)
                visit.client = client
                visit.room = partial(clients.room, client, request)
            visit.whose = client
        if self._upgrades is not None and intake.for_websocket(came):
            await self._upgrades.serve(visit, raw, request, asking)
            return
        if await self._handing.serve(visit, raw, request, asking):
            return
        if request.path.startswith(RESERVED):
            visit.dialect = None
            await self._own.serve(visit, request, asking, draining=self.draining)
        elif (wait := intake.preference(request)) is not None:
            if self.no_jobs is not None:
                raise RefusedError("overloaded", self.no_jobs, close=False)
            await self._submit.serve(visit, raw, request, asking, wait)
        else:
            await self._calls.serve(visit, raw, request, asking)

    def _admit(self) -> None:
        """Raises RefusedError when there is no room, or no time left."""
        if self.draining and not self.leaving:
            raise RefusedError(
                "draining",
                "send the request again, to another instance if there is one",
            )
        most = self._config.limits.requests
        if self.active > most:
            raise RefusedError("overloaded", f"{most} requests are being served", close=False)

    @staticmethod
    def _leave(clients: Clients, visit: Visit) -> None:
        """It no longer counts against its client's limits; a call that it leaves alone does, until that has
        ended or somebody reads on."""
        if visit.client is not None:
            clients.leave(visit.client)
        whose, live = visit.whose, visit.live
        if whose is None or live is None or live.held:
            return
        if live.recording.end is None and not live.recording.readers:
            clients.left(whose, 1)
            live.settled += (partial(clients.left, whose, -1),)

    def refuse(self, visit: Visit, fault: Fault, retry: int = 1) -> None:
        """Answer with an error of the sidecar's own, as far as that can still be done. `retry`: see
        `RefusedError`."""
        trace, reply = visit.trace, visit.reply
        trace.error, trace.outcome = fault.kind, outcome_of(fault)
        try:
            if reply.started:
                reply.cut()
            else:
                trace.status = own_error(reply, visit.dialect, fault, retry)
                trace.head_at = time.perf_counter()
        except ClientGoneError:
            trace.outcome = Outcome.CANCELLED

    def _left_to_the_server(self, visit: Visit, fault: Fault) -> None:
        trace = visit.trace
        trace.error, trace.status, trace.outcome = fault.kind, status_of(fault), Outcome.UPSTREAM_ERROR

    def account(self, visit: Visit) -> None:
        """The latency line. The client has its last byte: now there is time to read a copy.

        A call that goes on without its client has more to tell: its line waits for the end of the call, or
        for somebody who reads on. The line of a call whose answer is stored waits until that is done.
        """
        if visit.logged:
            return
        visit.logged = True
        live = visit.live
        ended = time.perf_counter()
        if live is None or live.recording.readers or live.held:
            self._write(visit, ended)
        elif live.recording.end is None:
            live.settled += (lambda: self._write(visit, time.perf_counter()),)
        elif live.ask.keep is not None and live.abort is not None and not visit.trace.joined:
            # Its answer may be about to be stored, which is part of what it cost.
            live.settled += (lambda: self._write(visit, ended),)
        else:
            self._write(visit, ended)

    def _write(self, visit: Visit, now: float) -> None:
        try:
            line = visit.line(now)
            self._take(line, visit.aside())
            if visit.hit is not None:
                self.written(visit, line)
        except Exception as error:  # noqa: BLE001 - reason: the answer is out; its line must not disturb it
            self._on_fault(error)


def _is_free(request: Request) -> bool:
    """Whether it counts against nobody's limits: it looks whether all is well, or ends something, which one
    who is at a limit must be able to do."""
    stops = request.method == "DELETE" and request.path.startswith(RESERVED)
    return stops or request.path == RESERVED + "healthz"
