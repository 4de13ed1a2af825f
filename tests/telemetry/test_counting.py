"""sidecar.telemetry.counting and cachecounts: which counters moves a request, a call or a
job that has ended, and which not."""

import itertools
from typing import get_args

import pytest

from sidecar.core.caching import Reason
from sidecar.core.errors import KINDS
from sidecar.core.latency import NOTHING, Aside
from sidecar.core.types import Outcome
from sidecar.telemetry.cachecounts import read_counts
from sidecar.telemetry.counting import Call, Counting, error_type, phase_of
from sidecar.telemetry.families import BY_NAME
from sidecar.telemetry.metrics import Metrics
from tests.telemetry.lines_rig import OPEN, PLACES, call, families, gaps, line, moved, samples

CALL = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "gen_ai_request_model": "m",
    "gen_ai_response_model": "m-1",
    "server_address": "api.a.test",
    "server_port": "443",
}
AT = {"upstream": "a", "cache": "miss"}
OF_CALLS = ("gen_ai_", "slipstream_upstream_", "slipstream_stalls_")
"""Names of what only calls move."""


def counted(*given):
    """What these calls, lines with what is beside them, and ends of jobs move, in a process that has counted
    others before."""
    counting = Counting(Metrics(), PLACES)
    counting.request(line(model="seen", response_model="seen-1", cache="off"), NOTHING)
    counting.call(call(model="seen", response_model="seen-1", upstream="b"))
    before = samples(families(counting.metrics))
    for made in given:
        if isinstance(made, Call):
            counting.call(made)
        elif isinstance(made, str):
            counting.job(made)
        else:
            counting.request(*made)
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


# What an upstream did.


def test_a_call():
    assert counted(call()) == provider_call()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Whole, and little is known of it.
        ({"first": None}, provider_call(ttft=False)),
        ({"first": 0.0, "input_tokens": 0, "output_tokens": 0}, provider_call()),
        ({"input_tokens": None, "output_tokens": None}, provider_call(tokens=False)),
        ({"response_model": None}, provider_call(gen_ai_response_model="")),
        ({"model": None}, provider_call(gen_ai_request_model="")),
        # Given up.
        ({"complete": False}, provider_call()),
        (
            {"complete": False, "first": None, "input_tokens": None, "output_tokens": None},
            provider_call(ttft=False, tokens=False),
        ),
        # No model was called.
        (
            {"provider": None, "operation": None, "model": None, "response_model": None, "first": None},
            {"slipstream_upstream_calls_total": ({"upstream": "a"}, 1)},
        ),
        ({"retries": 2}, {**provider_call(), "slipstream_upstream_retries_total": ({"upstream": "a"}, 2)}),
    ],
)
def test_a_call_that_no_error_ended(changes, expected):
    assert counted(call(**changes)) == expected


def test_where_an_upstream_is_that_is_not_known():
    found = counted(call(upstream="elsewhere"))
    labels, _ = found["gen_ai_client_operation_duration_seconds_count"]
    assert labels == {name: value for name, value in CALL.items() if not name.startswith("server_")}
    assert found["slipstream_upstream_calls_total"] == ({"upstream": "elsewhere"}, 1)
    assert counted(call(upstream=None))["slipstream_upstream_calls_total"] == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stopped"])  # that is given up
@pytest.mark.parametrize("operation", ["chat", None])
def test_a_call_that_ended_with_a_fault(kind, operation):
    """Only those that the upstream, or an app, is to blame for count as theirs."""
    found = counted(
        call(error=kind, complete=False, operation=operation, input_tokens=None, output_tokens=None)
    )
    theirs = kind.startswith(("upstream_", "app_"))
    of_model = provider_call(kind, tokens=False)
    assert found == {
        **(of_model if operation else {"slipstream_upstream_calls_total": ({"upstream": "a"}, 1)}),
        **(failed(kind) if theirs else {}),
        **({"slipstream_stalls_total": ({"upstream": "a"}, 1)} if kind == "upstream_stalled" else {}),
    }


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413, 429, 500, 503, 529])
def test_a_call_that_the_upstream_answered_with_an_error(status):
    made = call(error=str(status), first=None, response_model=None, input_tokens=None, output_tokens=None)
    assert counted(made) == {
        **provider_call(str(status), ttft=False, tokens=False, gen_ai_response_model=""),
        **failed(str(status)),
    }


def test_an_answer_in_which_the_upstream_reports_an_error():
    found = counted(call(error="upstream_error"))
    assert found == {**provider_call("upstream_error"), **failed("upstream_error")}


