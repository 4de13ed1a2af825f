"""What the cache counts, as metrics."""

from collections.abc import Iterator, Mapping

from sidecar.telemetry.counted import Labels

_FAILURES = {
    "store_failed": "store",
    "note_failed": "note",
    "served_failed": "served",
    "lookup_failed": "lookup",
    "lookup_damaged": "damaged",
    "store_set_aside": "set_aside",
    "record_failed": "record",
}
_EMBEDDER = {"embed_failed": "embed", "semantic_failed": "search"}
_LATE = {"lookup_late": "exact", "semantic_late": "semantic"}
_NOT_STORED = {"store_purged": "purged", "store_skipped": "skipped"}
_UNMATCHED = {
    "semantic_skipped": "busy",
    "semantic_not_ready": "not_ready",
    "semantic_distrusted": "distrusted",
    "semantic_gone": "gone",
}
_CHECKED = "verify_"
_VERDICTS = ("right", "wrong", "unknown")


def read_counts(counts: Mapping[str, int]) -> Iterator[tuple[str, Labels, float]]:
    """Counters by the cache's names -> metric, labels, value."""
    yield "slipstream_cache_stored_total", (), counts.get("stored", 0)
    # These are there from the beginning: an alert on what has no series yet never fires.
    for name, operation in _FAILURES.items():
        yield "slipstream_store_failures_total", (operation,), counts.get(name, 0)
    for name, reason in _EMBEDDER.items():
        yield "slipstream_embedder_failures_total", (reason,), counts.get(name, 0)
    for name, kind in _LATE.items():
        yield "slipstream_lookups_late_total", (kind,), counts.get(name, 0)
    for verdict in _VERDICTS:
        yield "slipstream_semantic_checked_total", (verdict,), counts.get(_CHECKED + verdict, 0)
    for name, count in counts.items():
        if name.startswith("not_stored_"):
            yield "slipstream_cache_not_stored_total", (name.removeprefix("not_stored_"),), count
        elif name in _NOT_STORED:
            yield "slipstream_cache_not_stored_total", (_NOT_STORED[name],), count
        elif name.startswith("guard_"):
            yield "slipstream_cache_unmatched_total", (name,), count
        elif name.startswith("unmatched_"):
            yield "slipstream_cache_unmatched_total", (name.removeprefix("unmatched_"),), count
        elif name in _UNMATCHED:
            yield "slipstream_cache_unmatched_total", (_UNMATCHED[name],), count
