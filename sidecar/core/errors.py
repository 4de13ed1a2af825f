"""The sidecar's own errors: one table of kinds, statuses and remedies.

How an error looks on the wire is the dialect's business; this module only says what it means.
"""

import orjson

from sidecar.core.types import Fault, Outcome

KINDS: dict[str, tuple[int, str, Outcome]] = {
    "bad_request": (400, "The request is malformed", Outcome.REFUSED),
    "unauthorized": (401, "A token is required", Outcome.REFUSED),
    "forbidden": (403, "Not allowed", Outcome.REFUSED),
    "no_upstream": (404, "No upstream takes this path", Outcome.REFUSED),
    "not_found": (404, "Nothing here", Outcome.REFUSED),
    "method_not_allowed": (405, "Not with this method", Outcome.REFUSED),
    "request_timeout": (408, "The request came too slowly", Outcome.REFUSED),
    "job_unfinished": (409, "The job has no result yet", Outcome.REFUSED),
    "stopped": (410, "The stream was stopped", Outcome.CANCELLED),
    "gone": (410, "It is not kept any more", Outcome.REFUSED),
    "body_too_large": (413, "The request body is too large", Outcome.REFUSED),
    "rate_limited": (429, "Too many requests", Outcome.REFUSED),
    "headers_too_large": (431, "The request headers are too large", Outcome.REFUSED),
    "internal": (500, "A fault inside the sidecar", Outcome.REFUSED),
    "upgrade_unsupported": (
        501,
        "The connection cannot be upgraded to that",
        Outcome.REFUSED,
    ),
    "upstream_unreachable": (
        502,
        "The upstream cannot be reached",
        Outcome.UPSTREAM_ERROR,
    ),
    "upstream_protocol": (
        502,
        "The upstream's answer is not valid HTTP",
        Outcome.UPSTREAM_ERROR,
    ),
    "upstream_closed": (502, "The upstream closed the connection", Outcome.TRUNCATED),
    "upstream_incomplete": (
        502,
        "The upstream's answer is incomplete",
        Outcome.TRUNCATED,
    ),
    "upstream_refused": (
        502,
        "The upstream answered with an error",
        Outcome.UPSTREAM_ERROR,
    ),
    "app_failed": (500, "The app did not finish its answer", Outcome.TRUNCATED),
    "overloaded": (503, "The sidecar is at its limit", Outcome.REFUSED),
    "draining": (503, "The sidecar is shutting down", Outcome.REFUSED),
    "jobs_unavailable": (503, "Background jobs are not available", Outcome.REFUSED),
    "answer_too_large": (502, "The answer is too large to be kept", Outcome.REFUSED),
    "interrupted": (502, "The sidecar stopped while the call was running", Outcome.REFUSED),
    "not_cached": (504, "No stored answer", Outcome.REFUSED),
    "upstream_timeout": (504, "The upstream did not answer in time", Outcome.TIMEOUT),
    "upstream_stalled": (
        504,
        "The upstream went silent in mid-answer",
        Outcome.TIMEOUT,
    ),
}
"""kind -> (status before the head, title, what the latency line calls it)."""


class UpstreamError(Exception):
    """An upstream call that failed; carries the fault for the client and the log."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.fault = Fault(kind, detail)


class RefusedError(Exception):
    """A request the sidecar will not serve, or not to its end, because of the client."""

    def __init__(self, kind: str, detail: str, *, close: bool = True, retry: int = 1) -> None:
        super().__init__(f"{kind}: {detail}")
        self.fault = Fault(kind, detail)
        self.close = close
        """Whether the connection can no longer be trusted to be in step."""
        self.retry = retry
        """Seconds after which it may be worth another try, for kinds that say so (`Retry-After`)."""


def status_of(fault: Fault) -> int:
    """The HTTP status a fault has when nothing has been sent yet."""
    return KINDS[fault.kind][0]


def outcome_of(fault: Fault) -> Outcome:
    """What a fault is called in the latency line."""
    return KINDS[fault.kind][2]


def sentence(fault: Fault) -> str:
    """The fault in one line for people."""
    return f"{KINDS[fault.kind][1]}: {fault.detail}"


def problem(fault: Fault) -> bytes:
    """RFC 9457 `application/problem+json`, for paths that are no model API."""
    status, title, _ = KINDS[fault.kind]
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": fault.detail,
        }
    )
