"""What a stored answer says, to compare it with another one."""

import msgspec

from sidecar.core.dialects import by_name, recognise
from sidecar.core.dialects.base import loads
from sidecar.core.entry import Known
from sidecar.core.folding import fold
from sidecar.core.semantic.guards import GUARDS
from sidecar.core.semantic.traits import traits

_TELLING = ("numbers", "dates", "versions", "units", "negation", "opposites", "names", "quoted", "code")
"""Guards that are asked of answers, too: what those see is what an answer is wrong by. Word order, length and
the like differ between any two answers."""
_SHORT = 400
"""Characters of an answer that is short enough for that; two long ones always differ in some number."""
_SURPRISES = (
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
)
"""What somebody else's JSON can make a dialect raise."""


class Said(msgspec.Struct, frozen=True):
    """Without what differs between two answers that say the same: white space and ids."""

    text: str
    calls: str
    """Which tools are called with what."""


def said(known: Known, body: bytes) -> Said | None:
    """What an answer says; how its reasoning went does not count. None where it cannot be told."""
    dialect = by_name(known.dialect) or recognise("POST", known.path)
    whole = fold(known.dialect, body, known.query) if known.stream else body
    if dialect is None or whole is None:
        return None
    try:
        texts, calls = dialect.said(loads(whole))
        made = Said(" ".join(" ".join(texts).split()), " ".join(calls))
    except _SURPRISES:
        return None
    return made if made.text or made.calls else None


def difference(one: Said, other: Said) -> str | None:
    """What two answers do not agree in, however alike they are: `tools`, or the name of a guard. None where
    nothing is seen."""
    if one.calls != other.calls:
        return "tools"
    if max(len(one.text), len(other.text)) > _SHORT:
        return None
    mine, theirs = traits(one.text), traits(other.text)
    return next((name for name in _TELLING if GUARDS[name](mine, theirs)), None)
