"""sidecar.telemetry.counting and cachecounts: which counters a request that has ended moves, and which not."""

import itertools
from typing import get_args

import pytest

from sidecar.core.caching import Reason
from sidecar.core.errors import KINDS
from sidecar.core.latency import Aside
from sidecar.core.types import Outcome
from sidecar.telemetry.cachecounts import read_counts
from sidecar.telemetry.counting import Counting, error_type, phase_of
from sidecar.telemetry.families import BY_NAME
from sidecar.telemetry.figures import gaps_of
from sidecar.telemetry.metrics import Metrics
from tests.telemetry.lines_rig import OPEN, OWN, PLACES, families, gaps, line, moved, samples

CALL = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "gen_ai_request_model": "m",
    "gen_ai_response_model": "m-1",
    "server_address": "api.a.test",
    "server_port": "443",
}
AT = {"upstream": "a", "cache": "miss"}


def counted(*given):
    """What these lines move, each with what is beside it, in a process that has counted others before."""
    counting = Counting(Metrics(), PLACES)
    seen = line(model="seen", response_model="seen-1", cache="off")
    counting.request(seen, OWN, {})
    before = samples(families(counting.metrics))
    for made, aside in given:
        counting.request(made, aside, gaps_of(aside))
    return moved(before, samples(families(counting.metrics, OPEN)))


def seen_by_client(at=AT, *, ttft=True, overhead=True):
    found = {"slipstream_request_duration_seconds_count": (at, 1)}
    if ttft:
        found["slipstream_time_to_first_token_seconds_count"] = (at, 1)
    if overhead:
        found["slipstream_overhead_seconds_count"] = (at, 1)
    return found


def ended(outcome="complete", status="2xx", cache="miss", model="m", **changes):
    labels = {
        "upstream": "a",
        "model": model,
        "outcome": outcome,
        "status": status,
        "cache": cache,
        **changes,
    }
    return {"slipstream_requests_total": ({name: value for name, value in labels.items() if value}, 1)}


def result(cache="miss", kind=None):
    labels = {"result": cache} | ({"kind": kind} if kind else {})
    return {"slipstream_cache_results_total": (labels, 1)}


def provider_call(error=None, ttft=True, tokens=True, **changes):
    """What one call to a provider moves."""
    labels = {name: value for name, value in (CALL | changes).items() if value}
    failed = labels | ({"error_type": error} if error else {})
    found = {
        "gen_ai_client_operation_duration_seconds_count": (failed, 1),
        "slipstream_upstream_calls_total": ({"upstream": "a"}, 1),
    }
    if ttft:
        found["gen_ai_client_time_to_first_chunk_seconds_count"] = (labels, 1)
    if tokens:
        kinds = [labels | {"gen_ai_token_type": kind} for kind in ("input", "output")]
        found["gen_ai_client_token_usage_count"] = [(one, 1) for one in kinds]
    return found


def failed(kind):
    return {"slipstream_upstream_errors_total": ({"upstream": "a", "error_type": kind}, 1)}


def left(phase):
    return {"slipstream_disconnects_total": ({"phase": phase}, 1)}


def at(cache, upstream="a"):
    return {"upstream": upstream, "cache": cache} if upstream else {"cache": cache}


def test_a_streamed_answer_of_an_upstream():
    found = counted((line(), OWN))
    assert found == {**ended(), **result(), **seen_by_client(), **provider_call()}


@pytest.mark.parametrize("cache", ["miss", "bypass", "off"])
def test_a_call_is_a_call_whatever_the_cache_said(cache):
    found = counted((line(cache=cache), OWN))
    assert found == {**ended(cache=cache), **result(cache), **seen_by_client(at(cache)), **provider_call()}


def test_gaps_of_a_call_are_all_counted():
    aside = Aside(own=True, gaps=gaps(0.001, 0.02, 0.02))
    found = counted((line(), aside))
    assert found.pop("gen_ai_client_time_per_output_chunk_seconds_count") == (CALL, 3)
    assert found == counted((line(), OWN))
    counting = Counting(Metrics(), PLACES)
    thinned = Aside(own=True, gaps=gaps(*[0.02] * 9000))
    counting.request(line(), thinned, gaps_of(thinned))
    told = families(counting.metrics)["gen_ai_client_time_per_output_chunk_seconds"].samples
    values = {sample.labels.get("le", sample.name[-6:]): sample.value for sample in told}
    kept, weight = thinned.gaps.kept
    assert values["_count"] == values["0.02"] == len(kept) * weight
    assert values["0.01"] == 0
    assert values["ds_sum"] == pytest.approx(0.02 * len(kept) * weight, rel=1e-6)


