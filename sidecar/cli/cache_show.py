"""`slipstream cache stats` and `list`: what is stored, for people and for programs."""

import heapq
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.cli.cache_store import Place, WorkError, exists, opened
from sidecar.cli.cache_words import (
    CHECKED,
    COUNTS,
    MATCHING,
    answers,
    entries,
    matching,
    plain,
    size,
    span,
)
from sidecar.stores import counts
from sidecar.stores.base import StoreStats
from sidecar.stores.listing import Census, Filter, Item, items

_TOP = 10
_DIGITS = 12
"""Of a key, on a terminal: enough to tell answers apart, and for `purge --key`."""
_COLUMNS = ("key", "tenant", "upstream", "model", "path", "mode", "age", "left", "size")
_NAMES = ("tenant", "upstream", "model", "path")
_NUMBERS = ("age", "left", "size")


# stats


def stats(where: Place, *, as_json: bool) -> None:
    """Print how much there is, of what, and what came of looking for it. Raises ConfigError, WorkError."""
    census, found = Census(), _Sums()
    held = StoreStats(0, 0, where.limit)
    there = exists(where)
    if there:
        with opened(where) as store:
            for item in items(store, census):
                found.add(item)
            held = store.stats()
    try:
        counted = counts.read(where.folder / counts.NAME)
    except OSError as error:
        raise WorkError(f"{where.folder / counts.NAME}: {error.strerror}") from None
    over = max(held.entries - found.answers - census.aliases - census.unreadable, 0)
    if as_json:
        print(
            json.dumps(
                {
                    "folder": str(where.folder),
                    "answers": found.answers,
                    "vectors": held.vectors,
                    "aliases": census.aliases,
                    "expired": over,
                    "unreadable": census.unreadable,
                    "bytes": held.bytes,
                    "limit": held.limit,
                    "oldest": found.oldest,
                    "newest": found.newest,
                    "models": [
                        {"upstream": upstream, "model": model, "answers": number, "bytes": found.bytes[of]}
                        for of, number in found.models.most_common()
                        for upstream, model in [of]
                    ],
                    "since": counted.since or None,
                    "counts": counted.counts,
                }
            )
        )
        return
    if there:
        _print_held(where, held, found, census, over)
    if counted.counts:
        print()
        _print_counts(counted)


class _Sums:
    """Of all answers."""

    def __init__(self) -> None:
        self.answers = 0
        self.models: Counter[tuple[str | None, str | None]] = Counter()
        self.bytes: Counter[tuple[str | None, str | None]] = Counter()
        self.oldest: float | None = None
        self.newest: float | None = None

    def add(self, item: Item) -> None:
        of = (item.known.upstream, item.known.model)
        self.answers += 1
        self.models[of] += 1
        self.bytes[of] += item.size
        stored = item.known.stored
        self.oldest = stored if self.oldest is None else min(stored, self.oldest)
        self.newest = stored if self.newest is None else max(stored, self.newest)


def _print_held(where: Place, held: StoreStats, found: _Sums, census: Census, over: int) -> None:
    now = time.time()
    share = f"{held.bytes / held.limit:.0%}" if held.limit else "all"
    print(f"{answers(found.answers)} in {where.folder}")
    print(f"  {size(held.bytes)} of {size(held.limit)} on disk ({share})")
    if held.vectors:
        print(f"  found by the same question in other words: {answers(held.vectors)}")
    if found.oldest is not None and found.newest is not None:
        print(f"  stored between {span(now - found.oldest)} and {span(now - found.newest)} ago")
    if over:
        print(f"  time is over for {entries(over)} more: `slipstream cache purge --expired` removes them")
    if census.unreadable:
        print(
            f"  damaged: {entries(census.unreadable)}, never served; gone with `slipstream cache purge --all`"
        )
    if not found.models:
        return
    print()
    rows = [
        (plain(upstream), plain(model), f"{number:,}", size(found.bytes[upstream, model]))
        for (upstream, model), number in found.models.most_common(_TOP)
    ]
    _aligned(("upstream", "model", "answers", "size"), rows, right=("answers", "size"))
    if len(found.models) > _TOP:
        print(f"  and {len(found.models) - _TOP} more; --json has all of them")


def _print_counts(counted: counts.Counts) -> None:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(counted.since))
    print(f"since {since}, in requests")
    rest = dict(counted.counts)
    for title, group in COUNTS.items():
        told = [(words, rest.pop(name, 0)) for name, words in group]
        _group(title, told)
    _print_matching(rest)
    _group("otherwise", [(plain(name), number) for name, number in rest.items()])


