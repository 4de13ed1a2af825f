"""`Prefer: respond-async`: a request becomes a background job, and its client gets an address for it."""

import asyncio
import time
from collections import Counter

import msgspec

from sidecar.config import Config
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller
from sidecar.core.headers import index
from sidecar.core.ids import mint
from sidecar.core.policy import is_retry
from sidecar.core.types import Request
from sidecar.engine.jobs import Jobs
from sidecar.engine.jobstate import Job, Work, status_of
from sidecar.engine.source import Origin
from sidecar.serving import intake
from sidecar.serving.asks import Asked, Asks
from sidecar.serving.follow import Follow
from sidecar.serving.own import RESERVED, send_json
from sidecar.serving.routes import Route
from sidecar.serving.shell import Arriving, Body
from sidecar.serving.visit import Visit
from sidecar.serving.webhooks import target
from sidecar.stores.jobs import JobRecord, Order


class Submit:
    """Takes jobs in."""

    def __init__(
        self,
        config: Config,
        secret: bytes,
        asks: Asks,
        follow: Follow,
        jobs: Jobs,
        webhooks: frozenset[Origin],
    ) -> None:
        self._limit = config.limits.body
        self._secret = secret
        self._asks = asks
        self._follow = follow
        self._jobs = jobs
        self._webhooks = webhooks
        self._waiting: Counter[str] = Counter()
        """Requests by the job whose id they have not been told yet."""

    async def serve(self, visit: Visit, raw: Arriving, request: Request, caller: Caller, wait: float) -> None:
        """Serve one request. `wait`: seconds its client would rather wait. Raises RefusedError."""
        intake.patience(request.fields.get(b"slipstream-disconnect"))
        hook = request.fields.get(b"slipstream-webhook")
        if hook is not None:
            target(hook.decode("latin-1"), self._webhooks)
        request = _without_preference(request)
        asked = await self._asks.receive(visit, raw, request, whole=True)
        if asked.body.more is not None:
            detail = f"a job's body may have {self._limit} bytes (limits.body)"
            raise RefusedError("body_too_large", detail)
        if asked.wish.only_if_cached:
            raise RefusedError("not_cached", "only-if-cached, and jobs are always made", close=False)
        ask = self._asks.ask(visit, asked, caller)
        if ask.keep is not None and ask.keep.inquiry is not None:
            ask.keep.inquiry.read()  # or it would hold the body for as long as the job waits
        again = self._jobs.repeated(ask, retry=is_retry(request.fields))
        name = again or mint(self._secret, caller.scope, "j")
        self._waiting[name] += 1
        job: Job | None = None
        try:
            if again is not None:
                job = await self._jobs.taken(name)
            else:
                record = _record(visit, asked, name, hook)
                self._asks.queued(asked, name)
                try:
                    job = await self._jobs.submit(record, _order(asked), work(asked), ask)
                except RefusedError:
                    self._asks.unqueued(name)
                    raise
            del asked  # the body is on disk now
            visit.trace.stream_id, visit.trace.cache = name, "off"
            over = bool(wait) and await self._ended(job, wait)
            job.told = job.told or not over
        except asyncio.CancelledError:
            # Nobody can ask for an answer whose id nobody knows.
            if self._waiting[name] == 1 and hook is None and (job is None or not job.told):
                self._jobs.unwanted(name)
            raise
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]
        if over:
            await self._follow.follow(visit, await self._jobs.result(name), request, caller, plain=True)
            return
        record = job.record
        fields = (
            (b"Location", f"{visit.root}{RESERVED}jobs/{record.id}".encode()),
            (b"Preference-Applied", b"respond-async"),
            (b"Slipstream-Stream-Id", record.id.encode()),
        )
        visit.trace.status, visit.trace.feature = 202, visit.trace.feature or "batch"
        visit.trace.head_at = time.perf_counter()
        send_json(visit.reply, 202, b"Accepted", status_of(job.record, job.live, visit.root), *fields)

    async def _ended(self, job: Job, wait: float) -> bool:
        try:
            async with asyncio.timeout(wait):
                await job.done.wait()
        except TimeoutError:
            return False
        return job.record.ended is not None


def work(asked: Asked) -> Work:
    """A request as a job's work."""
    return Work(asked.start, asked.answer(), asked.labels)


def _order(asked: Asked) -> Order:
    request = asked.request
    return Order(request.method, request.target, request.headers, asked.body.kept, request.http10)


def _without_preference(request: Request) -> Request:
    """It is met here: an upstream that meets it too would answer with a job of its own, and the answer is the
    same as without it."""
    headers = tuple([field for field in request.headers if field[0].lower() != b"prefer"])
    return msgspec.structs.replace(request, headers=headers, fields=index(headers))


def prepared(asks: Asks, record: JobRecord, order: Order) -> Work:
    """An order from disk as a job's work. Raises RefusedError, also when today's configuration would send
    it to another place: prompt and credential were meant for the one it was taken for."""
    request = intake.request_of(order.method, order.target, order.headers, http10=order.http10)
    route = asks.route(request, request.path)
    if record.labels.get("origin") != _origin(route):
        detail = "the configuration sends this path elsewhere now than when the job was taken; send it again"
        raise RefusedError("no_upstream", detail, close=False)
    return work(asks.asked(request, route, Body(order.body, None, 0.0), job=record.id))


def _origin(route: Route) -> str:
    return f"{route.origin.scheme}://{route.origin.host}:{route.origin.port}{route.base.decode()}"


def _record(visit: Visit, asked: Asked, name: str, hook: bytes | None) -> JobRecord:
    labels, trace = asked.labels, visit.trace
    return JobRecord(
        id=name,
        status="queued",
        created=time.time(),
        started=None,
        ended=None,
        labels={
            "method": asked.request.method,
            "path": trace.path,
            # The rest of a query may hold a credential.
            "query": "alt=sse" if "alt=sse" in asked.request.query.split("&") else "",
            "origin": _origin(asked.route),
            "upstream": labels.upstream,
            "provider": labels.provider,
            "operation": labels.operation,
            "dialect": asked.dialect.name if asked.dialect is not None else None,
            "model": labels.model,
            "stream": labels.stream,
            "tenant": trace.tenant,
            "feature": trace.feature,
        },
        details={},
        error=None,
        webhook=hook.decode("latin-1") if hook is not None else None,
        webhook_state="pending" if hook is not None else "none",
        webhook_attempts=0,
    )
