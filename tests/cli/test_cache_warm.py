"""sidecar.cli.cache: answers to requests that nobody has made yet, judged as the sidecar judges its own."""

import json

import pytest

from sidecar.core.entry import Entry, pointed, unseal
from tests.cli.cache_rig import BODY, CHAT, STREAM, store_in

ASK = {"model": "m", "messages": [{"role": "user", "content": "Who?"}]}
AUTH = {"Authorization": "Bearer sk-secret-1"}
SAID = json.loads(BODY)


@pytest.fixture
def folder(clean):
    return clean / "data"


@pytest.fixture
def warm(cli, clean, folder):
    """`warm(pair, ...)`: what importing these pairs says."""

    def bring(*pairs, given=(), **environment):
        (clean / "pairs").write_text("\n".join(json.dumps(pair) for pair in pairs))
        return cli("cache", "import", "pairs", "--data-dir", str(folder), *given, **environment)

    return bring


def pair(ask=ASK, said=SAID, path=CHAT, headers=AUTH, ttl=None, **response):
    made = {
        "request": {"path": path, "headers": headers, "body": ask},
        "response": {"body": said, **response},
    }
    return made if ttl is None else made | {"ttl": ttl}


def stored(folder) -> list[Entry]:
    with store_in(folder) as store:
        return [unseal(row.key, store.get(row.key)) for row in store.rows(0) if len(row.key) == 32]


def keys(folder):
    return {entry.key for entry in stored(folder)}


def test_a_whole_answer(warm, folder):
    assert warm(pair()) == (0, "1 imported, 0 skipped (expired), 0 refused\n", "")
    (entry,) = stored(folder)
    known = entry.known
    assert json.loads(entry.body) == SAID
    assert known.headers == (("Content-Type", "application/json"), ("Content-Length", str(len(entry.body))))
    assert (known.status, known.reason, known.stream, known.ttl) == (200, "OK", False, 3600.0)
    assert (known.upstream, known.model, known.response_model, known.finish) == (
        "openai",
        "m",
        "m-2026",
        "stop",
    )
    assert (known.input_tokens, known.output_tokens) == (9, 2)
    with store_in(folder) as store:
        (alias,) = [row.key for row in store.rows(0) if len(row.key) == 33]
        assert pointed(alias, store.get(alias)) == entry.key


def test_a_stream(warm, folder):
    assert warm(pair({**ASK, "stream": True}, STREAM.decode())).code == 0
    (entry,) = stored(folder)
    assert entry.body == STREAM
    assert (entry.known.stream, entry.known.events, entry.known.deltas) == (True, 3, 1)
    assert entry.known.headers == (("Content-Type", "text/event-stream"),)


def test_the_body_of_a_string_is_its_bytes(warm, folder):
    raw = BODY.decode().replace('"created"', ' "created"')
    assert warm(pair(json.dumps(ASK), raw)).code == 0
    assert [entry.body for entry in stored(folder)] == [raw.encode()]


@pytest.mark.parametrize(
    ("ask", "said", "path", "kind"),
    [
        (ASK, '{"message":{"role":"assistant","content":"a"},"done":false}\n{"done":true,"done_reason":"stop"}\n',
         "/api/chat", "application/x-ndjson"),
        ({"contents": []}, 'data: {"candidates":[{"finishReason":"STOP"}]}\n\n',
         "/v1beta/models/m:streamGenerateContent?alt=sse", "text/event-stream"),
        ({"contents": []}, '[{"candidates":[{"finishReason":"STOP"}]}]',
         "/v1beta/models/m:streamGenerateContent", "application/json"),
        ({"contents": []}, [{"candidates": [{"finishReason": "STOP"}]}],
         "/v1beta/models/m:streamGenerateContent", "application/json"),
        ({"input": "a"}, {"data": [], "model": "m"}, "/v1/embeddings", "application/json"),
    ],
)  # fmt: skip
def test_other_formats_have_their_content_type(warm, folder, ask, said, path, kind):
    assert warm(pair(ask, said, path)).err == ""
    (entry,) = stored(folder)
    assert dict(entry.known.headers)["Content-Type"] == kind
    assert entry.known.path == path.partition("?")[0]
    assert entry.known.query in path


def test_headers_come_along_but_for_those_of_a_connection(warm, folder):
    given = {
        "content-type": "application/json; charset=utf-8",
        "X-Request-Id": "r",
        "X-Twice": ["a", " b "],
        "Transfer-Encoding": "chunked",
        "Content-Length": "5",
        "Set-Cookie": "a=b",
    }
    assert warm(pair(headers=AUTH, said=SAID) | {"response": {"headers": given, "body": SAID}}).code == 0
    (entry,) = stored(folder)
    assert entry.known.headers == (
        ("content-type", "application/json; charset=utf-8"),
        ("X-Request-Id", "r"),
        ("X-Twice", "a"),
        ("X-Twice", "b"),
        ("Content-Length", str(len(entry.body))),
    )


# Where it is filed.


