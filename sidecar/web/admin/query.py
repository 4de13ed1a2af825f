"""Queries of the admin port's URLs. What is unknown is refused: a filter that is misspelt would mean
everything."""

from urllib.parse import parse_qsl

from sidecar.serving.snapshot import Wanted
from sidecar.stores.listing import Filter
from sidecar.web.admin.answer import ProblemError

_FILTERS = ("tenant", "upstream", "model", "path", "key")
_DEFAULT = 50
_MOST = 500
"""Stored answers that are listed at once."""
WINDOWS = ("1m", "5m", "60m")


def window(query: str) -> str:
    """Of `/events`. Raises ProblemError."""
    found = _read(query, "window").get("window", "5m")
    if found not in WINDOWS:
        raise _refused(f"window: expected {', '.join(WINDOWS[:-1])} or {WINDOWS[-1]}")
    return found


def listed(query: str) -> tuple[Filter, int]:
    """What is to be listed, and how much of it. Raises ProblemError."""
    given = _read(query, "limit", *_FILTERS)
    found = {name: value for name, value in given.items() if value}  # as an empty field of a form has it
    text = found.pop("limit", str(_DEFAULT))
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= _MOST):
        raise _refused(f"limit: expected a number from 1 to {_MOST}")
    return _filter(found), int(text)


def purged(query: str) -> Filter | None:
    """What is to be purged; None for all. Raises ProblemError."""
    found = _read(query, "all", *_FILTERS)
    every = found.pop("all", None)
    if every not in (None, "1") or (every is None) == (not found):
        raise _refused(f"say what to purge: all=1, or any of {', '.join(_FILTERS)}")
    if "" in found.values():
        # It is most likely a variable that is not set, and what is left of the filter would take more.
        raise _refused("expected a value for each name")
    return _filter(found) if found else None


def snapshot(query: str) -> Wanted:
    """What a supervisor wants to know. Raises ProblemError."""
    found = _read(query, "counters", "windows", "active", "since")
    windows = found["windows"].split(",") if "windows" in found else []
    numbers = [*found.get("since", "0,0").split(","), found.get("active", "0"), found.get("counters", "0")]
    digits = all(text.isascii() and text.isdigit() and len(text) <= 20 for text in numbers)
    if not set(windows) <= set(WINDOWS) or len(numbers) != 4 or not digits:
        raise _refused("expected what `Wanted` writes")
    taken, failed, active, counters = map(int, numbers)
    since = (taken, failed) if "since" in found else None
    return Wanted(bool(counters), tuple(windows), min(active, _MOST), since)


def _read(query: str, *known: str) -> dict[str, str]:
    query = "&".join([part for part in query.split("&") if part])
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        raise _refused("expected name=value, with & between them") from None
    found = dict(pairs)
    if len(found) != len(pairs) or not found.keys() <= set(known):
        raise _refused(f"expected at most one each of {', '.join(known)}")
    return found


def _filter(said: dict[str, str]) -> Filter:
    try:
        return Filter.of(**said)
    except ValueError as error:
        raise _refused(str(error)) from None


def _refused(detail: str) -> ProblemError:
    return ProblemError(400, "bad_request", "The query is not understood", detail)
