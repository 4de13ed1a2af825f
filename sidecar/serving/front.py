"""A request's way: check, admit, serve, account.

What is written here is the order in which things happen, and that each request ends in exactly one
latency line, whatever becomes of it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from sidecar.config import Config
from sidecar.core.errors import RefusedError, outcome_of, status_of
from sidecar.core.latency import Aside, trace_id
from sidecar.core.types import Fault, Outcome
from sidecar.serving import intake
from sidecar.serving.backend import Backend
from sidecar.serving.calls import Calls
from sidecar.serving.errors import own_error
from sidecar.serving.own import RESERVED, Own
from sidecar.serving.shell import Arriving, ClientGoneError
from sidecar.serving.submit import Submit
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
        take: Take,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`take` gets the fields of one latency line per request, `on_fault` mistakes of our own."""
        self._config = config
        self._backend = backend
        self._calls = calls
        self._own = own
        self._submit = submit
        self._take = take
        self._on_fault = on_fault
        self.written: Callable[[Visit, Line], None] = lambda _visit, _line: None
        """Told of each request that was answered from memory, and its line."""
        self.draining = False
        self.visits: set[Visit] = set()
        """Requests being served."""
        self.idle = asyncio.Event()
        """Set while no request is being served."""
        self.idle.set()

    @property
    def active(self) -> int:
        """How many requests are being served."""
        return len(self.visits)

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
                    self.refuse(visit, error.fault)
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
            if not self.visits:
                self.idle.set()
            self.account(visit)

    async def _serve(self, visit: Visit, raw: Arriving) -> None:
        trace, reply, backend = visit.trace, visit.reply, self._backend
        request = raw.head()
        # Any other form of target may hold a credential, and is refused anyway.
        trace.path = request.path[:1024] if request.path.startswith("/") else ""
        if self.draining:
            reply.keep_alive = False
        visit.dialect = backend.dialect(request, None)
        trace.parent = request.fields.get(b"traceparent")
        trace.trace_id = trace_id(trace.parent)
        asking = backend.caller(request, raw)
        trace.tenant = asking.tenant
        trace.feature = name(request.fields.get(b"slipstream-feature"))
        backend.check(request)
        if b"upgrade" in request.fields:
            # Ignored, but aiohttp's parser loses what is pipelined behind such a request.
            reply.keep_alive = False
        if request.path != RESERVED + "healthz":
            self._admit()
        if request.path.startswith(RESERVED):
            visit.dialect = None
            await self._own.serve(visit, request, asking, draining=self.draining)
        elif (wait := intake.preference(request)) is not None:
            await self._submit.serve(visit, raw, request, asking, wait)
        else:
            await self._calls.serve(visit, raw, request, asking)

    def _admit(self) -> None:
        """Raises RefusedError when there is no room, or no time left."""
        if self.draining:
            raise RefusedError(
                "draining",
                "send the request again, to another instance if there is one",
            )
        most = self._config.limits.requests
        if self.active > most:
            raise RefusedError("overloaded", f"{most} requests are being served", close=False)

    def refuse(self, visit: Visit, fault: Fault) -> None:
        """Answer with an error of the sidecar's own, as far as that can still be done."""
        trace, reply = visit.trace, visit.reply
        trace.error, trace.outcome = fault.kind, outcome_of(fault)
        try:
            if reply.started:
                reply.cut()
            else:
                trace.status = own_error(reply, visit.dialect, fault)
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
            live.settled.append(lambda: self._write(visit, time.perf_counter()))
        elif live.ask.keep is not None and live.abort is not None and not visit.trace.joined:
            # Its answer may be about to be stored, which is part of what it cost.
            live.settled.append(lambda: self._write(visit, ended))
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
