"""The log line of a background job that has ended."""

from typing import Any

from sidecar.stores.jobs import JobRecord


def job_line(record: JobRecord) -> dict[str, Any]:
    """Its fields."""
    details, labels, error = record.details, record.labels, record.error
    return {
        "job_id": record.id,
        "status": record.status,
        "tenant": labels.get("tenant"),
        "path": labels.get("path"),
        "model": labels.get("model"),
        "queued_ms": _ms(record.created, record.started),
        "total_ms": _ms(record.created, record.ended),
        "events": details.get("events"),
        "input_tokens": details.get("input_tokens"),
        "output_tokens": details.get("output_tokens"),
        "feature": labels.get("feature") or "batch",
        "error": error.kind if error is not None else None,
    }


def _ms(begun: float, ended: float | None) -> float | None:
    """Milliseconds between two unix times; the clock may have been set back."""
    return round(max(ended - begun, 0.0) * 1000, 3) if ended else None
