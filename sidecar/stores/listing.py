"""Stored answers as people look at them: what is known of each, which are meant, and removing those."""

import itertools
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress

import msgspec

from sidecar.core.entry import Known, is_pointer, peek, pointed, unseal
from sidecar.stores.base import AnswerStore, DamagedEntryError, Row

_FACTS = 16 * 1024
"""Bytes of an entry's start that nearly always hold all its facts."""
_POINTER = 128
"""The same of a pointer."""
_DIGITS = 64
"""Of a whole key."""
_TENANT = re.compile(r"[0-9a-f]{16}")
_KEY = re.compile(r"[0-9a-f]{1,64}")

Shown = Callable[[int], AbstractContextManager[Callable[[int], None]]]


class Item(msgspec.Struct, frozen=True):
    """A stored answer, as far as it is known without its body."""

    key: bytes
    tag: str
    expires: float
    """When it is removed, in unix seconds."""
    size: int
    known: Known
    """Without the header fields."""


class Filter(msgspec.Struct, frozen=True):
    """Which answers are meant."""

    tenant: str | None = None
    upstream: str | None = None
    model: str | None = None
    path: str | None = None
    """A prefix."""
    key: str | None = None
    """The first hexadecimal digits."""

    @classmethod
    def of(
        cls,
        *,
        tenant: str | None = None,
        upstream: str | None = None,
        model: str | None = None,
        path: str | None = None,
        key: str | None = None,
    ) -> "Filter":
        """As people write it. Raises ValueError: a name, and what was expected."""
        said = {"tenant": tenant, "key": key}
        for name, form, digits in (
            ("tenant", _TENANT, "the 16 hexadecimal digits"),
            ("key", _KEY, "the first hexadecimal digits"),
        ):
            value = said[name]
            if value is not None:
                said[name] = value = value.strip().lower()
                if not form.fullmatch(value):
                    raise ValueError(f"{name}: expected {digits} that `slipstream cache list` shows")
        if path is not None and not path.startswith("/"):
            raise ValueError(f"path: expected the begin of a path such as /v1, not {path!r}")
        return cls(said["tenant"], upstream, model, path, said["key"])

    def takes(self, item: Item) -> bool:
        """Whether it is one of them."""
        known = item.known
        return (
            (self.tenant is None or item.tag == self.tenant)
            and (self.upstream is None or known.upstream == self.upstream)
            and (self.model is None or known.model == self.model)
            and (self.path is None or known.path.startswith(self.path))
            and (self.key is None or item.key.hex().startswith(self.key))
        )


class Census(msgspec.Struct):
    """What came by beside the answers."""

    aliases: int = 0
    unreadable: int = 0


def items(
    store: AnswerStore, census: Census, *, newest: bool = False, most: int | None = None
) -> Generator[Item]:
    """All answers whose time is not over. `newest`: those first that came last. `most`: entries that are
    looked at, all if left out. To be closed by whoever does not read it to its end. Raises StoreError."""
    with closing(store.rows(_FACTS, newest=newest)) as rows:
        for row in itertools.islice(rows, most):
            if is_pointer(row.start):
                census.aliases += 1
            elif (known := _known(store, row)) is not None:
                known = msgspec.structs.replace(known, headers=())
                yield Item(row.key, row.tag, row.expires, row.size, known)
            else:
                census.unreadable += 1


def aliases(store: AnswerStore) -> dict[bytes, list[bytes]]:
    """Key of an answer -> the keys of what points at it. Raises StoreError."""
    found: dict[bytes, list[bytes]] = {}
    for key, target in _pointers(store):
        found.setdefault(target, []).append(key)
    return found


def count(store: AnswerStore, tag: str | None = None) -> int:
    """How many answers there are, or are of one tenant. Raises StoreError."""
    rows = store.rows(_POINTER)
    return sum([not is_pointer(row.start) for row in rows if tag is None or row.tag == tag])


def purge(store: AnswerStore, wanted: Filter, shown: Shown | None = None) -> int:
    """Remove the answers that fit, and what points at them; returns how many answers there were. `shown` is
    told how many, and what it gives of each that is removed. Raises StoreError."""
    gone = 0

    def going() -> Generator[bytes]:
        # The store asks for them once nothing is stored any more that was asked for before.
        nonlocal gone
        keys = _chosen(store, wanted)
        chosen = frozenset(keys)
        gone = len(keys)
        if keys:
            # Pointers first: one whose answer has gone already would be looked up in vain.
            yield from [key for key, target in _pointers(store) if target in chosen]
        with shown(gone) if shown is not None else nullcontext(_unseen) as advance:
            for key in keys:
                yield key
                advance(1)

    with closing(going()) as keys:
        store.delete(keys)
    return gone


def _unseen(_step: int) -> None:
    pass


def _chosen(store: AnswerStore, wanted: Filter) -> list[bytes]:
    if wanted.key is None or wanted != Filter(key=wanted.key) or len(wanted.key) < _DIGITS:
        return [item.key for item in items(store, Census()) if wanted.takes(item)]
    key = bytes.fromhex(wanted.key)
    with suppress(DamagedEntryError):
        blob = store.get(key)
        return [key] if blob is not None and not is_pointer(blob) else []
    return [key]


def _pointers(store: AnswerStore) -> Iterator[tuple[bytes, bytes]]:
    """The keys of all pointers, and where they point."""
    with closing(store.rows(_POINTER, largest=_POINTER)) as rows:
        for row in rows:
            target = None
            with suppress(ValueError):
                target = pointed(row.key, row.start) if is_pointer(row.start) else None
            if target is not None:
                yield row.key, target


def _known(store: AnswerStore, row: Row) -> Known | None:
    known = peek(row.start)
    if known is None and len(row.start) < row.size:
        # Its header fields are longer than anybody's.
        with suppress(ValueError):
            blob = store.get(row.key)
            known = unseal(row.key, blob).known if blob is not None else None
    return known
