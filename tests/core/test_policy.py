"""sidecar.core.policy and sidecar.core.errors: what is decided, and what an error is called."""

import json
import math

import pytest

from sidecar.core.caching import wish
from sidecar.core.errors import KINDS, RefusedError, UpstreamError, outcome_of, problem, sentence, status_of
from sidecar.core.policy import (
    end_of_body,
    end_of_fault,
    is_retry,
    lease,
    may_join,
    patience,
    same_operation,
    starts_again,
    stays_away,
    takes_ids,
)
from sidecar.core.types import End, Fault, Outcome

CLOSED = Fault("upstream_closed", "in the middle")
STALLED = Fault("upstream_stalled", "60 s")
SLOW = Fault("request_timeout", "the body")
UNREACHABLE = Fault("upstream_unreachable", "refused")


FINISH = math.inf


@pytest.mark.parametrize(
    ("asked", "configured", "resumable", "granted"),
    [
        # By default, cancel; a client that can come back has a moment to.
        (None, 0.0, False, 0.0),
        (None, 0.0, True, 15.0),
        (None, 60.0, False, 60.0),
        (None, 60.0, True, 60.0),
        (None, FINISH, False, FINISH),
        (None, FINISH, True, FINISH),
        # What the request says goes before what is configured, either way.
        (0.0, FINISH, True, 0.0),
        (0.0, 0.0, True, 0.0),
        (5.0, 0.0, False, 5.0),
        (5.0, 60.0, True, 5.0),
        (FINISH, 0.0, False, FINISH),
    ],
)
def test_what_a_client_that_leaves_is_granted(asked, configured, resumable, granted):
    assert patience(asked=asked, configured=configured, resumable=resumable, short=15.0) == granted


@pytest.mark.parametrize(
    ("ended", "over", "readers", "held", "patience", "seconds"),
    [
        # Nobody wants it: it ends now, or when its client's time is up.
        (False, False, 0, False, 0.0, 0.0),
        (False, False, 0, False, 30.0, 30.0),
        (False, False, 0, False, FINISH, FINISH),
        # Everything had been said: there is nothing to wait for, whatever was granted.
        (False, True, 0, False, 30.0, 0.0),
        (False, True, 0, False, FINISH, 0.0),
        # Somebody else reads it, or a job holds it.
        (False, False, 1, False, 0.0, FINISH),
        (False, True, 1, False, 0.0, FINISH),
        (False, False, 0, True, 0.0, FINISH),
        (False, True, 0, True, 0.0, FINISH),
        (False, False, 2, True, 0.0, FINISH),
        # It has ended by itself.
        (True, True, 0, False, 0.0, FINISH),
        (True, False, 0, False, 0.0, FINISH),
    ],
)
def test_how_long_a_call_goes_on_when_a_reader_has_left(ended, over, readers, held, patience, seconds):
    given = {"ended": ended, "over": over, "readers": readers, "held": held}
    assert lease(**given, patience=patience) == seconds
    # Nobody can come back to a process that drains; what was to be finished, is.
    drained = 0.0 if 0 < seconds < FINISH else seconds
    assert lease(**given, patience=patience, draining=True) == drained


@pytest.mark.parametrize(
    ("accept", "last", "takes"),
    [
        (None, None, False),
        ("*/*", None, False),
        ("application/json", None, False),
        ("text/*", None, False),
        ("text/event-stream", None, True),
        ("Text/Event-Stream", None, True),
        ("application/json, text/event-stream;charset=utf-8", None, True),
        ("text/event-stream;q=0", None, False),
        ("text/event-stream; q=0, */*", None, False),
        ("text/event-streams", None, False),
        (None, "s:1", True),
        ("application/json", "", True),
    ],
)
def test_who_gets_event_ids(accept, last, takes):
    fields = {b"accept": accept and accept.encode(), b"last-event-id": last is not None and last.encode()}
    given = {name: value for name, value in fields.items() if isinstance(value, bytes)}
    assert takes_ids(given) is takes


