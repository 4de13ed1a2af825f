"""`slipstream cache export` and `purge`: answers out of the store, into a file or into nothing."""

import hashlib
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from sidecar.cache import records
from sidecar.cli.cache_line import line_of
from sidecar.cli.cache_progress import progress
from sidecar.cli.cache_store import Place, WorkError, exists, opened
from sidecar.cli.cache_words import answers, entries, plain, span
from sidecar.core.entry import unseal
from sidecar.core.ids import event_id
from sidecar.core.values import ConfigError
from sidecar.stores.base import NAMES, AnswerStore, DamagedEntryError
from sidecar.stores.listing import Census, Filter, aliases, count, items, purge
from sidecar.stores.secret import load_or_create

_UNKNOWN = (
    "{}: no answer is known that was given under this id. Of answers to the same question in other words, the"
    f" last {NAMES:,} ids are remembered (the stream's, and the log's request_id), each as long as the answer"
    " is stored. See `slipstream cache list` and `purge --key`"
)


def installation(secret: bytes) -> str:
    """Tells installations apart: keys that were made under another secret are of no use."""
    return hashlib.blake2b(b"", key=secret, digest_size=8, person=b"export").hexdigest()


# export


def export(where: Place, wanted: Filter, output: Path | None, *, force: bool) -> int:
    """Write answers as JSON lines; returns the exit status. Raises ConfigError, WorkError."""
    if not exists(where):
        return 0
    try:
        with opened(where) as store, _target(output, force=force) as file:
            done, damaged = _write(store, wanted, file, _mark(where))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WorkError(f"{output or 'stdout'}: {error.strerror}") from None
    print(f"{answers(done)} exported", file=sys.stderr)
    if damaged:
        print(f"{answers(damaged)} left out: damaged in the store, and never served", file=sys.stderr)
    return 1 if damaged else 0


def _write(store: AnswerStore, wanted: Filter, file: IO[bytes], mark: str | None) -> tuple[int, int]:
    done = 0
    census = Census()
    also = aliases(store)
    with progress("exporting", count(store), alone=not file.isatty()) as advance:
        for item in items(store, census):
            advance(1)
            if not wanted.takes(item) or (blob := store.get(item.key)) is None:
                continue
            try:
                entry = unseal(item.key, blob)
            except ValueError:
                census.unreadable += 1
                continue
            file.write(line_of(entry, also.get(item.key, []), mark))
            done += 1
    file.flush()
    return done, census.unreadable


def _mark(where: Place) -> str | None:
    """Of this installation; None where nobody can tell."""
    try:
        if (where.folder / "secret").exists():
            return installation(load_or_create(where.folder))
    except (OSError, ValueError):
        pass  # what is stored can be exported all the same
    return None


@contextmanager
def _target(output: Path | None, *, force: bool) -> Iterator[IO[bytes]]:
    """Where it goes. A file has its name only once all of it is written. Raises ConfigError, OSError."""
    if output is None:
        yield sys.stdout.buffer
        return
    found = output.stat() if output.exists() else None
    if found is not None and not stat.S_ISREG(found.st_mode):
        with output.open("wb") as device:  # a pipe or a terminal, say; a folder fails
            yield device
        return
    if found is not None and not force:
        raise ConfigError(f"{output}: exists; choose another name, or overwrite it with --force")
    draft = output.with_name(f"{output.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            yield file
        draft.replace(output)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


# purge


def purge_all(where: Place) -> None:
    """Remove everything, and the records of what was compared. Raises ConfigError, WorkError."""
    for name in (records.NAME, records.OLDER):
        try:
            (where.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise WorkError(f"{where.folder / name}: cannot be removed: {error.strerror}") from None
    if exists(where):
        with opened(where) as store:
            held = count(store)
            store.clear()
        print(f"{answers(held)} purged")


def purge_tenant(where: Place, tenant: str) -> None:
    """Remove what is one tenant's. Raises ConfigError, WorkError."""
    if exists(where):
        with opened(where) as store:
            held = count(store, tenant)
            store.purge(tenant)
        print(f"{answers(held)} purged")


def purge_served(where: Place, name: str) -> None:
    """Remove what was given under that id, and what points at it. Raises ConfigError, WorkError."""
    asked = name.strip().encode(errors="replace")
    found = event_id(asked)
    name = found[0] if found is not None else asked.decode()
    key = None
    if exists(where):
        with opened(where) as store:
            key = store.served_key(name)
            if key is not None:
                words = _words(store, key)
                store.delete([*aliases(store).get(key, ()), key])
    if key is None:
        raise WorkError(_UNKNOWN.format(plain(name)))
    print(f"1 answer purged: {words}")


def _words(store: AnswerStore, key: bytes) -> str:
    """What an answer is, as far as it can be read."""
    with suppress(ValueError, DamagedEntryError):
        blob = store.get(key)
        if blob is not None:
            known = unseal(key, blob).known
            age = span(time.time() - known.stored)
            return f"{plain(known.model)}, {plain(known.path)}, stored {age} ago, key {key.hex()}"
    return f"key {key.hex()}"


def purge_expired(where: Place) -> None:
    """Remove what nobody can get any more. Raises ConfigError, WorkError."""
    if exists(where):
        with opened(where) as store:
            gone = store.expire()
        # The store does not tell answers from what points at them.
        print(f"{entries(gone)} purged, whose time was over")


def purge_some(where: Place, wanted: Filter) -> None:
    """Remove what the filter takes, and what points at it. Raises ConfigError, WorkError."""
    if not exists(where):
        return
    with opened(where) as store:
        gone = purge(store, wanted, partial(progress, "purging"))
    print(f"{answers(gone)} purged")
