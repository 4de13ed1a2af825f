"""What is known of an answer that is over."""

from typing import Any

import msgspec

from sidecar.core.dialects.base import Facts
from sidecar.core.types import DeltaKind

NEVER = 1 << 62
"""More events than any stream has."""


_NOTHING: set[Any] = set()


def spent(facts: Facts) -> Facts:
    """The same without which choices there were, which is of no use once all has been read; nothing may be
    learnt any more."""
    return msgspec.structs.replace(facts, reasons=_NOTHING, begun=_NOTHING, finished=_NOTHING)


class Told(msgspec.Struct, frozen=True, gc=False):
    """It is values only. Of what is kept for long there is nothing for the garbage collector to follow:
    a full collection would stop the event loop for as long as it takes to look at all of it."""

    facts: Facts
    """See `spent`. Records that are made of this have them together."""
    events: int = 0
    deltas: int = 0
    first_at: float = 0.0
    first_kind: DeltaKind | None = None
    last_at: float = 0.0
    ids_until: int = NEVER
    unreadable: bool = False
    closing: bytes = b""
    """See `Answer.closing`."""
    gaps: tuple[bytes, int, float] | None = None
    """See `Gaps.packed`."""
