"""`slipstream cache import`: JSON lines into the store, each judged by itself, none trusted."""

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import msgspec

from sidecar.cli.cache_export import installation
from sidecar.cli.cache_line import Line, LineError, place_of, stored_line
from sidecar.cli.cache_progress import progress
from sidecar.cli.cache_store import Place, WorkError, opened
from sidecar.cli.cache_warm import Pair, Warmer
from sidecar.cli.cache_words import REASONS
from sidecar.config import Config
from sidecar.core.caching import Terms
from sidecar.core.entry import Entry, Known, point, seal
from sidecar.core.types import Request
from sidecar.core.values import ConfigError
from sidecar.engine.keeping import Kept
from sidecar.serving.routes import Routes
from sidecar.stores.base import AnswerStore
from sidecar.stores.secret import load_or_create

_TOLD = 20
"""Refused lines that are told of one by one."""
_BESIDE = 1 << 20
"""Bytes of a line beside the body: headers, offsets, the question."""
_SKEW = 2.0
"""As in `caching`: an answer from further in the future is never served."""
_BOM = b"\xef\xbb\xbf"
_NOTHING = msgspec.Raw()


class _Either(msgspec.Struct, frozen=True):
    """Enough of a line to see what it is."""

    key: msgspec.Raw = _NOTHING
    request: msgspec.Raw = _NOTHING


def bring_in(
    where: Place, config: Config, source: Path | None, headers: list[tuple[str, str]], *, fresh: bool
) -> int:
    """Import; returns the exit status. `source`: None for stdin. Raises ConfigError, WorkError."""
    with _source(source) as file:
        # Nothing is made before it is known that there is something to read.
        secret = _secret(where)
        with opened(where) as store:
            work = _Import(config, secret, headers, store, fresh=fresh)
            return _run(work, file, source)


def _run(work: "_Import", file: IO[bytes], source: Path | None) -> int:
    try:
        with progress("importing", _size(file)) as advance:
            for number, line, read in _lines(file, work.longest):
                work.line(number, line)
                advance(read)
        work.end()
    except OSError as error:
        raise WorkError(f"{source or 'stdin'}: cannot be read: {error.strerror}") from None
    finally:
        work.summary()
    return 1 if work.refused else 0


