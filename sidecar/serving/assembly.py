"""What serves requests in one process, but for the server that they come by: put together, started,
drained."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from structlog.typing import FilteringBoundLogger

from sidecar.cache.exact import ExactCache
from sidecar.config import Config
from sidecar.core.types import Fault
from sidecar.engine.answers import Answers
from sidecar.engine.hub import Hub
from sidecar.engine.jobdisk import JobDisk
from sidecar.engine.jobs import Jobs
from sidecar.engine.shelf import Shelf
from sidecar.serving.asks import Asks
from sidecar.serving.backend import Backend, Upstreams
from sidecar.serving.board import Board
from sidecar.serving.called import called
from sidecar.serving.calls import Calls
from sidecar.serving.clients import MakeShares
from sidecar.serving.export import exporter
from sidecar.serving.follow import Follow
from sidecar.serving.front import Front, Line
from sidecar.serving.inbound import Inbound
from sidecar.serving.jobline import job_line
from sidecar.serving.own import Own
from sidecar.serving.probe import Probe
from sidecar.serving.routes import Routes
from sidecar.serving.semantics import Parts, Semantics
from sidecar.serving.siblings import JOBS, Alone, Handing, Siblings
from sidecar.serving.submit import Submit, prepared
from sidecar.serving.telling import Telling
from sidecar.serving.upgrade import Upgrades
from sidecar.serving.webhooks import Webhooks, allowed
from sidecar.stores.base import AnswerStore
from sidecar.stores.jobs import JobRecord, JobStore, StoreError
from sidecar.telemetry.log import place_of
from sidecar.telemetry.meter import Meter
from sidecar.telemetry.pulse import Pulse
from sidecar.upstream.client import Client

_LAST_WORDS = 2.0
"""Seconds for the error frames of stragglers to leave."""
_PURGE = 5.0
"""Seconds for a purge that is under way; what it has not removed then is still there."""
_OPENING = 2.0
"""Seconds that serving waits for the stored answers; checking many takes longer, and goes on meanwhile."""


class Stores(msgspec.Struct, frozen=True):
    """What an assembly keeps things in, and is made with."""

    jobs: JobStore | None = None
    """Without one there are no background jobs."""
    answers: Callable[[], AnswerStore | None] | None = None
    """Opens the store of answers, in a thread; without one they are in memory only."""
    note: Callable[[Mapping[str, int]], None] | None = None
    """Writes down what the cache has counted; see `ExactCache`."""
    webhook_key: bytes = b""
    semantic: Parts | None = None
    """What answers to other questions are found with, where that is configured."""
    no_jobs: str | None = None
    """Why there are no jobs."""


class Assembly:
    """One process's engine and all that it needs. `start` and `drain`, then `close`."""

    def __init__(
        self,
        config: Config,
        secret: bytes,
        log: FilteringBoundLogger,
        lines: Callable[[Line], None],
        stores: Stores,
        *,
        dropped: Callable[[], int] = lambda: 0,
        tls: ssl.SSLContext | None = None,
        backend: Callable[[Hub], Backend] | None = None,
        siblings: Siblings | None = None,
        shares: MakeShares | None = None,
    ) -> None:
        """`lines` takes the latency lines, `log` everything else. `dropped`: how many of them were lost.
        `tls` is for calls to upstreams; the system's trust store when left out. `backend`: makes the
        answers; the configured upstreams when left out. `siblings`: the other worker processes; none when
        left out. `shares`: what clients have used of their limits in all of them.

        Raises ConfigError.
        """
        self._config = config
        self._log = log
        self.client = Client(config.timeouts, config.limits, tls)
        self.hub = Hub(self.client, self.on_fault, Shelf(config.resume.keep, config.resume.memory))
        origins = allowed(config.jobs.webhooks)
        self._opener = stores.answers if config.cache.mode != "off" else None
        opening = self._opener is not None
        self.cache = ExactCache(
            config.cache.memory, self._cache_failing, self.on_fault, note=stores.note, opening=opening
        )
        self.settle: Callable[[float], Awaitable[None]] | None = None
        """Waits for what others do with the stored answers, before those are closed."""
        self._opening: asyncio.Task[None] | None = None
        self.semantics: Semantics | None = None
        if stores.semantic is not None and config.cache.mode in ("semantic", "shadow"):
            self.semantics = Semantics(config, stores.semantic, self.cache, secret, log, self.on_fault)
        found, paced = self.semantics, config.cache.replay == "paced"
        near = (found.cache, found.paraphrases) if found is not None else (None, None)
        self.answers = Answers(self.cache, self.hub, *near, fresh_ids=config.cache.fresh_ids, paced=paced)
        siblings = siblings or Alone()
        follow = Follow(config, self.hub, secret, siblings.number)
        self.hub.keep, self.hub.retract = self.answers.keep, self.answers.retract
        self.inbound: Inbound | None = None
        if backend is not None:
            self.backend = backend(self.hub)
        else:
            self.inbound = Inbound(config, secret, shares)
            self.backend = self.inbound.upstreams(Routes(config), self.hub.start)
        asks = Asks(config, self.backend, secret, self.answers.count, self.answers.generation)
        disk = JobDisk(stores.jobs)
        self.jobs = Jobs(
            self.hub,
            disk,
            lambda record, order: prepared(asks, record, order),
            self._job_ended,
            Telling(Webhooks(self.client, stores.webhook_key), origins, log).tell,
            self.on_fault,
            keep=config.jobs.keep,
            concurrency=config.jobs.concurrency,
            queue=config.jobs.queue,
        )
        self.upgrades: Upgrades | None = None
        if isinstance(self.backend, Upstreams):
            authorized = self.backend.authorized
            self.upgrades = Upgrades(config, asks, follow, self.hub, self.client, authorized)
        probe = Probe(config)
        own = Own(secret, follow, self.jobs, probe)
        submit = Submit(config, secret, asks, follow, self.jobs, origins)
        self.meter = Meter(config, lines, log, self.on_fault, self.backend.routes.places)
        self.front = Front(
            config,
            self.backend,
            Calls(config, asks, self.hub, follow, self.answers),
            own,
            submit,
            Handing(siblings, secret),
            self.upgrades,
            self.inbound.clients if self.inbound is not None else None,
            self.meter.take,
            self.on_fault,
        )
        reloading = (self.backend.routes, asks, follow, probe, self.meter, self.upgrades)
        self._reload = [each.reload for each in reloading if each is not None]
        self.board = Board(
            config, self.meter, self.front, self.hub, self.jobs, self.cache, self.semantics, dropped
        )
        if not disk.there and siblings.number == JOBS:
            self.board.no_jobs = stores.no_jobs or "background jobs need a data folder; see --data-dir"
        self.hub.ended = lambda live: self.meter.take_call(lambda: called(live, time.perf_counter()))
        if self.upgrades is not None:
            self.upgrades.ended = lambda call: self.meter.take_call(lambda: call)
        self._pulse = Pulse(self.board.late, self.meter.watch)
        self._otel = exporter(config.otel, self.backend.routes.places, self.meter.metrics.snapshot, log)
        self.meter.span = self._otel.span if self._otel is not None else None

    def prepare(self, config: Config) -> Callable[[], None]:
        """Read what has to be read for another configuration, in any thread. What is returned has requests
        that come then go by it, and does not fail. Raises ConfigError."""
        inbound = self.inbound.prepare(config) if self.inbound is not None else None

        def take() -> None:
            if inbound is not None:
                inbound()
            for each in self._reload:
                each(config)

        return take

    async def start(self) -> None:
        """Open what is on disk; requests may be served when this returns."""
        if self._opener is not None:
            self._opening = asyncio.create_task(self._open_answers(self._opener))
            end = time.monotonic() + _OPENING
            await asyncio.wait({self._opening}, timeout=_OPENING)
            if self.semantics is not None:
                await self.semantics.started(end - time.monotonic())
        elif self._config.cache.mode != "off":
            self.board.memory_only = "answers are in memory only: no data folder can be used; see --data-dir"
            if self.semantics is not None:
                self.semantics.without("it needs a data folder that can be used; see --data-dir")
        try:
            await self.jobs.start()  # what an earlier process left is taken up before anything new
        except StoreError as error:
            self._log.warning("no_jobs", reason=str(error))
            self.board.no_jobs = str(error)
        if self._config.metrics.enabled:
            self._pulse.start()
        self.board.started = True

    async def drain(self, grace: float) -> bool:
        """Drain for at most `grace` seconds, then end what is left with an error the client can see.

        New requests get 503. Returns whether everything had ended by itself. What is on disk is closed then.
        """
        self.front.drain()
        self._pulse.stop()
        self.jobs.drain()
        if self.semantics is not None:
            self.semantics.drain()
        self.hub.drain()
        begun = time.perf_counter()
        clean = await self._settled(grace)
        if not clean:
            fault = Fault("draining", "the sidecar was stopped before the answer was complete")
            left = len(self.hub) + len(self.upgrades or ())
            self.hub.stop(fault)
            if self.upgrades is not None:
                self.upgrades.stop()
            self._log.warning(
                "stopped_unfinished",
                requests=left,
                after_s=round(time.perf_counter() - begun, 3),
            )
            await self._settled(_LAST_WORDS)
        await self.jobs.close()
        if self._opening is not None:
            await asyncio.wait({self._opening}, timeout=_LAST_WORDS)
        if self.semantics is not None:
            await self.semantics.close()
        if self.settle is not None:
            await self.settle(_PURGE)
        await self.cache.close()
        if self._otel is not None:
            self._otel.close()
        return clean

    def close(self) -> None:
        """Let go of what is left: kept streams, idle connections."""
        self.hub.close()
        self.client.close()
        if self.inbound is not None:
            self.inbound.close()

    async def _settled(self, timeout: float) -> bool:  # noqa: ASYNC109 - a deadline is the point
        try:
            async with asyncio.timeout(timeout):
                await self.front.idle.wait()
                await self.hub.idle.wait()
        except TimeoutError:
            return False
        return True

    async def _open_answers(self, opener: Callable[[], AnswerStore | None]) -> None:
        try:
            store = await self.cache.open(opener)
        except (OSError, StoreError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._in_memory_only(reason)
            return
        except Exception as error:  # noqa: BLE001 - reason: nobody waits for this task; the fault is ours
            self.on_fault(error)
            self._in_memory_only(type(error).__name__)
            return
        aside = getattr(store, "set_aside", None)
        if aside is not None:
            reason = "it was damaged, or of another version; an empty one takes its place"
            self.cache.counts["store_set_aside"] += 1
            self._log.warning("cache_set_aside", folder=str(aside), reason=reason)
        if self.semantics is not None:
            self.semantics.start()

    def _in_memory_only(self, reason: str) -> None:
        self._log.warning("cache_in_memory_only", reason=reason)
        self.board.memory_only = reason
        if self.semantics is not None:
            self.semantics.without("it needs stored answers on disk; see --data-dir")

    def _cache_failing(self, reason: str | None) -> None:
        if reason is not None:
            self._log.warning("cache_failing", reason=reason, effect="answers are not stored, or not found")
        else:
            self._log.info("cache_recovered")

    def _job_ended(self, record: JobRecord) -> None:
        self.backend.unqueued(record.id)
        line = job_line(record)
        self._log.info("job", **line)
        self.meter.take_job(line)

    def on_fault(self, error: BaseException) -> None:
        """Say in the log that we have made a mistake."""
        self.board.faults += 1
        # The type and place, not the message: it might quote a request.
        self._log.error("fault", kind=type(error).__name__, place=place_of(error))
