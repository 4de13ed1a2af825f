"""A request's way through the sidecar: check, route, read, call, render, account.

What is written here is the order in which things happen, and that each request ends in exactly one
latency line, whatever becomes of it.
"""

import asyncio
import time
from collections.abc import Callable

from sidecar.config import Config
from sidecar.core.answer import Answer
from sidecar.core.dialects import Dialect, recognise
from sidecar.core.errors import RefusedError, outcome_of, status_of
from sidecar.core.fingerprint import tenant
from sidecar.core.headers import render
from sidecar.core.latency import Heard, Trace, record, trace_id
from sidecar.core.types import Fault, Outcome, Request
from sidecar.engine.hub import Hub
from sidecar.engine.pump import Live
from sidecar.web import intake
from sidecar.web.body import receive
from sidecar.web.incoming import Incoming
from sidecar.web.render import EARLY_TYPE, Render, error_parts, own_error, reason
from sidecar.web.reply import ClientGoneError, Reply, Sent
from sidecar.web.routes import Routes, provider

RESERVED = "/_slipstream/"
_NAME = 128
"""Characters of a name chosen by a client that a log line repeats."""

Log = Callable[[dict[str, object]], None]


class Proxy:
    """Serves requests. One per process."""

    def __init__(
        self,
        config: Config,
        routes: Routes,
        hub: Hub,
        secret: bytes,
        log: Log,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`log` gets the fields of one latency line per request, `on_fault` mistakes of our own."""
        self._config = config
        self._routes = routes
        self._hub = hub
        self._secret = secret
        self._log = log
        self._on_fault = on_fault
        self.draining = False
        self.active = 0
        """Requests being served."""
        self.idle = asyncio.Event()
        """Set while no request is being served."""
        self.idle.set()

    async def handle(self, raw: Incoming) -> Sent:
        """Serve one request to its end."""
        job = Job(raw.method, Reply(raw, self._config.timeouts.client))
        self.active += 1
        self.idle.clear()
        try:
            await self._serve(job, raw)
        except RefusedError as error:
            job.reply.keep_alive = job.reply.keep_alive and not error.close
            self._refuse(job, error.fault)
        except (ClientGoneError, ConnectionError):
            job.trace.outcome = Outcome.CANCELLED
            job.reply.cut()
        except asyncio.CancelledError:
            end = job.live.recording.end if job.live is not None and job.taken else None
            job.trace.outcome = end.outcome if end is not None else Outcome.CANCELLED
            raise
        except Exception:  # reason: it is logged as ours by the server; here it must not look like success
            job.trace.outcome, job.trace.error = Outcome.REFUSED, "internal"
            if job.reply.started:
                job.reply.cut()
            raise
        finally:
            self.active -= 1
            if not self.active:
                self.idle.set()
            self._account(job)
        return Sent(keep_alive=job.reply.keep_alive)

    def refuse(self, raw: Incoming, error: RefusedError) -> Sent:
        """Answer a request that could not be read."""
        job = Job(raw.method, Reply(raw, self._config.timeouts.client))
        job.reply.keep_alive = False
        self._refuse(job, error.fault)
        self._account(job)
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
        self._log(record(trace, _heard(None, len(body)), time.perf_counter()))

    async def _serve(self, job: "Job", raw: Incoming) -> None:
        config, trace, reply = self._config, job.trace, job.reply
        request = intake.read_head(raw)
        # Any other form of target may hold a credential, and is refused anyway.
        trace.path = request.path[:1024] if request.path.startswith("/") else ""
        if self.draining:
            reply.keep_alive = False
        job.dialect = dialect = recognise(request.method, request.path)
        trace.trace_id = trace_id(request.fields.get(b"traceparent"))
        trace.tenant = tenant(self._secret, request)
        trace.feature = _name(request.fields.get(b"slipstream-feature"))
        intake.check(request, config.limits.headers)
        if b"upgrade" in request.fields:
            # Ignored, but aiohttp's parser loses what is pipelined behind such a request.
            reply.keep_alive = False
        if request.path.startswith(RESERVED):
            self._own_path(job, request)
            return
        self._admit()
        route = self._routes.match(request)
        if route is None:
            detail = f"{trace.path[:200]}: is /v1 missing in the base URL? Else configure --upstream"
            raise RefusedError("no_upstream", detail, close=False)
        trace.upstream = route.name
        if dialect is not None:
            trace.provider, trace.operation = (
                provider(dialect, route.origin),
                dialect.operation,
            )
        keep = config.limits.body if dialect is not None else 0
        body = await receive(raw, request, keep=keep, timeout=config.timeouts.client)
        trace.waited = body.waited
        intent = intake.intent(dialect, request, body)
        trace.model, trace.stream = intent.model and intent.model[:_NAME], intent.stream
        early = 0.0
        if dialect is not None and intent.stream and dialect.framing_of(request.query) in EARLY_TYPE:
            early = config.keepalive.early
        call = intake.call(request, route, body, identity=early > 0)
        answer = Answer(request, dialect, intent)
        job.live, reader = self._hub.start(call, answer, retain=dialect is not None)
        try:
            await Render(reply, trace, job.live, reader, dialect, config.keepalive.interval).run(early)
        finally:
            job.taken = reader.offset == job.live.recording.size and not reply.behind
            self._hub.leave(job.live, reader)

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

    def _own_path(self, job: "Job", request: Request) -> None:
        if request.path != RESERVED + "healthz" or request.method not in (
            "GET",
            "HEAD",
        ):
            raise RefusedError("not_found", "this version has nothing at this path", close=False)
        code, phrase, state = (
            (503, b"Service Unavailable", b"draining") if self.draining else (200, b"OK", b"ok")
        )
        body = b'{"status":"%b"}\n' % state
        fields = [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
        ]
        job.reply.start(code, phrase, fields, sized=True, body=body)
        job.logged = True  # health checks would drown the rest

    def _refuse(self, job: "Job", fault: Fault) -> None:
        trace, reply = job.trace, job.reply
        trace.error, trace.outcome = fault.kind, outcome_of(fault)
        try:
            if reply.started:
                reply.cut()
            else:
                trace.status = own_error(reply, job.dialect, fault)
                trace.head_at = time.perf_counter()
        except ClientGoneError:
            trace.outcome = Outcome.CANCELLED

    def _account(self, job: "Job") -> None:
        """The latency line. The client has its last byte: now there is time to read a copy."""
        if job.logged:
            return
        job.logged = True
        now = time.perf_counter()
        trace, live = job.trace, job.live
        try:
            if live is not None:
                trace.timings = live.timings
                if live.answer.dialect is not None and not live.answer.streaming:
                    live.answer.read_whole(live.recording.whole() or b"")
                if live.answer.facts.error and trace.status == 200 and trace.outcome is Outcome.COMPLETE:
                    trace.outcome = Outcome.UPSTREAM_ERROR
            self._log(record(trace, _heard(live, job.reply.bytes), now))
        except Exception as error:  # noqa: BLE001 - reason: the answer is out; its line must not disturb it
            self._on_fault(error)


class Job:
    """What belongs to one request while it is served."""

    __slots__ = ("dialect", "live", "logged", "reply", "taken", "trace")

    def __init__(self, method: str, reply: Reply) -> None:
        self.reply = reply
        self.trace = Trace.begin(method)
        self.dialect: Dialect | None = None
        self.live: Live | None = None
        self.taken = False
        """The client has been sent all that there was of the answer."""
        self.logged = False


def _heard(live: Live | None, sent: int) -> Heard:
    if live is None:
        return Heard(bytes=sent)
    answer = live.answer
    facts = answer.facts
    return Heard(
        response_model=facts.model and facts.model[:_NAME],
        input_tokens=facts.input_tokens,
        output_tokens=facts.output_tokens,
        cached_input_tokens=facts.cached_input_tokens,
        reasoning_tokens=facts.reasoning_tokens,
        events=answer.events,
        deltas=answer.deltas,
        bytes=sent,
        first_at=answer.first_at,
        first_kind=answer.first_kind,
        last_at=answer.last_at,
        gaps=answer.gaps,
    )


def _name(value: bytes | None) -> str | None:
    return value.decode("ascii", "replace")[:_NAME] if value else None