@pytest.mark.parametrize(
    ("control", "shares"),
    [
        (b"", True),
        (b"max-age=5", True),
        (b"no-store", False),
        (b"No-Cache", False),
        (b"max-age=5 , no-cache=x", False),
        (b"no-storey", True),
    ],
)
def test_who_shares_a_call(control, shares):
    assert wish({b"cache-control": control}).read is shares
    assert wish({}).read


@pytest.mark.parametrize(
    ("ended", "retained", "plain", "coding", "operation", "joins"),
    [
        (False, True, True, True, True, True),
        (False, True, True, False, True, True),
        # It may turn out to be compressed, in a way that only some can read.
        (False, True, False, True, True, True),
        (False, True, False, False, True, False),
        (True, True, True, True, True, False),
        (False, False, True, True, True, False),
        # They say themselves that they are two.
        (False, True, True, True, False, False),
    ],
)
def test_which_calls_can_be_joined(ended, retained, plain, coding, operation, joins):
    found = may_join(
        ended=ended, retained=retained, plain=plain, same_coding=coding, same_operation=operation
    )
    assert found is joins


@pytest.mark.parametrize(
    ("name", "before", "same"),
    [(None, None, True), (b"a", None, True), (None, b"a", True), (b"a", b"a", True), (b"a", b"b", False)],
)
def test_what_may_be_one_operation(name, before, same):
    assert same_operation(name, before) is same


@pytest.mark.parametrize(
    ("count", "retry"),
    [
        (None, False),
        (b"0", False),
        (b"1", True),
        (b"12", True),
        (b"-1", False),
        (b"x", False),
        (b"9" * 5000, True),
    ],
)
def test_what_an_sdk_calls_a_retry(count, retry):
    assert is_retry({} if count is None else {b"x-stainless-retry-count": count}) is retry


@pytest.mark.parametrize(
    ("fault", "begun", "again"),
    [
        (UNREACHABLE, False, True),
        (Fault("upstream_timeout", ""), False, True),
        (Fault("upstream_closed", ""), False, True),
        (Fault("upstream_closed", ""), True, False),
        (Fault("stopped", ""), False, False),
        (Fault("draining", ""), False, False),
        (None, False, False),
    ],
)
def test_whose_joined_call_is_worth_another(fault, begun, again):
    assert starts_again(fault, begun=begun) is again


EVENT_SOURCE = {b"accept": b"text/event-stream", b"cache-control": b"no-cache", b"last-event-id": b"s:1"}


@pytest.mark.parametrize(
    ("method", "without", "away"),
    [("GET", None, True), ("POST", None, False), *[("GET", name, False) for name in EVENT_SOURCE]],
)
def test_who_is_told_not_to_come_back(method, without, away):
    fields = {name: value for name, value in EVENT_SOURCE.items() if name != without}
    assert stays_away(method, fields) is away


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
    "unauthorized": (401, Outcome.REFUSED),
    "forbidden": (403, Outcome.REFUSED),
    "rate_limited": (429, Outcome.REFUSED),
    "method_not_allowed": (405, Outcome.REFUSED),
    "job_unfinished": (409, Outcome.REFUSED),
    "stopped": (410, Outcome.CANCELLED),
    "gone": (410, Outcome.REFUSED),
    "body_too_large": (413, Outcome.REFUSED),
    "answer_too_large": (502, Outcome.REFUSED),
    "interrupted": (502, Outcome.REFUSED),
    "jobs_unavailable": (503, Outcome.REFUSED),
    "request_timeout": (408, Outcome.REFUSED),
    "headers_too_large": (431, Outcome.REFUSED),
    "internal": (500, Outcome.REFUSED),
    "app_failed": (500, Outcome.TRUNCATED),
    "upgrade_unsupported": (501, Outcome.REFUSED),
    "upstream_unreachable": (502, Outcome.UPSTREAM_ERROR),
    "upstream_protocol": (502, Outcome.UPSTREAM_ERROR),
    "upstream_closed": (502, Outcome.TRUNCATED),
    "upstream_incomplete": (502, Outcome.TRUNCATED),
    "upstream_refused": (502, Outcome.UPSTREAM_ERROR),
    "overloaded": (503, Outcome.REFUSED),
    "draining": (503, Outcome.REFUSED),
    "not_cached": (504, Outcome.REFUSED),
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
