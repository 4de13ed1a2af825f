"""The running sidecar: listen, serve, drain, stop."""

import asyncio
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import orjson
from structlog.typing import FilteringBoundLogger

from sidecar.cache.exact import ExactCache
from sidecar.config import Config
from sidecar.core.errors import RefusedError
from sidecar.core.types import Fault
from sidecar.engine.answers import Answers
from sidecar.engine.hub import Hub
from sidecar.engine.jobdisk import JobDisk
from sidecar.engine.jobs import Jobs
from sidecar.engine.jobstate import status_of
from sidecar.engine.shelf import Shelf
from sidecar.stores.base import AnswerStore
from sidecar.stores.jobs import JobRecord, JobStore, StoreError
from sidecar.web.again import Again
from sidecar.web.asks import Asks
from sidecar.web.calls import Calls
from sidecar.web.client import Client
from sidecar.web.follow import Follow
from sidecar.web.own import Own
from sidecar.web.proxy import Log, Proxy
from sidecar.web.routes import Routes
from sidecar.web.semantics import Parts, Semantics
from sidecar.web.server import Server
from sidecar.web.submit import Submit, prepared
from sidecar.web.webhooks import Webhooks, allowed, target

_LAST_WORDS = 2.0
"""Seconds for the error frames of stragglers to leave."""
_OPENING = 2.0
"""Seconds that serving waits for the stored answers; checking many takes longer, and goes on meanwhile."""
_SPARE = 64
"""Descriptors for everything that is not a connection: log, data folder, libraries."""


