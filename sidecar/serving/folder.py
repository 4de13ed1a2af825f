"""What is kept in the data folder, opened: the secret, jobs, answers, and what questions are compared with.

Whatever cannot be had is said in the log, and the rest works without it.
"""

import os
import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from sidecar.cache import embed, records
from sidecar.cache.embed import background
from sidecar.config import Config
from sidecar.core.values import ConfigError
from sidecar.serving.assembly import Stores
from sidecar.serving.semantics import Parts
from sidecar.stores import counts
from sidecar.stores.disk import DiskStore
from sidecar.stores.jobs import FolderInUseError, JobStore, StoreError
from sidecar.stores.secret import load_or_create, webhook_key

ANSWERS = "answers"
"""The stored answers' folder, in the data folder."""


def data_dir(config: Config, environment: Mapping[str, str] = os.environ) -> Path:
    """Where things are kept: as configured, else systemd's state directory, else the XDG cache."""
    if config.server.data_dir:
        return Path(config.server.data_dir)
    state = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if state:
        return Path(state)
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "slipstream"


def read_secret(folder: Path, log: FilteringBoundLogger, *, named: bool) -> bytes:
    """The secret behind ids and keys. Without a usable folder it lives as long as the process; but that of a
    folder that was `named` must be there. Raises ConfigError."""
    try:
        return load_or_create(folder)
    except OSError as error:
        if named:
            raise ConfigError(
                f"server.data_dir = {str(folder)!r}: cannot be used: {error.strerror}"
            ) from None
        log.warning(
            "no_data_dir",
            folder=str(folder),
            reason=error.strerror,
            effect="no background jobs, and tenant ids change at restart",
        )
        return secrets.token_bytes(32)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def open_stores(
    config: Config,
    folder: Path,
    log: FilteringBoundLogger,
    *,
    jobs: bool = True,
    models: Path | None = None,
) -> Stores:
    """What a process keeps things in. Without `jobs` it leaves those alone that are on disk. Raises
    ConfigError."""
    store, no_jobs = _open_jobs(folder, log) if jobs else (None, None)
    key = b""
    if config.jobs.webhooks and store is not None:
        try:
            key = webhook_key(folder)
        except (OSError, ValueError) as error:
            raise ConfigError(str(error)) from None
    there = folder.is_dir()  # else it has been said
    opener = partial(DiskStore.open, folder / ANSWERS, config.cache.size, entries=config.semantic.entries)
    return Stores(
        jobs=store,
        no_jobs=no_jobs,
        answers=opener if there else None,
        note=partial(counts.add, folder / counts.NAME) if there else None,
        webhook_key=key,
        semantic=_semantic_parts(config, folder, models or folder, log),
    )


def _open_jobs(folder: Path, log: FilteringBoundLogger) -> tuple[JobStore | None, str | None]:
    """The store, or why there is none."""
    try:
        store = JobStore.open(folder)
    except FolderInUseError as error:
        log.warning("no_jobs", folder=str(folder), reason=str(error))
        return None, str(error)
    except (OSError, StoreError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if folder.is_dir():  # else it has been said
            log.warning("no_jobs", folder=str(folder), reason=reason)
        return None, f"{folder}: {reason}"
    if store.set_aside is not None:
        log.warning(
            "jobs_set_aside", file=str(store.set_aside), reason="it was damaged, or of a newer version"
        )
    return store, None


def _semantic_parts(config: Config, folder: Path, models: Path, log: FilteringBoundLogger) -> Parts | None:
    """What answers to the same question in other words are found with; None where that is not asked for."""
    if config.cache.mode not in ("semantic", "shadow"):
        return None
    semantic = config.semantic

    async def prepare() -> bool:
        log.info("model_missing", effect="identical requests only, until it is there", folder=str(models))
        return await background.pull(models, semantic, lambda line: log.info("model", said=line))

    return Parts(
        lambda: embed.load(semantic, models),
        None if embed.ready(semantic, models) else prepare,
        folder / records.NAME,
    )