def test_each_credential_has_its_own(warm, folder):
    other = {"Authorization": "Bearer sk-secret-2"}
    assert warm(pair(), pair(headers=other), pair(headers={"x-api-key": "k"}), pair()).code == 0
    found = stored(folder)
    assert len(found) == 3
    assert len({entry.known.tag for entry in found}) == 3


def test_a_credential_for_all_comes_from_a_flag_or_the_environment(warm, folder):
    assert warm(pair()).code == 0
    before = keys(folder)
    bare = pair(headers={})
    assert warm(bare, given=["--header", "authorization:  Bearer sk-secret-1"]).err == ""
    variable = {"MY_AUTH": "Bearer sk-secret-1"}
    assert warm(bare, given=["--header-env", "Authorization=MY_AUTH"], **variable).err == ""
    assert warm(pair(), given=["--header", "AUTHORIZATION: Bearer sk-other"]).err == ""
    assert keys(folder) == before


def test_answers_for_nobody_are_warned_of(warm, folder):
    code, out, err = warm(pair(headers={}), pair())
    assert (code, out) == (0, "2 imported, 0 skipped (expired), 0 refused\n")
    assert err.startswith("requests without a credential: 1; ")
    assert err.count("\n") == 1


def test_the_same_request_has_the_same_key_however_it_is_written(warm, folder):
    spellings = [
        pair(),
        pair(json.dumps(ASK, indent=2)),
        pair(dict(reversed(ASK.items()))),
        pair(headers={**AUTH, "User-Agent": "x", "X-Stainless-Lang": "python", "Accept": "*/*"}),
        pair(headers={**AUTH, "content-type": "application/json", "Host": "elsewhere"}),
    ]
    assert warm(*spellings).out == "5 imported, 0 skipped (expired), 0 refused\n"
    assert len(stored(folder)) == 1


@pytest.mark.parametrize(
    "other",
    [
        pair({**ASK, "temperature": 0}),
        pair(headers={**AUTH, "Slipstream-Namespace": "n"}),
        pair(headers={**AUTH, "OpenAI-Organization": "o"}),
        pair(headers={**AUTH, "Content-Type": "application/json; charset=utf-8"}),
        pair(path=CHAT + "?api-version=1"),
    ],
)
def test_another_request_has_another_key(warm, folder, other):
    assert warm(pair(), other).code == 0
    assert len(stored(folder)) == 2


def test_the_configuration_says_what_counts(warm, folder, clean):
    named = pair({**ASK, "user": "u"})
    assert warm(pair(), named, SLIPSTREAM_CACHE__IGNORE="user").code == 0
    assert len(stored(folder)) == 1
    shared = pair(headers={"Authorization": "Bearer sk-secret-2"})
    assert warm(pair(), shared, SLIPSTREAM_CACHE__SHARE="upstream").code == 0
    assert len(stored(folder)) == 2
    (clean / "c.toml").write_text(
        '[[upstreams]]\nname = "mine"\nurl = "http://127.0.0.1:9"\npaths = ["/mine"]\n'
    )
    assert warm(pair(path="/mine" + CHAT), given=["--config", "c.toml"]).code == 0
    assert warm(pair(), given=["--upstream", "http://127.0.0.1:9"]).code == 0
    assert {entry.known.upstream for entry in stored(folder)} == {"openai", "mine", "default"}


def test_the_cache_may_be_off_where_the_command_runs(warm, folder):
    assert warm(pair(), SLIPSTREAM_CACHE__MODE="off").code == 0
    assert len(stored(folder)) == 1


# For how long.


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(60, 60.0), ("10m", 600.0), (0.5, 0.5), ("5h", 3600.0), (None, 3600.0)]
)
def test_a_time_to_live_may_be_shorter_than_configured(warm, folder, ttl, seconds):
    assert warm(pair(ttl=ttl)).code == 0
    with store_in(folder, ago=1) as store:
        lives = {unseal(row.key, store.get(row.key)).known.ttl for row in store.rows(0) if len(row.key) == 32}
    assert lives == {seconds}


def test_terms_are_those_of_the_path(warm, folder, clean):
    (clean / "c.toml").write_text(f'[cache.paths."{CHAT}"]\nttl = "5m"\n')
    assert warm(pair(), given=["--config", "c.toml"]).code == 0
    assert [entry.known.ttl for entry in stored(folder)] == [300.0]


# What is refused.

PROMPT = "a prompt that nobody may see"
EVENT = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def said(**changes):
    choice = SAID["choices"][0] | changes
    return pair(said=SAID | {"choices": [choice]})