class Service:
    """One process's sidecar. Use as an async context manager, or `start` and `stop`."""

    def __init__(
        self,
        config: Config,
        secret: bytes,
        log: FilteringBoundLogger,
        lines: Log,
        tls: ssl.SSLContext | None = None,
        *,
        store: JobStore | None = None,
        answers: Callable[[], AnswerStore | None] | None = None,
        note: Callable[[Mapping[str, int]], None] | None = None,
        webhook_key: bytes = b"",
        semantic: Parts | None = None,
    ) -> None:
        """`lines` takes the latency lines, `log` everything else. `tls` is for calls to upstreams; the
        system's trust store when left out. `store` is where jobs are kept; without one there are none.
        `answers` opens the store of answers, in a thread; without one they are in memory only. `note` writes
        down what the cache has counted; see `ExactCache`. `semantic` is what answers to other questions are
        found with, where that is configured.

        Raises ConfigError.
        """
        self._config = config
        self._log = log
        self._client = Client(config.timeouts, config.limits, tls)
        self._hub = Hub(self._client, self._on_fault, Shelf(config.resume.keep, config.resume.memory))
        origins = allowed(config.jobs.webhooks)
        self._hooks = Webhooks(self._client, webhook_key)
        self._origins = origins
        self._cache = ExactCache(config.cache.memory, self._cache_failing, self._on_fault, note=note)
        self._opener = answers if config.cache.mode != "off" else None
        self._opening: asyncio.Task[None] | None = None
        self._semantics: Semantics | None = None
        if semantic is not None and config.cache.mode in ("semantic", "shadow"):
            self._semantics = Semantics(config, semantic, self._cache, secret, log, self._on_fault)
        found, paced = self._semantics, config.cache.replay == "paced"
        near = (found.cache, found.paraphrases) if found is not None else (None, None)
        kept = Answers(self._cache, self._hub, *near, fresh_ids=config.cache.fresh_ids, paced=paced)
        follow = Follow(config, self._hub, secret)
        self._hub.keep = kept.keep
        routes = Routes(config)
        asks = Asks(config, routes, secret, kept.count, kept.generation)
        calls = Calls(config, asks, self._hub, follow, kept)
        self._jobs = Jobs(
            self._hub,
            JobDisk(store),
            lambda record, order: prepared(asks, record, order),
            self._job_ended,
            self._tell,
            self._on_fault,
            keep=config.jobs.keep,
            concurrency=config.jobs.concurrency,
            queue=config.jobs.queue,
        )
        own = Own(secret, follow, self._jobs)
        submit = Submit(config, secret, asks, follow, self._jobs, origins)
        again = Again(kept, secret, routes.headers, lines, self._on_fault)
        self._proxy = Proxy(config, secret, calls, own, submit, again, lines, self._on_fault)
        self._listener: asyncio.Server | None = None
        self._server: Server | None = None
        self.url = ""
        """Where it listens; known once started."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop(0.0)

    async def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        config = self._config
        self._server = Server(
            self._proxy.handle,
            refuse=self._proxy.refuse,
            reject=self._proxy.reject,
            again=self._proxy.again,
            on_fault=self._on_fault,
            timeouts=config.timeouts,
            limits=config.limits,
            most=min(config.limits.connections, _connections_possible()),
        )
        self._listener = await asyncio.get_running_loop().create_server(
            self._server, config.server.host, config.server.port, backlog=1024, start_serving=False
        )
        if self._opener is not None:
            self._opening = asyncio.create_task(self._open_answers(self._opener))
            end = time.monotonic() + _OPENING
            await asyncio.wait({self._opening}, timeout=_OPENING)
            if self._semantics is not None:
                await self._semantics.started(end - time.monotonic())
        elif self._semantics is not None:
            self._semantics.without("it needs a data folder that can be used; see --data-dir")
        try:
            await self._jobs.start()  # what an earlier process left is taken up before anything new
        except StoreError as error:
            self._log.warning("no_jobs", reason=str(error))
        await self._listener.start_serving()
        address = self._listener.sockets[0].getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"http://{host}:{address[1]}"

    async def stop(self, grace: float) -> bool:
        """Drain for at most `grace` seconds, then end what is left with an error the client can see.

        While it drains the port stays open, so that health checks learn of it; new requests get 503.
        Returns whether everything had ended by itself.
        """
        self._proxy.draining = True
        self._jobs.drain()
        if self._semantics is not None:
            self._semantics.drain()
        self._hub.drain()
        begun = time.perf_counter()
        clean = await self._settled(grace)
        if not clean:
            fault = Fault("draining", "the sidecar was stopped before the answer was complete")
            left = len(self._hub)
            self._hub.stop(fault)
            self._log.warning(
                "stopped_unfinished",
                requests=left,
                after_s=round(time.perf_counter() - begun, 3),
            )
            await self._settled(_LAST_WORDS)
        await self._jobs.close()
        if self._opening is not None:
            await asyncio.wait({self._opening}, timeout=_LAST_WORDS)
        if self._semantics is not None:
            await self._semantics.close()
        await self._cache.close()
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            await self._server.shutdown(0.1)
        if self._listener is not None:
            await self._listener.wait_closed()
        self._hub.close()
        self._client.close()
        return clean

    async def _settled(self, timeout: float) -> bool:  # noqa: ASYNC109 - a deadline is the point
        try:
            async with asyncio.timeout(timeout):
                await self._proxy.idle.wait()
                await self._hub.idle.wait()
        except TimeoutError:
            return False
        return True

    async def _open_answers(self, opener: Callable[[], AnswerStore | None]) -> None:
        try:
            store = await self._cache.open(opener)
        except (OSError, StoreError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._in_memory_only(reason)
            return
        except Exception as error:  # noqa: BLE001 - reason: nobody waits for this task; the fault is ours
            self._on_fault(error)
            self._in_memory_only(type(error).__name__)
            return
        aside = getattr(store, "set_aside", None)
        if aside is not None:
            reason = "it was damaged, or of another version; an empty one takes its place"
            self._cache.counts["store_set_aside"] += 1
            self._log.warning("cache_set_aside", folder=str(aside), reason=reason)
        if self._semantics is not None:
            self._semantics.start()

    def _in_memory_only(self, reason: str) -> None:
        self._log.warning("cache_in_memory_only", reason=reason)
        if self._semantics is not None:
            self._semantics.without("it needs stored answers on disk; see --data-dir")

    def _cache_failing(self, reason: str | None) -> None:
        if reason is not None:
            self._log.warning("cache_failing", reason=reason, effect="answers are not stored, or not found")
        else:
            self._log.info("cache_recovered")

    def _job_ended(self, record: JobRecord) -> None:
        details, error = record.details, record.error
        self._log.info(
            "job",
            job_id=record.id,
            status=record.status,
            tenant=record.labels.get("tenant"),
            path=record.labels.get("path"),
            model=record.labels.get("model"),
            queued_ms=round((record.started - record.created) * 1000, 3) if record.started else None,
            total_ms=round((record.ended - record.created) * 1000, 3) if record.ended else None,
            events=details.get("events"),
            input_tokens=details.get("input_tokens"),
            output_tokens=details.get("output_tokens"),
            error=error.kind if error is not None else None,
        )

    async def _tell(self, record: JobRecord, jobs: Jobs) -> None:
        """POST a job's end to the URL its client named, as long as configuration allows it."""
        tries = record.webhook_attempts

        async def on_attempt(number: int, delivered: bool) -> None:  # noqa: FBT001 - the deliverer's
            nonlocal tries
            tries = number
            await jobs.webhook_result(record, "delivered" if delivered else "pending", number)

        delivered = False
        try:
            where = target(record.webhook or "", self._origins)
            body = orjson.dumps({**status_of(record), "webhook": None})
            delivered = await self._hooks.deliver(
                where, record.id, body, attempts=record.webhook_attempts, on_attempt=on_attempt
            )
        except RefusedError:
            pass  # the configuration has changed: it is not allowed any more
        if not delivered:
            await jobs.webhook_result(record, "failed", tries)
            self._log.warning("webhook_failed", job_id=record.id, attempts=tries)

    def _on_fault(self, error: BaseException) -> None:
        # The type and place, not the message: it might quote a request.
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else None
        self._log.error("fault", kind=type(error).__name__, place=place)


def _connections_possible() -> int:
    """How many clients can be served when each may need a second descriptor for its upstream.

    The soft limit is raised to the hard one first: it is low for programs that use select().
    """
    if sys.platform == "win32":
        return 1 << 30
    import resource  # noqa: PLC0415 - exists on POSIX only

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 1 << 30 if soft == resource.RLIM_INFINITY else max((soft - _SPARE) // 2, 1)
