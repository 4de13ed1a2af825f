"""A request's way through the sidecar: check, admit, serve, account.

What is written here is the order in which things happen, and that each request ends in exactly one
latency line, whatever becomes of it.
"""

import asyncio
import time
from collections.abc import Callable

from sidecar.config import Config
from sidecar.core.dialects import recognise
from sidecar.core.errors import RefusedError, outcome_of, status_of
from sidecar.core.fingerprint import caller
from sidecar.core.headers import render
from sidecar.core.latency import Trace, record, trace_id
from sidecar.core.types import Fault, Outcome
from sidecar.web import intake
from sidecar.web.again import Again
from sidecar.web.calls import Calls
from sidecar.web.errors import error_parts, own_error, reason
from sidecar.web.incoming import Incoming
from sidecar.web.own import RESERVED, Own
from sidecar.web.reply import ClientGoneError, Reply, Sent
from sidecar.web.server import Protocol
from sidecar.web.submit import Submit
from sidecar.web.visit import Visit, heard, name

Log = Callable[[dict[str, object]], None]


class Proxy:
    """Serves requests. One per process."""

    def __init__(
        self,
        config: Config,
        secret: bytes,
        calls: Calls,
        own: Own,
        submit: Submit,
        again: Again,
        log: Log,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`log` gets the fields of one latency line per request, `on_fault` mistakes of our own."""
        self._config = config
        self._secret = secret
        self._calls = calls
        self._own = own
        self._submit = submit
        self._again = again
        self._log = log
        self._on_fault = on_fault
        self.draining = False
        self.active = 0
        """Requests being served."""
        self.idle = asyncio.Event()
        """Set while no request is being served."""
        self.idle.set()

    def again(self, protocol: Protocol, data: bytes) -> bool:
        """Answer a request that has come before in the same bytes; returns whether that could be done."""
        limits = self._config.limits
        if self.draining or self.active >= limits.requests or data.find(b"\r\n\r\n") > limits.headers:
            return False
        return self._again.serve(protocol, data)

    async def handle(self, raw: Incoming) -> Sent:
        """Serve one request to its end."""
        visit = Visit(raw.method, Reply(raw, self._config.timeouts.client))
        self.active += 1
        self.idle.clear()
        try:
            await self._serve(visit, raw)
        except RefusedError as error:
            visit.reply.keep_alive = visit.reply.keep_alive and not error.close
            self._refuse(visit, error.fault)
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
            self.active -= 1
            if not self.active:
                self.idle.set()
            self._account(visit)
        raw.protocol.answered = visit.reply.keep_alive
        return Sent(keep_alive=visit.reply.keep_alive)

    def refuse(self, raw: Incoming, error: RefusedError) -> Sent:
        """Answer a request that could not be read."""
        visit = Visit(raw.method, Reply(raw, self._config.timeouts.client))
        visit.reply.keep_alive = False
        self._refuse(visit, error.fault)
        self._account(visit)
        return Sent(keep_alive=False)

    def reject(self, transport: asyncio.Transport, error: RefusedError) -> None:
        """Answer a connection that has not brought a whole request head."""
        body, fields = error_parts(error.fault)
        status = status_of(error.fault)
        start = b"HTTP/1.1 %d %b" % (status, reason(error.fault))
        transport.write(render(start, [*fields, (b"Connection", b"close")]) + body)
        trace = Trace.begin("")
        trace.outcome, trace.error, trace.status = (
            outcome_of(error.fault),
            error.fault.kind,
            status,
        )
        self._log(record(trace, heard(None, len(body)), time.perf_counter()))

    async def _serve(self, visit: Visit, raw: Incoming) -> None:
        trace, reply = visit.trace, visit.reply
        request = intake.read_head(raw)
        # Any other form of target may hold a credential, and is refused anyway.
        trace.path = request.path[:1024] if request.path.startswith("/") else ""
        if self.draining:
            reply.keep_alive = False
        visit.dialect = recognise(request.method, request.path)
        trace.trace_id = trace_id(request.fields.get(b"traceparent"))
        asking = caller(self._secret, request)
        trace.tenant = asking.tenant
        trace.feature = name(request.fields.get(b"slipstream-feature"))
        intake.check(request, self._config.limits.headers)
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

    def _refuse(self, visit: Visit, fault: Fault) -> None:
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

    def _account(self, visit: Visit) -> None:
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
        elif live.ask.keep is not None and live.task is not None and not visit.trace.joined:
            # Its answer may be about to be stored, which is part of what it cost.
            live.settled.append(lambda: self._write(visit, ended))
        else:
            self._write(visit, ended)

    def _write(self, visit: Visit, now: float) -> None:
        try:
            line = visit.line(now)
            self._log(line)
            if visit.hit is not None:
                self._again.remember(visit, line)
        except Exception as error:  # noqa: BLE001 - reason: the answer is out; its line must not disturb it
            self._on_fault(error)