def request(**changes):
    return pair() | {"request": {"path": CHAT, "headers": AUTH, "body": ASK} | changes}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (pair(status=500), "status is not 200"),
        (pair(status=204), "status is not 200"),
        (pair(status=99999), "status is not 200"),
        (pair(said={"error": {"message": PROMPT, "type": "t"}}), "error of the provider's"),
        (pair(said={"choices": []}), "not complete"),
        (pair(said=PROMPT), "cannot be read"),
        (pair(said=EVENT), "cannot be read"),
        (pair({**ASK, "stream": True}, EVENT), "not complete"),
        (pair({**ASK, "stream": True}, SAID), "not complete"),
        (pair({**ASK, "stream": True}, EVENT + "data: [DONE]"), "not complete"),
        (said(finish_reason="length"), "did not end of its own accord"),
        (said(finish_reason="content_filter"), "did not end of its own accord"),
        (said(message={"refusal": "no"}), "declined"),
        (pair(said=SAID, headers={**AUTH, "Cache-Control": "no-store"}), "request says Cache-Control"),
        (pair() | {"response": {"body": SAID, "headers": {"Cache-Control": "no-store"}}}, "upstream says"),
        (pair() | {"response": {"body": SAID, "headers": {"Content-Encoding": "gzip"}}}, "compressed"),
        (pair({**ASK, "conversation": "c"}), "depends on what the provider keeps"),
        (pair('{"model":"a","model":"b"}'), "may be read in two ways"),
        (pair(PROMPT), "no JSON object"),
        (pair("[]"), "no JSON object"),
        (pair("\ud800"), "not a JSON object on one line"),
        (pair(path="/v1/files"), "none of a model's API"),
        (pair(path="/v9/messages/none"), "none of a model's API"),
        (pair(path="/else/chat/completions"), "configure --upstream"),
        (pair(path="v1/chat/completions"), "no path such as"),
        (pair(path="http://evil" + CHAT), "no path such as"),
        (pair(path=CHAT + " HTTP/1.1\r\nX: y"), "no path such as"),
        (pair(path=CHAT + "?a b"), "no path such as"),
        (pair(headers={"Authorization": "a\r\nX: sk-secret"}), "not allowed"),
        (pair(headers={"A\r\nB": "c"}), "not allowed"),
        (pair(headers={"A": "\u4f60"}), "not allowed"),
        (pair(headers={**AUTH, "X-Big": "x" * 70_000}), "exceed"),
        (pair(headers={**AUTH, "Slipstream-Disconnect": "bogus"}), "Slipstream-Disconnect"),
        (pair() | {"response": {"body": SAID, "headers": {"X": "a\r\nSet-Cookie: b"}}}, "not allowed"),
        (pair() | {"response": {"body": SAID, "headers": {"X": ["a", "b\n"]}}}, "not allowed"),
        (pair() | {"response": {"body": SAID, "headers": {"X": 1}}}, "$.response.headers[...]"),
        (pair() | {"response": {}}, "missing required field `body` at $.response"),
        (pair() | {"response": {"body": 7}}, "response.body is neither"),
        (pair() | {"response": {"body": None}}, "response.body is neither"),
        (pair(ask=7), "request.body is neither"),
        (request(path=7), "expected `str`, got `int` at $.request.path"),
        (request(headers=[]), "$.request.headers"),
        ({"request": {"path": CHAT, "body": ASK}}, "missing required field `response`"),
        ({"request": None, "response": None}, "$.request"),
        (pair(ttl=0), "ttl: expected more than 0"),
        (pair(ttl=-1), "ttl: expected a time"),
        (pair(ttl="soon"), "ttl: expected a time"),
        (pair(ttl=True), "$.ttl"),
        (pair({**ASK, "pad": "x" * 300_000}), "give it as a string"),
    ],
)
def test_what_the_sidecar_would_not_store_is_refused_with_the_reason(warm, folder, bad, why):
    code, out, err = warm(bad, pair())
    assert (code, out) == (1, "1 imported, 0 skipped (expired), 1 refused\n")
    assert err.startswith("line 1 refused: ")
    assert why in err
    assert err.count("\n") == 1
    assert not any(hidden in err for hidden in (PROMPT, "sk-secret", "Who?"))
    assert len(stored(folder)) == 1


def test_the_policy_is_the_configured_one(warm, folder):
    call = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}
    calls = said(message=call, finish_reason="tool_calls")
    assert warm(calls).code == 0
    assert "cache.tools" in warm(calls, SLIPSTREAM_CACHE__TOOLS="false").err
    assert "cache.max_temperature" in warm(pair(), SLIPSTREAM_CACHE__MAX_TEMPERATURE="0.5").err
    assert "cache.ttl" in warm(pair(), SLIPSTREAM_CACHE__TTL="0").err
    assert "cache.largest" in warm(pair(), SLIPSTREAM_CACHE__LARGEST="100").err
    assert warm(said(finish_reason="length"), SLIPSTREAM_CACHE__FINISH="length").code == 0
    assert "limits.body" in warm(pair(), SLIPSTREAM_LIMITS__BODY="10").err


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        (["--header", "sk-secret"], {}),
        (["--header", "A B: sk-secret"], {}),
        (["--header", "A: sk-secret\r\nX: y"], {}),
        (["--header", "A: sk-secret\u4f60"], {}),
        (["--header-env", "Authorization"], {}),
        (["--header-env", "Authorization=$sk-secret"], {}),
        (["--header-env", "Authorization=NOT_SET"], {}),
        (["--header-env", "Authorization=MY_AUTH"], {"MY_AUTH": "sk-secret\nX"}),
    ],
)
def test_a_header_that_is_none_is_one_line_and_exit_2(warm, folder, given, environment):
    code, out, err = warm(pair(), given=given, **environment)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert given[0] in err
    assert "sk-secret" not in err
    assert not folder.exists()