def test_how_long_a_call_took_and_what_it_used():
    counting = Counting(Metrics(), PLACES)
    counting.call(call(total=2.5, first=0.25))
    counting.call(call(total=0.5, first=None, output_tokens=None))
    counting.call(call(total=4.0, error="503", first=None, input_tokens=None, output_tokens=None))
    found = samples(families(counting.metrics))

    def total(name, **more):
        return found[f"gen_ai_client_{name}_sum", tuple(sorted((CALL | more).items()))]

    assert total("operation_duration_seconds") == pytest.approx(3.0)
    assert total("operation_duration_seconds", error_type="503") == pytest.approx(4.0)
    assert total("time_to_first_chunk_seconds") == pytest.approx(0.25)
    assert total("token_usage", gen_ai_token_type="input") == 20
    assert total("token_usage", gen_ai_token_type="output") == 40


def test_gaps_of_a_call_are_all_counted():
    found = counted(call(gaps=gaps(0.001, 0.02, 0.02)))
    assert found.pop("gen_ai_client_time_per_output_chunk_seconds_count") == (CALL, 3)
    assert found == provider_call()
    counting = Counting(Metrics(), PLACES)
    thinned = gaps(*[0.02] * 9000)
    counting.call(call(gaps=thinned))
    told = families(counting.metrics)["gen_ai_client_time_per_output_chunk_seconds"].samples
    values = {sample.labels.get("le", sample.name[-6:]): sample.value for sample in told}
    kept, weight = thinned.kept
    assert values["_count"] == values["0.02"] == len(kept) * weight
    assert values["0.01"] == 0
    assert values["ds_sum"] == pytest.approx(0.02 * len(kept) * weight, rel=1e-6)


@pytest.mark.parametrize(
    ("silences", "error", "expected"),
    [
        ([], None, 0),
        ([0.02, 4.999], None, 0),
        ([0.02, 5.0], None, 1),
        ([5.001], None, 1),
        ([9.0, 0.02, 6.0], None, 2),
        # The last silence was its end.
        ([], "upstream_stalled", 1),
        ([6.0, 0.02], "upstream_stalled", 2),
        ([6.0], "upstream_closed", 1),
        ([4.0], "upstream_timeout", 0),
        # One that was not kept, among very many.
        ([0.02, 9.0, *[0.02] * 9000], None, 1),
    ],
)
def test_stalls(silences, error, expected):
    for operation in ("chat", None):
        made = call(gaps=gaps(*silences), error=error, operation=operation)
        found = counted(made).get("slipstream_stalls_total")
        assert found == (({"upstream": "a"}, expected) if expected else None)


def test_calls_add_up():
    found = counted(call(retries=2), call(), call(error="503", complete=False), call(upstream="b"))
    assert found["slipstream_upstream_calls_total"] == [({"upstream": "b"}, 1), ({"upstream": "a"}, 3)]
    assert found["slipstream_upstream_retries_total"] == ({"upstream": "a"}, 2)
    assert found["slipstream_upstream_errors_total"] == ({"upstream": "a", "error_type": "503"}, 1)


# What clients saw.


@pytest.mark.parametrize("cache", ["miss", "bypass", "collapsed", "off"])
def test_a_streamed_answer_of_an_upstream(cache):
    """Its call is counted when that ends, and not with it."""
    aside = Aside(gaps=gaps(0.02, 9.0))
    found = counted((line(cache=cache, retries=2, itl_max_ms=9000.0), aside))
    assert found == {**ended(cache=cache), **result(cache), **seen_by_client(at(cache))}


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


def test_a_stale_hit_is_told_apart():
    stale = line(cache="hit", cache_kind="stale", overhead_ms=None)
    assert counted((stale, NOTHING)) == {
        **ended(cache="hit"),
        **result("hit", "stale"),
        **seen_by_client(at("hit"), overhead=False),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_ended_with_a_fault(kind):
    outcome = KINDS[kind][2].value
    found = counted((line(status=502, outcome=outcome, error=kind), NOTHING))
    found.pop("slipstream_resumes_total", None)  # those kinds end no call, but a way back to one
    assert found == {
        **ended(outcome, "5xx"),
        **result(),
        **seen_by_client(),
        **(left("stream") if outcome == "cancelled" else {}),
        **({"slipstream_refused_total": ({"kind": kind}, 1)} if outcome == "refused" else {}),
    }


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 529])
def test_a_request_that_got_the_upstreams_error(status):
    made = line(status=status, outcome="upstream_error", ttft_ms=None, response_model=None)
    assert counted((made, NOTHING)) == {
        **ended("upstream_error", f"{status // 100}xx"),
        **result(),
        **seen_by_client(ttft=False),
    }


def test_what_is_no_model_call_has_no_model():
    made = line(operation=None, provider=None, model=None, response_model=None, stream=False, ttft_ms=None)
    assert counted((made, NOTHING)) == {**ended(model=None), **result(), **seen_by_client(ttft=False)}


