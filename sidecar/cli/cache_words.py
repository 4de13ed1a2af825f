"""What `slipstream cache` says: sizes, times, names and reasons, in words for people."""

import re
from typing import get_args

from sidecar.core.caching import Reason

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNITS = ("KiB", "MiB", "GiB", "TiB")
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"))

REASONS: dict[Reason, str] = {
    "off": "the time to live there is 0 (cache.ttl)",
    "no_store": "the request says Cache-Control: no-store",
    "stateful": "the answer depends on what the provider keeps of other requests",
    "temperature": "the request's temperature is above cache.max_temperature",
    "unkeyed": "the request's body is no JSON object, or one that may be read in two ways",
    "incomplete": "the answer is not complete",
    "status": "the answer's status is not 200",
    "error": "the answer holds an error of the provider's",
    "format": "the answer is in another format than was asked for",
    "compressed": "the answer is compressed (see cache.uncompressed)",
    "unreadable": "the answer cannot be read as what it says it is",
    "upstream_no_store": "the upstream says Cache-Control: no-store",
    "finish": "the model did not end of its own accord, such as at a length limit (see cache.finish)",
    "refusal": "the model declined to answer (see cache.finish)",
    "tools": "the answer calls tools (see cache.tools)",
    "too_large": "the answer is larger than cache.largest",
}
"""Why an answer is not stored."""

COUNTS: dict[str, tuple[tuple[str, str], ...]] = {
    "answered from the cache": (
        ("hit_memory", "out of memory"),
        ("hit_disk", "from disk"),
        ("hit_semantic", "to the same question in other words"),
        ("hit_stale", "past their time, because the upstream failed"),
    ),
    "looked up in vain": (
        ("lookup_late", "the disk took too long"),
        ("lookup_failed", "the disk failed"),
        ("lookup_damaged", "the entry is damaged"),
    ),
    "stored": (("stored", ""),),
    "not remembered": (
        ("note_failed", "where an answer lies for questions in other words, because the disk failed"),
        ("served_failed", "under which id an answer was given, because the disk failed"),
    ),
    "set aside": (("store_set_aside", "a store that was damaged, or of another version"),),
    "not stored": (
        ("store_failed", "the disk failed"),
        ("store_skipped", "the disk is too slow, or failed before"),
        ("store_purged", "a purge came between the request and the end of its answer"),
        *[(f"not_stored_{reason}", REASONS[reason]) for reason in get_args(Reason)],
    ),
}
"""Groups of counters: each counter and what it means."""


MATCHING = ("semantic_", "guard_", "unmatched_", "embed_", "verify_", "shadow_")
"""What counters of questions in other words begin with."""
CHECKED = {"verify": "checked", "shadow": "that would have been served"}
"""Where answers were compared with real ones, and which those were."""
_MATCHING = {
    "semantic_late": "looking took longer than semantic.deadline",
    "semantic_not_ready": "the model was not there yet",
    "semantic_skipped": "too many asked at once",
    "semantic_failed": "looking failed",
    "semantic_gone": "the answer was gone",
    "verify_right": "checked: the upstream says the same",
    "verify_wrong": "checked: the upstream says something else",
    "shadow_right": "not served: the upstream says the same",
    "shadow_wrong": "not served: the upstream says something else",
}
_ABOUT = {"semantic": "", "guard": "refused by the guard: ", "unmatched": "not compared: "}


def matching(name: str) -> str:
    """The words for one of the counters that begin with `MATCHING`."""
    kind, _, rest = name.partition("_")
    return _MATCHING.get(name) or plain(_ABOUT.get(kind, f"{kind}: ") + rest.replace("_", " "))


def plain(text: object) -> str:
    """A name that somebody else chose: nothing in it may move the cursor, or turn the line around."""
    return _CONTROL.sub("?", str(text)) if text not in (None, "") else "-"


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, 0
    while value >= 1023.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if value < 9.95 else f"{value:.0f} {_UNITS[unit]}"


def span(seconds: float) -> str:
    """A length of time for people."""
    seconds = max(seconds, 0.0)
    for unit, name in _SPANS:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def answers(count: int) -> str:
    """So many answers."""
    return "1 answer" if count == 1 else f"{count:,} answers"


def entries(count: int) -> str:
    """So many entries, whether they are answers or point at one."""
    return "1 entry" if count == 1 else f"{count:,} entries"