# What was no call.

NOT_OWN = Aside(gaps=gaps(0.02))


@pytest.mark.parametrize(
    ("changes", "aside"),
    [
        ({"cache": "collapsed", "connect_ms": None, "upstream_ms": None}, NOT_OWN),
        ({"cache": "bypass", "resumed_from": 0, "ttft_ms": None}, Aside()),
        ({"cache": "off", "resumed_from": 3, "ttft_ms": None}, Aside()),
        ({"cache": "hit", "cache_kind": "exact"}, Aside(saved=2.0)),
        ({"cache": "hit", "cache_kind": "semantic"}, Aside(saved=2.0)),
        ({"cache": "hit", "cache_kind": "stale"}, Aside(failed="503")),
    ],
)
@pytest.mark.parametrize("outcome", list(Outcome))
def test_who_joins_comes_back_or_hits_makes_no_call(changes, aside, outcome):
    found = counted((line(outcome=outcome.value, itl_max_ms=9000.0, **changes), aside))
    assert not [name for name in found if name.startswith("gen_ai_")]
    assert "slipstream_stalls_total" not in found
    calls = {"slipstream_upstream_calls_total", "slipstream_upstream_errors_total"} & found.keys()
    # The stale answer stood in for a call that was made, and failed.
    assert bool(calls) == (changes.get("cache_kind") == "stale")


@pytest.mark.parametrize("kind", ["exact", "semantic"])
def test_a_hit_saves_time_and_tokens(kind):
    hit = line(cache="hit", cache_kind=kind, total_ms=5.0)
    found = counted((hit, Aside(saved=2.0)))
    assert found == {
        **ended(cache="hit"),
        **result("hit", kind),
        **seen_by_client(at("hit")),
        "slipstream_cache_saved_seconds_total": 1.995,
        "slipstream_cache_saved_tokens_total": [
            ({"gen_ai_token_type": "input"}, 10),
            ({"gen_ai_token_type": "output"}, 40),
        ],
    }
    untold = counted((hit | {"input_tokens": None, "output_tokens": 0}, Aside(saved=0.001)))
    assert not [name for name in untold if "saved" in name]


def test_a_stale_hit_is_told_apart_and_counts_the_upstream_that_failed():
    stale = line(cache="hit", cache_kind="stale", overhead_ms=None)
    for kind in ("503", "upstream_unreachable"):
        assert counted((stale, Aside(failed=kind))) == {
            **ended(cache="hit"),
            **result("hit", "stale"),
            **seen_by_client(at("hit"), overhead=False),
            **failed(kind),
            "slipstream_upstream_calls_total": ({"upstream": "a"}, 1),
        }


# How calls fail.


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_ended_with_a_fault(kind):
    """Only those that the upstream, or an app, is to blame for count as theirs."""
    outcome = KINDS[kind][2].value
    made = line(status=502, outcome=outcome, error=kind, input_tokens=None, output_tokens=None)
    found = counted((made, OWN))
    found.pop("slipstream_resumes_total", None)  # those kinds end no call, but a way back to one
    theirs = kind.startswith(("upstream_", "app_"))
    cancelled = outcome == "cancelled"
    assert found == {
        **ended(outcome, "5xx"),
        **result(),
        **seen_by_client(),
        **provider_call(None if cancelled else kind, tokens=False),
        **(failed(kind) if theirs else {}),
        **(left("stream") if cancelled else {}),
        **({"slipstream_refused_total": ({"kind": kind}, 1)} if outcome == "refused" else {}),
    }


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413, 429, 500, 503, 529])
def test_a_call_that_the_upstream_answered_with_an_error(status):
    made = line(
        status=status,
        outcome="upstream_error",
        ttft_ms=None,
        response_model=None,
        input_tokens=None,
        output_tokens=None,
    )
    assert counted((made, OWN)) == {
        **ended("upstream_error", f"{status // 100}xx"),
        **result(),
        **seen_by_client(ttft=False),
        **provider_call(str(status), ttft=False, tokens=False, gen_ai_response_model=""),
        **failed(str(status)),
    }