def test_a_request_that_never_got_anywhere():
    made = line(
        **dict.fromkeys(["upstream", "provider", "operation", "model", "response_model", "overhead_ms"]),
        **dict.fromkeys(["ttft_ms", "ttfb_ms", "connect_ms", "upstream_ms", "input_tokens", "output_tokens"]),
        cache="off",
        status=404,
        outcome="refused",
        error="no_upstream",
    )
    assert counted((made, NOTHING)) == {
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
    found = counted((made, NOTHING))
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
    found = counted((line(**{"outcome": outcome, **changes}), NOTHING))
    wanted = ({"result": expected}, 1) if expected else None
    assert found.get("slipstream_resumes_total") == wanted


def test_keepalives():
    assert counted((line(keepalives=3), NOTHING), (line(), NOTHING))["slipstream_keepalives_total"] == 3


# Every combination.


@pytest.mark.parametrize("cache", ["hit", "miss", "bypass", "collapsed", "off"])
def test_every_line_is_one_request_and_one_cache_result_and_no_call(cache):
    """Whatever came of it, and however far it got."""
    given = [
        (line(cache=cache, outcome=outcome.value, status=status, stream=stream, ttft_ms=ttft, **more), aside)
        for outcome, status, stream, ttft, more, aside in itertools.product(
            Outcome,
            [None, 200, 204, 404, 502],
            [False, True],
            [None, 5.0],
            [{}, {"resumed_from": 3}, {"itl_max_ms": 9000.0, "retries": 1}],
            [NOTHING, Aside(gaps=gaps(9.0))],
        )
    ]
    found = counted(*given)
    told = {name: value if isinstance(value, list) else [value] for name, value in found.items()}

    def total(name):
        return sum(value[1] if isinstance(value, tuple) else value for value in told.get(name, ()))

    assert total("slipstream_requests_total") == len(given) == 720
    assert total("slipstream_cache_results_total") == len(given)
    assert total("slipstream_request_duration_seconds_count") == len(given)
    assert total("slipstream_time_to_first_token_seconds_count") == len(given) / 2
    assert total("slipstream_disconnects_total") == len(given) / len(Outcome)
    assert total("slipstream_refused_total") == len(given) / len(Outcome)
    assert not [name for name in found if name.startswith(OF_CALLS)]
    assert {labels.get("phase") for labels, _ in told["slipstream_disconnects_total"]} <= {
        *("request", "upstream", "body", "first_token", "stream")
    }


def test_labels_are_as_many_as_they_are_told_to_be():
    """What counts with the wrong number of labels breaks the scrape, not the request."""
    counting = Counting(Metrics(), PLACES)
    everything = line(keepalives=1, resumed_from=1)
    for outcome in Outcome:
        counting.request(everything | {"outcome": outcome.value}, Aside(saved=2.0))
    counting.call(call(gaps=gaps(0.1, 9.0), error="503", retries=1))
    counting.job("failed")
    for store in (counting.metrics._counters, counting.metrics._histograms):
        for name, series in store.items():
            for labels in series:
                assert len(labels) == len(BY_NAME[name].labels), name
                assert all(isinstance(label, str) for label in labels), name


def test_models_of_failed_requests_take_half_of_the_room():
    counting = Counting(Metrics(), PLACES)
    for number in range(200):
        made = line(model=f"made-up-{number}", response_model=None, status=404, outcome="upstream_error")
        counting.request(made, NOTHING)
    for number in range(26):
        counting.request(line(model=f"real-{number}", response_model=None), NOTHING)
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


@pytest.mark.parametrize(
    "bad", [{"error": "404"}, {"error": "upstream_closed", "complete": False}, {"complete": False}]
)
def test_models_of_failed_calls_take_half_of_the_room(bad):
    """Nor do those of calls that were given up say that there is such a model."""
    counting = Counting(Metrics(), PLACES)
    for number in range(200):
        counting.call(call(model=f"made-up-{number}", **bad))
    for number in range(26):
        counting.call(call(model=f"real-{number}"))
    name = "gen_ai_client_operation_duration_seconds_count"
    models = {}
    for (of, labels), n in samples(families(counting.metrics)).items():
        if of == name:
            model = dict(labels)["gen_ai_request_model"]
            models[model] = models.get(model, 0) + n
    assert models == {
        **{f"made-up-{number}": 1 for number in range(25)},
        **{f"real-{number}": 1 for number in range(25)},
        "other": 175 + 1,
    }


# Jobs.


@pytest.mark.parametrize("status", ["complete", "failed", "cancelled"])
def test_a_job_is_counted_by_its_end_and_its_call_by_itself(status):
    assert counted(status) == {"slipstream_jobs_ended_total": ({"status": status}, 1)}


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
