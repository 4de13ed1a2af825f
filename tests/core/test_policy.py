"""sidecar.core.policy and sidecar.core.errors: what is decided, and what an error is called."""

import json

import pytest

from sidecar.core.errors import KINDS, RefusedError, UpstreamError, outcome_of, problem, sentence, status_of
from sidecar.core.policy import cancels_upstream, end_of_body, end_of_fault
from sidecar.core.types import End, Fault, Outcome

CLOSED = Fault("upstream_closed", "in the middle")
STALLED = Fault("upstream_stalled", "60 s")
SLOW = Fault("request_timeout", "the body")
UNREACHABLE = Fault("upstream_unreachable", "refused")


@pytest.mark.parametrize(
    ("readers", "ended", "cancels"), [(0, False, True), (0, True, False), (1, False, False), (2, True, False)]
)
def test_a_call_that_nobody_reads_is_given_up(readers, ended, cancels):
    assert cancels_upstream(readers, ended=ended) is cancels


@pytest.mark.parametrize(
    ("whole", "error", "status", "outcome", "kind"),
    [
        (True, None, 200, Outcome.COMPLETE, None),
        (True, None, 304, Outcome.COMPLETE, None),
        (False, None, 200, Outcome.TRUNCATED, "upstream_incomplete"),
        (True, "overloaded_error", 200, Outcome.UPSTREAM_ERROR, None),
        (False, "overloaded_error", 200, Outcome.UPSTREAM_ERROR, None),
        (True, None, 400, Outcome.UPSTREAM_ERROR, None),
        (True, None, 529, Outcome.UPSTREAM_ERROR, None),
        (False, None, 500, Outcome.UPSTREAM_ERROR, None),
    ],
)
def test_a_clean_end(whole, error, status, outcome, kind):
    end = end_of_body(whole=whole, declared_error=error, status=status)
    assert end.outcome is outcome
    assert (end.fault and end.fault.kind) == kind


@pytest.mark.parametrize(
    ("fault", "begun", "over", "error", "end"),
    [
        (CLOSED, True, False, None, End(Outcome.TRUNCATED, CLOSED)),
        # Nothing can be cut off before its head.
        (CLOSED, False, False, None, End(Outcome.UPSTREAM_ERROR, CLOSED)),
        (STALLED, True, False, None, End(Outcome.TIMEOUT, STALLED)),
        (STALLED, False, False, None, End(Outcome.TIMEOUT, STALLED)),
        # Nor refused after it.
        (SLOW, True, False, None, End(Outcome.TRUNCATED, SLOW)),
        (SLOW, False, False, None, End(Outcome.REFUSED, SLOW)),
        (UNREACHABLE, False, False, None, End(Outcome.UPSTREAM_ERROR, UNREACHABLE)),
        (CLOSED, True, True, None, End(Outcome.COMPLETE)),
        (STALLED, True, True, None, End(Outcome.COMPLETE)),
        (CLOSED, True, True, "server_error", End(Outcome.UPSTREAM_ERROR)),
    ],
)
def test_a_lost_connection(fault, begun, over, error, end):
    assert end_of_fault(fault, begun=begun, over=over, declared_error=error) == end


STATUSES = {
    "bad_request": (400, Outcome.REFUSED),
    "no_upstream": (404, Outcome.REFUSED),
    "not_found": (404, Outcome.REFUSED),
    "request_timeout": (408, Outcome.REFUSED),
    "headers_too_large": (431, Outcome.REFUSED),
    "internal": (500, Outcome.REFUSED),
    "upgrade_unsupported": (501, Outcome.REFUSED),
    "upstream_unreachable": (502, Outcome.UPSTREAM_ERROR),
    "upstream_protocol": (502, Outcome.UPSTREAM_ERROR),
    "upstream_closed": (502, Outcome.TRUNCATED),
    "upstream_incomplete": (502, Outcome.TRUNCATED),
    "upstream_refused": (502, Outcome.UPSTREAM_ERROR),
    "overloaded": (503, Outcome.REFUSED),
    "draining": (503, Outcome.REFUSED),
    "upstream_timeout": (504, Outcome.TIMEOUT),
    "upstream_stalled": (504, Outcome.TIMEOUT),
}


def test_every_kind_of_error_has_its_status_and_outcome():
    assert {kind: (status_of(Fault(kind, "")), outcome_of(Fault(kind, ""))) for kind in KINDS} == STATUSES


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_document_says_what_and_why(kind):
    fault = Fault(kind, "because")
    document = json.loads(problem(fault))
    assert document == {
        "type": "about:blank",
        "title": sentence(fault).removesuffix(": because"),
        "status": STATUSES[kind][0],
        "detail": "because",
    }


def test_exceptions_carry_the_fault():
    assert UpstreamError("upstream_closed", "x").fault == Fault("upstream_closed", "x")
    assert RefusedError("overloaded", "x").close
    assert not RefusedError("overloaded", "x", close=False).close