def test_a_stream_in_which_the_upstream_reports_an_error():
    made = line(status=200, outcome="upstream_error")
    found = counted((made, OWN))
    assert found["slipstream_upstream_errors_total"] == ({"upstream": "a", "error_type": "upstream_error"}, 1)


def test_what_is_no_model_call_has_no_provider():
    made = line(operation=None, provider=None, model=None, response_model=None, stream=False, ttft_ms=None)
    assert counted((made, OWN)) == {
        **ended(model=None),
        **result(),
        **seen_by_client(ttft=False),
        "slipstream_upstream_calls_total": ({"upstream": "a"}, 1),
    }


def test_a_request_that_never_got_anywhere():
    made = line(
        **dict.fromkeys(["upstream", "provider", "operation", "model", "response_model", "overhead_ms"]),
        **dict.fromkeys(["ttft_ms", "ttfb_ms", "connect_ms", "upstream_ms", "input_tokens", "output_tokens"]),
        cache="off",
        status=404,
        outcome="refused",
        error="no_upstream",
    )
    assert counted((made, Aside())) == {
        **ended("refused", "4xx", "off", None, upstream=None),
        **result("off"),
        **seen_by_client(at("off", None), ttft=False, overhead=False),
        "slipstream_refused_total": ({"kind": "no_upstream"}, 1),
    }


# Clients that leave, come back, or wait.


@pytest.mark.parametrize(
    ("changes", "phase"),
    [
        ({"status": None, "connect_ms": None, "upstream_ms": None}, "request"),
        # The connection is being made: that is the upstream's time.
        ({"status": None, "connect_ms": 5.0, "upstream_ms": None}, "upstream"),
        ({"status": None, "connect_ms": 5.0, "upstream_ms": 9.0}, "upstream"),
        # It waits for the head of another's call.
        ({"status": None, "cache": "collapsed", "connect_ms": None, "upstream_ms": None}, "upstream"),
        ({"stream": True, "ttft_ms": None}, "first_token"),
        ({"stream": True}, "stream"),
        ({"stream": True, "ttft_ms": None, "resumed_from": 0}, "stream"),
        ({"stream": False, "ttft_ms": None}, "body"),
        ({"stream": False, "ttft_ms": None, "cache": "hit", "cache_kind": "exact"}, "body"),
    ],
)
def test_how_far_a_request_had_come_whose_client_left(changes, phase):
    made = line(outcome="cancelled", **changes)
    assert phase_of(made) == phase
    found = counted((made, OWN))
    assert found["slipstream_disconnects_total"] == ({"phase": phase}, 1)
    assert "slipstream_upstream_errors_total" not in found
    assert error_type(made) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "GET", "path": "/_slipstream/streams/s1", "resumed_from": 0}, "resumed"),
        ({"resumed_from": 7}, "resumed"),
        (
            {"method": "GET", "path": "/_slipstream/streams/s1", "status": 404, "error": "not_found"},
            "unknown",
        ),
        ({"method": "GET", "path": "/_slipstream/streams/s1", "status": 410, "error": "gone"}, "gone"),
        # The same request again, with the id of an event.
        ({"status": 404, "error": "not_found"}, "unknown"),
        ({"status": 410, "error": "gone"}, "gone"),
        # What is no way back.
        ({"method": "DELETE", "path": "/_slipstream/streams/s1", "status": 410, "error": "gone"}, None),
        ({"method": "GET", "path": "/_slipstream/jobs/j1", "status": 404, "error": "not_found"}, None),
        ({"method": "GET", "path": "/_slipstream/jobs/j1/result", "status": 410, "error": "gone"}, None),
        ({"method": "GET", "path": "/_slipstream/nothing", "status": 404, "error": "not_found"}, None),
        ({"status": 404, "error": "no_upstream"}, None),
        ({"status": 404, "outcome": "upstream_error"}, None),
        ({"status": 410, "outcome": "upstream_error"}, None),
    ],
)
def test_clients_that_came_back(changes, expected):
    outcome = "refused" if "error" in changes else "complete"
    found = counted((line(**{"outcome": outcome, **changes}), Aside()))
    wanted = ({"result": expected}, 1) if expected else None
    assert found.get("slipstream_resumes_total") == wanted