def _print_matching(rest: dict[str, int]) -> None:
    """What came of comparing questions; taken out of the counters."""
    told = [(matching(name), rest.pop(name)) for name in [*rest] if name.startswith(MATCHING)]
    checks = dict(told)
    told = [line for line in told if line[1]]
    if not told:
        return
    print(f"  {'':>9}  questions in other words")
    for words, number in sorted(told, key=lambda line: -line[1]):
        print(f"    {number:>9,}  {words}")
    for kind, of in CHECKED.items():
        right, wrong = (checks.get(matching(f"{kind}_{result}"), 0) for result in ("right", "wrong"))
        if right + wrong:
            share = wrong / (right + wrong)
            print(f"    {share:>9.1%}  false hits among those {of} ({wrong:,} of {right + wrong:,})")


def _group(title: str, told: list[tuple[str, int]]) -> None:
    told = [(words, number) for words, number in told if number]
    if told:
        print(f"  {sum(number for _, number in told):>9,}  {title}")
        for words, number in sorted(told, key=lambda line: -line[1]):
            if words:
                print(f"    {number:>9,}  {words}")


# list


def show(where: Place, wanted: Filter, limit: int, *, as_json: bool) -> None:
    """Print the newest `limit` answers, or all if it is 0. Raises ConfigError, WorkError."""
    if not exists(where):
        return
    with opened(where) as store:
        total = _Tally(item for item in items(store, Census()) if wanted.takes(item))
        if limit:
            shown = heapq.nlargest(limit, total, key=_stored)
        else:
            shown = sorted(total, key=_stored, reverse=True)
    if as_json:
        for item in shown:
            print(json.dumps(_fields(item), ensure_ascii=False))
    elif not shown:
        print("no stored answer is like that", file=sys.stderr)
    elif sys.stdout.isatty():
        _print_table(shown)
    else:
        # For awk and cut: no character of a key or name may be missing.
        print("\t".join(_COLUMNS))
        for item in shown:
            print("\t".join(_cells(item, time.time())))
    if total.seen > len(shown):
        sys.stdout.flush()
        print(f"and {total.seen - len(shown):,} more; --limit 0 shows all", file=sys.stderr)


class _Tally:
    """Counts what goes by."""

    def __init__(self, found: Iterable[Item]) -> None:
        self.seen = 0
        self._found = found

    def __iter__(self) -> Iterator[Item]:
        for item in self._found:
            self.seen += 1
            yield item


def _stored(item: Item) -> tuple[float, bytes]:
    return item.known.stored, item.key


def _fields(item: Item) -> dict[str, object]:
    known = item.known
    return {
        "key": item.key.hex(),
        "tenant": item.tag,
        "upstream": known.upstream,
        "model": known.model,
        "path": known.path,
        "stream": known.stream,
        "stored": known.stored,
        "ttl": known.ttl,
        "expires": item.expires,
        "size": item.size,
        "provider": known.provider,
        "operation": known.operation,
        "response_model": known.response_model,
        "finish": known.finish,
        "input_tokens": known.input_tokens,
        "output_tokens": known.output_tokens,
        "events": known.events,
    }


def _cells(item: Item, now: float) -> list[str]:
    known = item.known
    left = known.stored + known.ttl - now
    return [
        item.key.hex(),
        plain(item.tag),
        plain(known.upstream),
        plain(known.model),
        plain(known.path),
        "stream" if known.stream else "whole",
        span(now - known.stored),
        span(left) if left > 0 else "stale",  # only if the upstream fails: stale_if_error
        size(item.size),
    ]


def _print_table(shown: list[Item]) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for name in _COLUMNS:
        # What is not in `_NAMES` is never cut short; of names, as much is shown as there is room for.
        table.add_column(name, no_wrap=name not in _NAMES, justify="right" if name in _NUMBERS else "left")
    now = time.time()
    for item in shown:
        key, *rest = _cells(item, now)
        table.add_row(*[Text(cell, no_wrap=True, overflow="ellipsis") for cell in (key[:_DIGITS], *rest)])
    Console(highlight=False).print(table)


def _aligned(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[str, ...]) -> None:
    widths = [max(len(row[at]) for row in [titles, *rows]) for at in range(len(titles))]
    for row in [titles, *rows]:
        cells = [
            cell.rjust(width) if title in right else cell.ljust(width)
            for title, cell, width in zip(titles, row, widths, strict=True)
        ]
        print("  " + "  ".join(cells).rstrip())