def _secret(where: Place) -> bytes:
    try:
        return load_or_create(where.folder)
    except OSError as error:
        raise ConfigError(f"{where.folder}: cannot be used: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


class _Import:
    """One run."""

    def __init__(
        self,
        config: Config,
        secret: bytes,
        headers: list[tuple[str, str]],
        store: AnswerStore,
        *,
        fresh: bool,
    ) -> None:
        self.imported = self.skipped = self.refused = 0
        self._store = store
        self._fresh = fresh
        self._here = installation(secret)
        self._warmer = Warmer(config, secret, headers)
        self._terms = _TermsOf(config)
        rules = [*config.cache.paths.values(), *[table.cache for table in config.upstreams]]
        largest = max([config.cache.largest, *[rule.largest or 0 for rule in rules if rule is not None]])
        # In JSON, text takes twice its room where each of its characters is escaped.
        self.longest = 2 * largest + _BESIDE

    def line(self, number: int, line: bytes | None) -> None:
        """Take one line; None stands for one that is too long. Raises StoreError."""
        try:
            self._take(line)
        except LineError as error:
            self._refuse(number, str(error))
        except msgspec.ValidationError as error:
            self._refuse(number, place_of(error))
        except (msgspec.MsgspecError, UnicodeError):
            self._refuse(number, "not a JSON object on one line")
        except RecursionError:
            self._refuse(number, "the JSON is nested too deeply")

    def _take(self, line: bytes | None) -> None:
        now = time.time()
        if line is None:
            raise LineError(f"longer than {self.longest:,} bytes: its answer would exceed cache.largest")
        if not line.strip():
            return
        kept, aliases = self._read(line, now)
        stored = kept.entry.known.stored
        if stored > now + _SKEW:
            raise LineError("stored in the future: is the clock right? --fresh takes it as stored now")
        left = stored + kept.seconds - now
        if left <= 0:
            self.skipped += 1
            return
        _put(self._store, kept.entry, aliases, left)
        self.imported += 1

    def end(self) -> None:
        """Have running sidecars drop what they have in memory under the same keys. Raises StoreError."""
        if self.imported:
            self._store.delete(())

    def summary(self) -> None:
        """Say what came of it."""
        if self.refused > _TOLD:
            print(f"and {self.refused - _TOLD:,} more lines were refused", file=sys.stderr)
        if self._warmer.anonymous:
            print(
                f"requests without a credential: {self._warmer.anonymous:,}; only those without one will find"
                " the answers. If that is not what you want, give it with --header-env",
                file=sys.stderr,
            )
        print(f"{self.imported:,} imported, {self.skipped:,} skipped (expired), {self.refused:,} refused")

    def _read(self, line: bytes, now: float) -> tuple[Kept, list[bytes]]:
        either = msgspec.json.decode(line, type=_Either)
        if either.request:
            kept = self._warmer.made(msgspec.json.decode(line, type=Pair), now)
            return kept, [kept.alias] if kept.alias is not None else []
        if not either.key:
            raise LineError("neither what export writes nor a request with its response")
        found = msgspec.json.decode(line, type=Line)
        if found.installation not in (None, self._here):
            raise LineError("its key holds only where it was exported: the file `secret` here is another one")
        if self._fresh:
            found = msgspec.structs.replace(found, known=msgspec.structs.replace(found.known, stored=now))
        terms = self._terms.of(found.known)
        if terms.ttl <= 0:
            raise LineError(REASONS["off"])
        return stored_line(found, terms), [bytes.fromhex(alias) for alias in found.aliases]

    def _refuse(self, number: int, reason: str) -> None:
        self.refused += 1
        if self.refused <= _TOLD:
            print(f"line {number:,} refused: {reason}", file=sys.stderr)


class _TermsOf:
    """What goes for answers of which only the upstream's name and the path are known."""

    def __init__(self, config: Config) -> None:
        self._routes = Routes(config)
        server = msgspec.structs.replace(config.server, upstream="http://localhost")
        self._others = Routes(msgspec.structs.replace(config, server=server, upstreams=[]))

    def of(self, known: Known) -> Terms:
        for table in self._routes.tables:
            if table.name == known.upstream:
                fields = {table.header.lower().encode(): b""} if table.header else {}
                request = Request("POST", b"", known.path, "", (), fields)
                route = self._routes.match(request)
                if route is not None and route.name == known.upstream:
                    return self._routes.terms(known.path, route)
        route = self._others.match(Request("POST", b"", known.path, "", (), {}))
        if route is None:
            raise LineError("known.path is no path")
        return self._others.terms(known.path, route)


def _put(store: AnswerStore, entry: Entry, aliases: list[bytes], seconds: float) -> None:
    # As a running sidecar stores it.
    store.put(entry.key, seal(entry), tag=entry.known.tag, seconds=seconds)
    for alias in aliases:
        store.put(alias, point(alias, entry.key), tag=entry.known.tag, seconds=seconds)


def _lines(file: IO[bytes], longest: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Number, content and bytes of each line; no content where that is too long, and then it is in memory
    a piece at a time. Raises OSError."""
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        read = len(line)
        if read <= longest or line.endswith(b"\n"):
            yield number, line.removeprefix(_BOM) if number == 1 else line, read
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_BESIDE)
            read += len(line)
        yield number, None, read


@contextmanager
def _source(path: Path | None) -> Iterator[IO[bytes]]:
    try:
        file = sys.stdin.buffer if path is None else path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    with file if path is not None else nullcontext():
        yield file


def _size(file: IO[bytes]) -> int | None:
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None