@pytest.mark.parametrize(
    ("longest", "aside", "expected"),
    [(4999.9, OWN, None), (5000.0, OWN, ({"upstream": "a"}, 1)), (None, OWN, None), (9000.0, Aside(), None)],
)
def test_stalls(longest, aside, expected):
    assert counted((line(itl_max_ms=longest), aside)).get("slipstream_stalls_total") == expected


def test_keepalives_and_retries():
    found = counted((line(keepalives=3, retries=2), OWN), (line(), OWN))
    assert found["slipstream_keepalives_total"] == 3
    assert found["slipstream_upstream_retries_total"] == ({"upstream": "a"}, 2)


# Every combination.


@pytest.mark.parametrize("cache", ["hit", "miss", "bypass", "collapsed", "off"])
def test_every_line_is_one_request_and_one_cache_result(cache):
    """Whatever came of it, and however far it got."""
    given = [
        (line(cache=cache, outcome=outcome.value, status=status, stream=stream, ttft_ms=ttft), aside)
        for outcome, status, stream, ttft, aside in itertools.product(
            Outcome, [None, 200, 204, 404, 502], [False, True], [None, 5.0], [Aside(), OWN]
        )
    ]
    found = counted(*given)
    told = {name: value if isinstance(value, list) else [value] for name, value in found.items()}

    def total(name):
        return sum(value[1] if isinstance(value, tuple) else value for value in told.get(name, ()))

    assert total("slipstream_requests_total") == len(given) == 240
    assert total("slipstream_cache_results_total") == len(given)
    assert total("slipstream_request_duration_seconds_count") == len(given)
    assert total("slipstream_time_to_first_token_seconds_count") == len(given) / 2
    assert total("slipstream_disconnects_total") == len(given) / len(Outcome)
    assert total("slipstream_refused_total") == len(given) / len(Outcome)
    assert total("slipstream_upstream_calls_total") == len(given) / 2
    assert total("gen_ai_client_operation_duration_seconds_count") == len(given) / 2
    assert {labels.get("phase") for labels, _ in told["slipstream_disconnects_total"]} <= {
        *("request", "upstream", "body", "first_token", "stream")
    }


def test_labels_are_as_many_as_they_are_told_to_be():
    """What counts with the wrong number of labels breaks the scrape, not the request."""
    counting = Counting(Metrics(), PLACES)
    everything = line(keepalives=1, retries=1, itl_max_ms=9000.0, resumed_from=1)
    aside = Aside(own=True, saved=2.0, gaps=gaps(0.1), failed="503")
    for outcome in Outcome:
        counting.request(everything | {"outcome": outcome.value}, aside, gaps_of(aside))
    counting.job(job())
    for store in (counting.metrics._counters, counting.metrics._histograms):
        for name, series in store.items():
            for labels in series:
                assert len(labels) == len(BY_NAME[name].labels), name
                assert all(isinstance(label, str) for label in labels), name


def test_models_of_failed_requests_take_half_of_the_room():
    counting = Counting(Metrics(), PLACES)
    for number in range(200):
        made = line(model=f"made-up-{number}", response_model=None, status=404, outcome="upstream_error")
        counting.request(made, OWN, {})
    for number in range(26):
        counting.request(line(model=f"real-{number}", response_model=None), OWN, {})
    found = samples(families(counting.metrics))
    models = {
        dict(labels)["model"]: n
        for (name, labels), n in found.items()
        if name == "slipstream_requests_total" and dict(labels)["status"] == "2xx"
    }
    assert models == {f"real-{number}": 1 for number in range(25)} | {"other": 1}
    told = {dict(labels).get("model") for (name, labels) in found if name == "slipstream_requests_total"}
    assert {name for name in told if name.startswith("made-up")} == {
        f"made-up-{number}" for number in range(25)
    }


# Jobs.


def job(**changes):
    return {
        "job_id": "j1",
        "status": "complete",
        "tenant": None,
        "path": "/v1/chat/completions",
        "model": "m",
        "queued_ms": 100.0,
        "total_ms": 1100.0,
        "events": None,
        "input_tokens": 10,
        "output_tokens": 40,
        "feature": "batch",
        "error": None,
        "upstream": "a",
        "provider": "openai",
        "operation": "chat",
        "response_model": "m-1",
        "called_ms": 1000.0,
        **changes,
    }


def jobs(*given):
    counting = Counting(Metrics(), PLACES)
    for made in given:
        counting.job(made)
    return {name: value for name, value in moved({}, samples(families(counting.metrics))).items() if value}


