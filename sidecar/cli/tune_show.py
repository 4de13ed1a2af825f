"""What `slipstream tune` prints: tables, a small curve, and what to write into the configuration."""

import json
import sys
import textwrap
from collections.abc import Iterator, Sequence

import msgspec

from sidecar.cli.cache_words import plain
from sidecar.cli.tune_read import Filter, Found
from sidecar.cli.tune_sample import By, Group, Sample
from sidecar.cli.tune_words import (
    FALSE,
    HIT,
    INTERVAL,
    MEANING,
    THIRD,
    cells,
    group,
    mark,
    reach,
    reasons,
    round_percent,
    setting,
    shown,
    suggested,
    title,
)
from sidecar.core.semantic.curve import Point, Rate, Refusal

_WIDTH = 98
_HEIGHT = 10
"""Lines of the small curve."""
_STEP = 3
"""Columns from one of its thresholds to the next."""
_EVERY = 5
"""Of its thresholds, one in so many is named."""
_NAME = 26
"""Characters of a group's name."""
_GROUPS = 12
_DRAWN = ("●", "○", "◉", "│", "└", "─")
_PLAIN = ("o", "x", "8", "|", "+", "-")


# For programs


def for_programs(samples: Sequence[Sample], found: Found, wanted: Filter, want: float) -> str:
    """All of it, as one object."""
    made = {
        "wanted": want,
        "damaged": found.damaged,
        "left_out": found.left_out,
        "since": found.since,
        "until": found.until,
        "samples": [_fields(sample, wanted) for sample in samples],
    }
    return json.dumps(made, ensure_ascii=False)


def _fields(sample: Sample, wanted: Filter) -> dict[str, object]:
    point, result = suggested(sample), sample.result
    return {
        "kind": sample.kind,
        "counts": msgspec.to_builtins(sample.counts),
        "configured": sample.configured,
        "suggestion": point.threshold if point else None,
        "setting": setting(wanted, point.threshold) if point else None,
        "refusal": result.reason if isinstance(result, Refusal) else None,
        "needed": result.needed if isinstance(result, Refusal) else None,
        "points": [_point(point) for point in sample.points],
        "guards": msgspec.to_builtins(sample.guards),
        "groups": {
            by: [{"name": row.name, **_fields(row.sample, _only(by, row, wanted))} for row in rows]
            for by, rows in sample.groups.items()
        },
    }


def _point(point: Point) -> dict[str, object]:
    names = ("hit_rate", "false_hit_rate", "share_of_hits_false")
    rates: dict[str, Rate] = {name: getattr(point, name) for name in names}
    shown = {name: {"share": rate.share, **msgspec.structs.asdict(rate)} for name, rate in rates.items()}
    return {"threshold": point.threshold, **shown, "within": point.within}


def _only(by: By, row: Group, wanted: Filter) -> Filter:
    return msgspec.structs.replace(wanted, **{by: row.name})


# For people


def show(samples: Sequence[Sample], found: Found, wanted: Filter, want: float) -> None:
    """Print all of it."""
    for number, sample in enumerate(samples):
        if number:
            print()
        _say(title(sample, found))
        print()
        _show_points(sample)
        print()
        for line in chart(sample, _DRAWN if _drawable() else _PLAIN):
            print(line)
        print()
        _say(f"{MEANING[sample.kind]} {INTERVAL}")
        _show_guards(sample)
        for by, rows in sample.groups.items():
            _show_groups(by, rows)
        print()
        _show_result(sample, wanted, want)


def _say(text: str) -> None:
    print(textwrap.fill(text, _WIDTH))


def _show_points(sample: Sample) -> None:
    titles = ("threshold", HIT[sample.kind], FALSE[sample.kind], THIRD[sample.kind], "")
    marks = [mark(sample, point) for point in sample.points]
    rows = [
        (*cells(sample, point), f"<- {text}" if text else "")
        for point, text in zip(sample.points, marks, strict=True)
    ]
    _aligned(titles, rows)


def _show_guards(sample: Sample) -> None:
    if not sample.guards:
        return
    print()
    print(f"Kept from being hits at {shown(sample.configured)} by guards:")
    titles = ("guard", "rightly", "wrongly", "unknown")
    rows = [
        (plain(one.guard), f"{one.wrong:,}", f"{one.right:,}", f"{one.unknown:,}") for one in sample.guards
    ]
    _aligned(titles, rows)


def _show_groups(by: By, rows: Sequence[Group]) -> None:
    print()
    titles = (by, "count", "threshold", HIT[rows[0].sample.kind], FALSE[rows[0].sample.kind], "suggested")
    made = [group(row) for row in rows[:_GROUPS]]
    _aligned(titles, [(_cut(name), *rest) for name, *rest in made])
    if len(rows) > _GROUPS:
        print(f"  and {len(rows) - _GROUPS:,} more; --json has all of them")


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."


def _show_result(sample: Sample, wanted: Filter, want: float) -> None:
    point = suggested(sample)
    if point is not None:
        print(f"Suggestion, for {round_percent(want)} of {FALSE[sample.kind]} or less:")
        print()
        print(f"    {setting(wanted, point.threshold)}")
        print()
    _say(reasons(sample, want))


def _aligned(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """The first column to the left, as names are, and what is marked; figures to the right."""
    widths = [max(len(row[at]) for row in [titles, *rows]) for at in range(len(titles))]
    for row in [titles, *rows]:
        texts = [
            text.rjust(width) if at and not text.startswith("<-") else text.ljust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(texts).rstrip())


# The small curve


def _drawable() -> bool:
    try:
        "".join(_DRAWN).encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def chart(sample: Sample, signs: tuple[str, ...]) -> Iterator[str]:
    """Both rates over the thresholds, as lines of text."""
    hit, false, both, side, corner, floor = signs
    shares = [(point.hit_rate.share or 0.0, sample.rate(point).share or 0.0) for point in sample.points]
    top = reach(sample)
    yield f"  {hit} {HIT[sample.kind]}   {false} {FALSE[sample.kind]}   {both} both"
    for level in range(_HEIGHT, -1, -1):
        label = f"{top * level / _HEIGHT:.1%}" if level % _EVERY == 0 else ""
        line = ""
        for pair in shares:
            here = [round(share / top * _HEIGHT) == level for share in pair]
            sign = both if all(here) else hit if here[0] else false if here[1] else " "
            line += sign.rjust(_STEP)
        yield f"{label:>7} {side}{line}".rstrip()
    yield f"{'':>7} {corner}{floor * _STEP * len(shares)}"
    names = ""
    for at, point in enumerate(sample.points):
        if at % _EVERY == 0:
            names = names.ljust(_STEP * at) + shown(point.threshold).rjust(_STEP + 1)
    yield f"{'':>8}{names}"
