"""Reading the configuration again while requests are served: what changes at once, and what needs a restart.

A new configuration that is wrong in any place is left alone as a whole: the old one stays as it was.
"""

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

import msgspec
from msgspec.structs import asdict, replace
from structlog.typing import FilteringBoundLogger

from sidecar.checks_inbound import check_files
from sidecar.cli.notify import Notifier
from sidecar.config import SECTIONS, Budget, ClientTable, Config, Section, UpstreamTable
from sidecar.core.values import ConfigError
from sidecar.telemetry.log import Level

LIVE = frozenset(
    {
        "cache.finish",
        "cache.largest",
        "cache.max_temperature",
        "cache.paths",
        "cache.stale_if_error",
        "cache.tools",
        "cache.ttl",
        "disconnect.default",
        "disconnect.paths",
        "keepalive.early",
        "keepalive.interval",
        "log.level",
        "semantic.namespaces",
        "semantic.paths",
        "semantic.threshold",
        "upstreams.cache",
        "upstreams.disconnect",
        "upstreams.threshold",
    }
)
"""What changes while requests are served, for those that come then. So do `[budgets.NAME]`, `[[clients]]` as
long as there are any left, and the certificate where there was one."""
_ENCRYPTION = frozenset({"tls.certificate", "tls.key"})

Table = TypeVar("Table", bound=Section)


class Changes(msgspec.Struct, frozen=True):
    """What another configuration means for a process that runs."""

    config: Config
    """The one it has, with all that can be changed as the new one says."""
    changed: list[str]
    """Keys, with dots, that changed in it."""
    restart: list[str]
    """Those that differ and need a restart."""


def compare(old: Config, new: Config) -> Changes:
    """What changes from one to the other."""
    encrypted = old.tls.certificate is not None and new.tls.certificate is not None
    found = _Differences(LIVE | _ENCRYPTION if encrypted else LIVE)
    made: dict[str, Any] = {
        name: found.table(name, getattr(old, name), getattr(new, name), name) for name in SECTIONS
    }
    made["upstreams"] = found.upstreams(old.upstreams, new.upstreams)
    made["clients"] = found.clients(old.clients, new.clients)
    made["budgets"] = found.budgets(old.budgets, new.budgets)
    return Changes(Config(**made), sorted(found.changed), sorted(found.restart))


class _Differences:
    """Goes through two configurations and writes down where they differ. Each method returns what is to go on
    with."""

    def __init__(self, live: AbstractSet[str]) -> None:
        self._live = live
        self.changed: list[str] = []
        self.restart: list[str] = []

    def table(self, kind: str, old: Table, new: Table, where: str) -> Table:
        """`kind`: what the keys of such a table are called in `LIVE`; `where`: what this one is called."""
        taken = {}
        for field, value in asdict(new).items():
            if value == getattr(old, field):
                continue
            if f"{kind}.{field}" in self._live:
                self.changed.append(f"{where}.{field}")
                taken[field] = value
            else:
                self.restart.append(f"{where}.{field}")
        return replace(old, **taken)

    def upstreams(self, old: list[UpstreamTable], new: list[UpstreamTable]) -> list[UpstreamTable]:
        after = {each.name: each for each in new}
        before = [each.name for each in old]
        one_sided = after.keys() ^ set(before)
        self.restart += [f"upstreams.{name}" for name in one_sided]
        if not one_sided and before != list(after):
            self.restart.append("upstreams")  # of two with the same prefix, the first one wins
        return [
            self.table("upstreams", each, after.get(each.name, each), f"upstreams.{each.name}")
            for each in old
        ]

    def clients(self, old: list[ClientTable], new: list[ClientTable]) -> list[ClientTable]:
        if old and not new:
            self.restart.append("clients")  # else a slip of the pen lets everybody in
            return old
        before, after = ({each.name: each for each in tables} for tables in (old, new))
        names = before.keys() | after.keys()
        self.changed += [f"clients.{name}" for name in names if before.get(name) != after.get(name)]
        return new

    def budgets(self, old: dict[str, Budget], new: dict[str, Budget]) -> dict[str, Budget]:
        none = Budget()
        for name in old.keys() | new.keys():
            before, after = (asdict(budgets.get(name, none)) for budgets in (old, new))
            self.changed += [f"budgets.{name}.{key}" for key in before if before[key] != after[key]]
        return new


class Reload(msgspec.Struct, frozen=True):
    """Where a process gets its configuration anew."""

    read: Callable[[], Config]
    """Blocks; raises ConfigError."""
    level: Level
    """Of its log."""


class Reloads:
    """Those of one process: one after the other, however often they are asked for."""

    def __init__(
        self,
        config: Config,
        prepare: Callable[[Config], Callable[[], None]],
        on_fault: Callable[[BaseException], None],
        log: FilteringBoundLogger,
    ) -> None:
        """`prepare` reads, in a thread, what a configuration names, and changes nothing. It raises
        ConfigError, or returns what makes requests go by the configuration and cannot fail. `on_fault` is
        told of mistakes of our own."""
        self._config = config
        self._prepare = prepare
        self._on_fault = on_fault
        self._log = log
        self._asked = asyncio.Event()
        self.failed: str | None = None
        """Why the latest one was left alone, if it was."""
        self.restart: list[str] = []
        """Keys that need a restart, by the latest one that was taken."""

    @property
    def remark(self) -> str:
        """What there is to say of the configuration, behind a status; empty if it is all in use."""
        if self.failed is not None:
            return f"; the configuration was not reloaded: {self.failed}"
        return f"; to be restarted for {', '.join(self.restart)}" if self.restart else ""

    def ask(self) -> None:
        """There is something to read."""
        self._asked.set()

    async def run(
        self,
        reload: Reload,
        notify: Notifier,
        status: Callable[[], str],
        others: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Do what is asked for, until it is cancelled. `status`: a line for people once it is done. `others`:
        waits for those who have to do it as well."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            notify.reloading()
            await self._once(reload)
            if others is not None:
                await others()
            notify.ready(status())

    async def _once(self, reload: Reload) -> None:
        try:
            changes, take = await asyncio.to_thread(self._prepared, reload.read)
            take()
        except ConfigError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - reason: it goes on by the old one; the fault is ours
            self._on_fault(error)
            self._fail(type(error).__name__)
        else:
            self._config, self.failed, self.restart = changes.config, None, changes.restart
            reload.level.set(changes.config.log.level)
            say = self._log.warning if changes.restart else self._log.info
            say("reloaded", changed=changes.changed, restart=changes.restart)

    def _prepared(self, read: Callable[[], Config]) -> tuple[Changes, Callable[[], None]]:
        """In a thread: files may be on a mount that hangs."""
        new = read()
        check_files(new)  # those, too, that only a restart would make use of
        changes = compare(self._config, new)
        return changes, self._prepare(changes.config)

    def _fail(self, reason: str) -> None:
        self.failed = reason
        self._log.error("reload_failed", reason=reason, effect="the configuration is what it was")