def test_a_job_is_a_call():
    assert jobs(job()) == {
        "slipstream_jobs_ended_total": ({"status": "complete"}, 1),
        **provider_call(ttft=False),
    }


def test_a_job_that_the_upstream_failed():
    failed_job = job(status="failed", error="upstream_closed", input_tokens=None, output_tokens=None)
    assert jobs(failed_job) == {
        "slipstream_jobs_ended_total": ({"status": "failed"}, 1),
        **provider_call("upstream_closed", ttft=False, tokens=False),
        **failed("upstream_closed"),
    }
    assert "slipstream_upstream_errors_total" not in jobs(failed_job | {"error": "interrupted"})


def test_a_job_that_was_never_begun_is_no_call():
    assert jobs(job(status="cancelled", called_ms=None, error="stopped")) == {
        "slipstream_jobs_ended_total": ({"status": "cancelled"}, 1)
    }


def test_a_job_that_is_no_model_call():
    given = job(operation=None, provider=None, model=None, response_model=None)
    assert jobs(given) == {
        "slipstream_jobs_ended_total": ({"status": "complete"}, 1),
        "slipstream_upstream_calls_total": ({"upstream": "a"}, 1),
    }


# What the cache counts.

FROM_THE_BEGINNING = {
    "slipstream_cache_stored_total": {()},
    "slipstream_store_failures_total": {
        *(("store",), ("note",), ("served",), ("lookup",), ("damaged",), ("set_aside",), ("record",))
    },
    "slipstream_embedder_failures_total": {("embed",), ("search",)},
    "slipstream_lookups_late_total": {("exact",), ("semantic",)},
    "slipstream_semantic_checked_total": {("right",), ("wrong",), ("unknown",)},
}


def test_what_alerts_look_at_is_there_before_it_happens():
    found = {}
    for name, labels, value in read_counts({}):
        assert value == 0
        found.setdefault(name, set()).add(labels)
    assert found == FROM_THE_BEGINNING


@pytest.mark.parametrize(
    ("name", "metric", "labels"),
    [
        ("stored", "slipstream_cache_stored_total", ()),
        ("store_failed", "slipstream_store_failures_total", ("store",)),
        ("note_failed", "slipstream_store_failures_total", ("note",)),
        ("served_failed", "slipstream_store_failures_total", ("served",)),
        ("lookup_failed", "slipstream_store_failures_total", ("lookup",)),
        ("lookup_damaged", "slipstream_store_failures_total", ("damaged",)),
        ("store_set_aside", "slipstream_store_failures_total", ("set_aside",)),
        ("record_failed", "slipstream_store_failures_total", ("record",)),
        ("embed_failed", "slipstream_embedder_failures_total", ("embed",)),
        ("semantic_failed", "slipstream_embedder_failures_total", ("search",)),
        ("lookup_late", "slipstream_lookups_late_total", ("exact",)),
        ("semantic_late", "slipstream_lookups_late_total", ("semantic",)),
        ("verify_right", "slipstream_semantic_checked_total", ("right",)),
        ("verify_wrong", "slipstream_semantic_checked_total", ("wrong",)),
        *[(f"not_stored_{one}", "slipstream_cache_not_stored_total", (one,)) for one in get_args(Reason)],
        ("store_purged", "slipstream_cache_not_stored_total", ("purged",)),
        ("store_skipped", "slipstream_cache_not_stored_total", ("skipped",)),
        ("semantic_skipped", "slipstream_cache_unmatched_total", ("busy",)),
        ("semantic_not_ready", "slipstream_cache_unmatched_total", ("not_ready",)),
        ("semantic_distrusted", "slipstream_cache_unmatched_total", ("distrusted",)),
        ("semantic_gone", "slipstream_cache_unmatched_total", ("gone",)),
        ("guard_numbers", "slipstream_cache_unmatched_total", ("guard_numbers",)),
        ("unmatched_long", "slipstream_cache_unmatched_total", ("long",)),
        # Answers are counted where they are given.
        ("hit_memory", None, None),
        ("hit_stale", None, None),
        ("shadow_wrong", None, None),
    ],
)
def test_a_counter_of_the_cache(name, metric, labels):
    told = {(found, of): value for found, of, value in read_counts({name: 7}) if value}
    assert told == ({(metric, labels): 7} if metric else {})
    for found, of, _ in read_counts({name: 7}):
        assert len(of) == len(BY_NAME[found].labels)
