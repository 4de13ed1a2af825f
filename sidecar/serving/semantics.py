"""Bringing up the semantic cache: the model, the index, and what they need, while requests are served.

Until all of it is there, and wherever some of it cannot be had, answers are found by identical requests only.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from structlog.typing import FilteringBoundLogger

from sidecar.cache.embed.base import EmbedError
from sidecar.cache.exact import ExactCache
from sidecar.cache.records import Records
from sidecar.cache.semantic import SemanticCache
from sidecar.config import Config
from sidecar.engine.comparisons import Comparisons, Terms
from sidecar.engine.paraphrases import Paraphrases
from sidecar.stores.base import StoreError

if TYPE_CHECKING:  # it needs libraries that are of no use without it
    from sidecar.cache.embed.base import Embedder
    from sidecar.cache.matcher import Matcher

_LAST_WORDS = 2.0
"""Seconds that closing waits for what is being brought up."""
_EFFECT = "only identical requests are answered from the cache"


class Parts(msgspec.Struct, frozen=True):
    """What it is made of."""

    load: Callable[[], "Embedder"]
    """Blocks; raises EmbedError."""
    prepare: Callable[[], Awaitable[bool]] | None = None
    """Gets what is missing for `load`; returns whether it is there then. None where nothing is missing."""
    records: Path | None = None
    """Where it is written down what was compared with real answers."""


class Semantics:
    """The semantic cache of one process: what requests use of it, and how it starts and ends."""

    def __init__(
        self,
        config: Config,
        parts: Parts,
        cache: ExactCache,
        secret: bytes,
        log: FilteringBoundLogger,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        semantic = config.semantic
        self._parts = parts
        self._cache = cache
        self._secret = secret
        self._skip = frozenset(semantic.skip_guards)
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self._preparing = False
        self.missing: str | None = "it waits for the store of answers"
        """Why it is not there; None once it is."""
        self._on_fault = on_fault
        self.cache = SemanticCache(cache.counts, cache.number, self._failing, on_fault)
        records = None
        if parts.records is not None:
            records = Records(parts.records, self._unrecorded)
        terms = Terms(agree=semantic.agree, bound=semantic.false_hits, texts=semantic.record_texts)
        self.paraphrases = Paraphrases(
            self.cache,
            cache,
            Comparisons(self.cache, cache, terms, records, log, on_fault),
            serves=config.cache.mode == "semantic",
            deadline=semantic.deadline,
            verify=semantic.verify,
        )

    def start(self) -> None:
        """Begin to bring it up, unless it is about to end. For when the store is open."""
        if self.cache.closing:
            return
        self.missing = "the model and the stored questions are being loaded"
        self._task = asyncio.get_running_loop().create_task(self._open())

    async def started(self, patience: float) -> None:
        """Wait until it is there, but not for longer than so many seconds, and not for a download."""
        if self._task is not None and self._parts.prepare is None:
            await asyncio.wait({self._task}, timeout=max(patience, 0.0))

    async def _open(self) -> None:
        """Never raises."""
        begun = time.perf_counter()
        try:
            if self._parts.prepare is not None:
                self._preparing, self.missing = True, "the model is being fetched"
                there = await self._parts.prepare()
                self._preparing = False
                if not there:
                    self.without("there is no model; see `slipstream model pull`")
                    return
            questions = await self.cache.open(self._make)
        except (EmbedError, StoreError, OSError, ImportError) as error:
            self.without(str(error) or type(error).__name__)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - reason: nobody waits for this task; the fault is ours
            self._on_fault(error)
            self.without(type(error).__name__)
        else:
            if questions is None:
                return
            self.missing = None
            took = round((time.perf_counter() - begun) * 1000)
            self._log.info("semantic_ready", questions=questions, took_ms=took)

    def without(self, reason: str) -> None:
        """It is not there, and will not be."""
        self.missing = reason
        self._log.warning("semantic_off", reason=reason, effect=_EFFECT)

    def _make(self) -> "Matcher":
        """In the thread."""
        from sidecar.cache.index import Index  # noqa: PLC0415 - reason: large, and only of use here
        from sidecar.cache.matcher import Matcher  # noqa: PLC0415 - likewise

        log = self._cache.changes()
        if log is None:
            raise StoreError("it needs a data folder that can be used; see --data-dir")
        try:
            return Matcher(self._parts.load(), Index(), log, self._secret, self._skip)
        except BaseException:
            log.close()
            raise

    def drain(self) -> None:
        """Begin nothing new that nobody waits for."""
        self.paraphrases.drain()
        if self._preparing and self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Be done."""
        self.cache.closing = True
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_LAST_WORDS)
            self._task.cancel()  # what is being made in the thread sees to itself
        await self.paraphrases.close()

    def _failing(self, reason: str | None) -> None:
        if reason is not None:
            self._log.warning("semantic_failing", reason=reason, effect=_EFFECT)
        else:
            self._log.info("semantic_recovered")

    def _unrecorded(self, error: BaseException) -> None:
        self._cache.counts["record_failed"] += 1
        if not isinstance(error, OSError):
            self._on_fault(error)
