"""sidecar.cli.cache: what leaves the store as lines comes back as it was, and no line is trusted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli.cache_import import _Import
from sidecar.config import load
from sidecar.core.entry import pointed, unseal
from sidecar.stores.base import Near
from sidecar.stores.memory import MemoryStore
from tests.cli.cache_rig import ALICE, BOB, BODY, CHAT, STREAM, alias_of, key_of, keys_in, put, some, store_in
from tests.cli.conftest import finished

SECRET = b"s" * 32
MOST = 1 << 20


@pytest.fixture
def folder(clean):
    made = clean / "data"
    some(made)
    (made / "secret").write_bytes(SECRET)
    return made


@pytest.fixture
def cache(cli, folder):
    return lambda *arguments, **given: cli("cache", *arguments, "--data-dir", str(folder), **given)


@pytest.fixture
def brought(cache, clean):
    """`brought(line, ...)`: what importing these lines says; the store is empty before."""

    def bring(*lines, given=(), **environment):
        cache("purge", "--all")
        text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (clean / "lines").write_bytes(b"\n".join(text))
        return cache("import", str(clean / "lines"), *given, **environment)

    return bring


def exported(cache, *given):
    code, out, _ = cache("export", *given)
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def contents(folder):
    """Every key with its blob, and its tag."""
    with store_in(folder) as store:
        return {row.key: (store.get(row.key), row.tag) for row in store.rows(0)}


def line(**changes):
    """What export writes of an answer; `known__x` changes what is known."""
    facts = {name[7:]: value for name, value in changes.items() if name.startswith("known__")}
    known = {
        "status": 200,
        "reason": "OK",
        "headers": [["Content-Type", "application/json"]],
        "stored": time.time() - 60,
        "ttl": 3600,
        "dialect": "openai.chat",
        "path": CHAT,
        "upstream": "openai",
        "model": "m",
        "tag": ALICE,
    }
    rest = {name: value for name, value in changes.items() if not name.startswith("known__")}
    return {"key": "ab" * 32, "known": known | facts, "body": BODY.decode()} | rest


# Export.


def test_a_line_is_all_there_is_of_an_answer(cache):
    found = {each["key"]: each for each in exported(cache)}
    assert len(found) == 5
    two = found[key_of("two").hex()]
    assert set(two) == {"key", "known", "body", "events", "aliases", "installation"}
    assert two["body"] == STREAM.decode()
    assert two["events"][-1] == len(STREAM)
    assert two["aliases"] == [alias_of("two").hex()]
    assert two["known"]["tag"] == BOB
    assert ["X-Request-Id", "req_1"] in two["known"]["headers"]
    assert SECRET.hex() not in json.dumps(found)


def test_what_is_no_text_is_exported_as_base64(cache, folder):
    with store_in(folder) as store:
        put(store, "bytes", body=b"\xff\x00", alias=False)
    (found,) = [each for each in exported(cache) if each["key"] == key_of("bytes").hex()]
    assert (found["body_base64"], "body" in found) == ("/wA=", False)


def test_an_answers_question_stays_where_it_is(cache, folder, clean):
    """What comes in is found by identical requests only; what is there keeps its question."""
    with store_in(folder) as store:
        store.note(key_of("one"), Near(bytes(32), b"the-vector", b"the-traits"))
    lines = clean / "lines"
    assert cache("export", "--output", str(lines)).code == 0
    assert b"the-" not in lines.read_bytes()
    assert "identical requests only" in " ".join(cache("import", "--help").out.split())
    for purged, there in ((False, 1), (True, 0)):
        if purged:
            cache("purge", "--all")
        assert cache("import", str(lines)).code == 0
        with store_in(folder) as store:
            assert store.stats().vectors == there


def test_export_takes_the_filters_of_list(cache):
    assert {each["key"] for each in exported(cache, "--tenant", BOB, "--model", "m")} == {
        key_of("two").hex(),
        key_of("five").hex(),
    }
    assert exported(cache, "--path", "/none") == []


def test_a_file_is_the_owners_alone_and_is_not_overwritten(cache, clean):
    target = clean / "answers.jsonl"
    assert cache("export", "--output", str(target)) == (0, "", "5 answers exported\n")
    assert target.stat().st_mode & 0o777 == 0o600
    assert len(target.read_bytes().splitlines()) == 5
    target.write_bytes(b"mine")
    target.chmod(0o644)
    code, out, err = cache("export", "--output", str(target))
    assert (code, out, err) == (
        2,
        "",
        f"slipstream: {target}: exists; choose another name, or overwrite it with --force\n",
    )
    assert target.read_bytes() == b"mine"
    assert cache("export", "--output", str(target), "--force").code == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert len(target.read_bytes().splitlines()) == 5
    assert {path.name for path in clean.iterdir()} == {"data", "answers.jsonl"}


def test_a_device_is_written_to_and_left_as_it_is(cache):
    assert cache("export", "--output", os.devnull, "--force").code == 0
    assert Path(os.devnull).is_char_device()


def test_a_file_that_cannot_be_made_is_one_line_and_exit_1(cache, clean):
    code, out, err = cache("export", "--output", str(clean / "none" / "file"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "No such file" in err


def test_a_damaged_answer_is_left_out_and_exit_1(cache, folder):
    with store_in(folder) as store:
        blob = store.get(key_of("one"))
        store.put(key_of("one"), blob[:-1] + b"?", tag=ALICE, seconds=60.0)
    code, out, err = cache("export")
    assert (code, len(out.splitlines())) == (1, 4)
    assert "1 answer left out" in err


def test_an_answer_with_very_long_headers_is_one_too(cache, folder):
    with store_in(folder) as store:
        long = tuple((f"X-{number}", "v" * 1000) for number in range(40))
        put(store, "long", headers=(("Content-Type", "application/json"), *long), model="long")
    assert len(exported(cache, "--model", "long")[0]["known"]["headers"]) == 41
    assert cache("stats", "--json").out.count('"unreadable": 0') == 1


# There and back.


def test_what_was_exported_comes_back_as_it_was(cache, folder, clean):
    before = contents(folder)
    target = str(clean / "answers.jsonl")
    assert cache("export", "--output", target).code == 0
    assert cache("purge", "--all").code == 0
    assert contents(folder) == {}
    assert cache("import", target) == (0, "5 imported, 0 skipped (expired), 0 refused\n", "")
    after = contents(folder)
    assert set(after) == set(before)
    for key, (blob, tag) in before.items():
        assert after[key][1] == tag
        if len(key) == 33:
            assert pointed(key, after[key][0]) == pointed(key, blob)
            continue
        was, now = unseal(key, blob), unseal(key, after[key][0])
        assert (now.body, now.events, now.known.headers) == (was.body, was.events, was.known.headers)
        assert (now.known.stored, now.known.ttl, now.known.model) == (
            was.known.stored,
            was.known.ttl,
            was.known.model,
        )
    # Once read and written, nothing changes any more.
    once = exported(cache)
    cache("export", "--output", target, "--force")
    assert cache("import", target).code == 0
    assert {each["key"]: each for each in exported(cache)} == {each["key"]: each for each in once}


def test_a_pipe_will_do(folder, clean):
    data = ["--data-dir", str(folder)]
    done = finished("cache", "export", *data)
    assert finished("cache", "purge", "--all", *data).code == 0
    imported = subprocess.run(
        [sys.executable, "-m", "sidecar", "cache", "import", "-", *data],
        input=done.out, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert imported.stdout == "5 imported, 0 skipped (expired), 0 refused\n"
    assert "\x1b" not in done.err + imported.stderr
    assert len(keys_in(folder)) == 9


def test_import_makes_the_store(cli, clean):
    (clean / "lines").write_text(json.dumps(line()) + "\n")
    done = cli("cache", "import", str(clean / "lines"), "--data-dir", str(clean / "new" / "data"))
    assert done.out == "1 imported, 0 skipped (expired), 0 refused\n"
    assert keys_in(clean / "new" / "data") == {b"\xab" * 32}
    assert (clean / "new" / "data").stat().st_mode & 0o777 == 0o700


def test_time_goes_on_while_an_answer_is_in_a_file(brought, cache, folder):
    now = time.time()
    lines = [
        line(key="01" * 32, known__stored=now - 3500),
        line(key="02" * 32, known__stored=now - 3700),
        line(key="03" * 32, known__stored=now + 60),
        line(key="04" * 32, known__ttl=0),
    ]
    code, out, err = brought(*lines)
    assert (code, out) == (1, "1 imported, 2 skipped (expired), 1 refused\n")
    assert err == "line 3 refused: stored in the future: is the clock right? --fresh takes it as stored now\n"
    (kept,) = [json.loads(each) for each in cache("list", "--json").out.splitlines()]
    assert kept["key"] == "01" * 32
    assert 90 < kept["expires"] - time.time() <= 100


def test_fresh_takes_answers_as_stored_now(brought, cache):
    before = time.time()
    done = brought(line(known__stored=before - 9999), given=["--fresh"])
    assert done.out == "1 imported, 0 skipped (expired), 0 refused\n"
    (kept,) = [json.loads(each) for each in cache("list", "--json").out.splitlines()]
    assert before <= kept["stored"] <= time.time()


def test_stale_answers_are_kept_where_they_are_of_use(brought, cache):
    old = line(known__stored=time.time() - 3700)
    assert brought(old, SLIPSTREAM_CACHE__STALE_IF_ERROR="1h").out.startswith("1 imported")
    assert "stale" in cache("list").out


def test_another_installations_keys_are_of_no_use(brought, cache, folder):
    (made,) = exported(cache)[:1]
    assert brought(made).code == 0
    (folder / "secret").write_bytes(b"t" * 32)
    code, out, err = brought(made)
    assert (code, out) == (1, "0 imported, 0 skipped (expired), 1 refused\n")
    assert "the file `secret` here is another one" in err


# Lines that are not to be trusted.

PROMPT = "a prompt that nobody may see"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{", "not a JSON object"),
        (b'"' + PROMPT.encode() + b'"', "expected `object`, got `str`"),
        (b"[]", "expected `object`, got `array`"),
        (b"\xff\xfe{}", "not a JSON object"),
        (b'{"key": "\xff"}', "not a JSON object"),
        (b'{"key":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        ({}, "neither what export writes nor a request"),
        ({"prompt": PROMPT}, "neither what export writes nor a request"),
        (line(key=PROMPT), "expected `str` at $.key"),
        (line(key="AB" * 32), "expected `str` at $.key"),
        (line(key="ab" * 31), "expected `str` at $.key"),
        (line(key="ab" * 32 + "\n"), "expected `str` at $.key"),
        (line(key=7), "expected `str`, got `int` at $.key"),
        (line(body=None), "either body or body_base64"),
        (line(body_base64="AA=="), "either body or body_base64"),
        (line(body=None, body_base64=PROMPT), "$.body_base64"),
        (line(body=None, body_base64="//8="), "cannot be read"),
        (line(body=PROMPT), "cannot be read"),
        (line(body=""), "not complete"),
        (line(body=STREAM.decode()), "cannot be read"),
        (line(body='{"error": {"type": "' + PROMPT + '"}}'), "an error of the provider's"),
        (line(body='{"choices": []}'), "not complete"),
        (line(body=BODY.decode().replace('"stop"', '"length"')), "did not end of its own accord"),
        (line(events=[5, 4]), "none of a stored answer"),
        (line(events=[1 << 20]), "none of a stored answer"),
        (line(events=[-1]), "$.events[0]"),
        (line(events=[1 << 40]), "$.events[0]"),
        (line(events=PROMPT), "expected `array`, got `str` at $.events"),
        (line(aliases=["ab" * 32]), "$.aliases[0]"),
        (line(aliases=[7]), "$.aliases[0]"),
        (line(known=None), "$.known"),
        (line(known={"status": 200}), "missing required field"),
        (line(known__status=500), "none of a stored answer"),
        (line(known__status=204), "none of a stored answer"),
        (line(known__ttl=-1), "none of a stored answer"),
        (line(known__ttl="1"), "$.known.ttl"),
        (line(known__reason="OK\r\nX: y"), "cannot be printed"),
        (line(known__reason="OK\x1b[2J"), "cannot be printed"),
        (line(known__path="/v1/chat/completions\x1b"), "none of a model's API"),
        (line(aliases=["00"] * 9), "$.aliases"),
        (line(known__reason="\u4f60"), "cannot be printed"),
        (line(known__tag="x"), "16 hexadecimal digits"),
        (line(known__tag="a" * 16 + "\n"), "16 hexadecimal digits"),
        (line(known__path="/v1/files"), "none of a model's API"),
        (line(known__path=""), "none of a model's API"),
        (line(known__query="key=sk-1"), "none of a model's API"),
        (line(known__first_kind=PROMPT), "$.known.first_kind"),
        (line(known__headers=[["X", "a\r\nSet-Cookie: b"]]), "character that is not allowed"),
        (line(known__headers=[["X: a\r\nY", "b"]]), "character that is not allowed"),
        (line(known__headers=[["X", "a\x00"]]), "character that is not allowed"),
        (line(known__headers=[["", "a"]]), "character that is not allowed"),
        (line(known__headers=[["X", "\u4f60"]]), "character that is not allowed"),
        (line(known__headers=[["X"]]), "$.known.headers[0]"),
        (line(known__headers=[["Content-Length", "7"]]), "Content-Length is not the length"),
        (line(known__headers=[["Content-Length", "7"], ["Content-Length", "7"]]), "Content-Length is not"),
        (line(known__headers=[["Content-Encoding", "gzip"]]), "compressed"),
        (line(known__headers=[["Cache-Control", "no-store"]]), "the upstream says"),
        (line(known__headers=[["Content-Type", "text/event-stream"]]), "not complete"),
    ],
)
def test_a_damaged_line_is_refused_and_the_rest_is_not(brought, folder, bad, said):
    code, out, err = brought(bad, line(key="cd" * 32))
    assert (code, out) == (1, "1 imported, 0 skipped (expired), 1 refused\n")
    assert err.startswith("line 1 refused: ")
    assert said in err
    assert err.count("\n") == 1
    assert PROMPT not in err
    assert keys_in(folder) == {b"\xcd" * 32}


def test_what_belongs_to_one_connection_is_not_stored(brought, cache):
    named = [["Transfer-Encoding", "chunked"], ["Connection", "close, X-Hop"], ["X-Hop", "1"]]
    named += [["Set-Cookie", "a=b"], ["Age", "5"], ["X-Kept", "yes"]]
    assert brought(line(known__headers=named)).code == 0
    assert exported(cache)[0]["known"]["headers"] == [["X-Kept", "yes"]]


def test_what_is_known_is_read_anew(brought, cache):
    huge = 1 << 70
    made = line(
        body=STREAM.decode(),
        known__headers=[["Content-Type", "text/event-stream"]],
        known__stream=True,
        known__events=huge,
        known__input_tokens=huge,
        known__deltas=-1,
        known__ids_until=huge,
        known__model="m" * 5000,
        known__gap=0.02,
        events=[3],
    )
    assert brought(made).code == 0
    (found,) = exported(cache)
    known = found["known"]
    assert (known["events"], known["deltas"], known["ids_until"], known["input_tokens"]) == (3, 1, None, None)
    assert (known["gap"], len(known["model"]), found["events"][-1]) == (0.02, 128, len(STREAM))


def test_the_policy_here_goes_for_what_was_stored_there(brought):
    cut = line(body=BODY.decode().replace('"stop"', '"length"'))
    assert brought(cut, SLIPSTREAM_CACHE__FINISH="length").code == 0
    assert "cache.ttl" in brought(line(), SLIPSTREAM_CACHE__TTL="0").err
    assert "cache.largest" in brought(line(), SLIPSTREAM_CACHE__LARGEST="100").err


def test_an_upstreams_own_terms_go_for_its_answers(brought, clean):
    config = clean / "slipstream.toml"
    config.write_text(
        '[[upstreams]]\nname = "local"\nurl = "http://127.0.0.1:9"\nheader = "X-Local"\ncache = { ttl = 0 }\n'
        '[[upstreams]]\nname = "openai"\nurl = "http://127.0.0.1:9"\n'
    )
    lines = [line(), line(known__upstream="local"), line(known__upstream="unknown")]
    code, out, err = brought(*lines, given=["--config", str(config)])
    assert (code, out) == (1, "2 imported, 0 skipped (expired), 1 refused\n")
    assert err.startswith("line 2 refused")


def test_a_huge_line_is_refused_without_being_read_whole(brought, folder, clean):
    huge = b'{"key": "' + b"x" * (40 * MOST) + b'"}'
    limited = {"SLIPSTREAM_CACHE__LARGEST": "1MiB"}
    code, out, err = brought(huge, line(), huge, **limited)
    assert (code, out) == (1, "1 imported, 0 skipped (expired), 2 refused\n")
    assert [each.partition(":")[0] for each in err.splitlines()] == ["line 1 refused", "line 3 refused"]
    assert "cache.largest" in err
    # The same with so little memory that a line as a whole would not fit.
    (clean / "lines").write_bytes(huge + b"\n" + json.dumps(line()).encode())
    script = (
        "import resource, sys, tracemalloc; from sidecar.cli.main import main; import sidecar.cli.cache_import\n"
        "tracemalloc.start()\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 1\n"
        "assert tracemalloc.get_traced_memory()[1] < 20 << 20, tracemalloc.get_traced_memory()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "cache", "import", str(clean / "lines"), "--data-dir", str(folder)],
        env={**os.environ, **limited}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1 imported, 0 skipped (expired), 1 refused\n"), done.stderr


def test_only_so_many_lines_are_told_of(brought):
    code, out, err = brought(*[b"{"] * 50)
    assert (code, out) == (1, "0 imported, 0 skipped (expired), 50 refused\n")
    assert len(err.splitlines()) == 21
    assert err.splitlines()[-1] == "and 30 more lines were refused"


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\r\n"])
def test_an_empty_file_is_no_mistake(brought, content):
    assert brought(content) == (0, "0 imported, 0 skipped (expired), 0 refused\n", "")


def test_files_of_windows_are_read_too(brought, clean, cache):
    text = b"\xef\xbb\xbf" + json.dumps(line()).encode() + b"\r\n\r\n" + json.dumps(line()).encode() + b"\r\n"
    assert brought(text).out == "2 imported, 0 skipped (expired), 0 refused\n"


@pytest.mark.parametrize("name", ["none", "data"])
def test_a_file_that_cannot_be_read_is_one_line(cli, clean, name):
    (clean / "data").mkdir()
    code, out, err = cli("cache", "import", name, "--data-dir", str(clean / "new"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (clean / "new").exists()


def test_a_damaged_secret_is_one_line_and_exit_2(brought, folder):
    (folder / "secret").write_bytes(b"short")
    code, out, err = brought(line())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is damaged: remove it" in err


def test_a_store_that_fails_says_how_far_it_got(brought, monkeypatch):
    from sidecar.stores.disk import DiskStore, StoreError

    put, tries = DiskStore.put, []

    def fails(self, *given, **more):
        tries.append(1)
        if len(tries) > 1:
            raise StoreError("answers: the disk is full")
        put(self, *given, **more)

    monkeypatch.setattr(DiskStore, "put", fails)
    code, out, err = brought(line(key="01" * 32), line(key="02" * 32), line(key="03" * 32))
    assert (code, out) == (1, "1 imported, 0 skipped (expired), 0 refused\n")
    assert "the disk is full" in err


# Whatever a line holds, the next one is read.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WARM = {
    "request": {
        "path": CHAT,
        "headers": {"Authorization": "Bearer x"},
        "body": {"model": "m", "messages": []},
    },
    "response": {"status": 200, "headers": {"X": "y"}, "body": json.loads(BODY)},
    "ttl": 5,
}


def places(value, path=()):
    """Where in a JSON document something else might stand."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in inner:
        yield from places(member, (*path, name))


def changed(value, path, other):
    if not path:
        return other
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], other)
    return copy


@pytest.fixture(scope="module")
def work():
    config = load({"server.upstream": "http://127.0.0.1:9"}, environment={}).config
    return _Import(config, SECRET, [], MemoryStore(1 << 20), fresh=False)


@given(data=st.data(), good=st.sampled_from([line(events=[4], aliases=["ab" * 33]), WARM]), other=JSON)
def test_no_line_stops_an_import(work, data, good, other):
    path = data.draw(st.sampled_from([*places(good)]))
    before = work.imported + work.skipped + work.refused
    work.line(1, json.dumps(changed(good, path, other)).encode())
    assert work.imported + work.skipped + work.refused == before + 1


@given(data=st.data(), good=st.sampled_from([line(events=[4], aliases=["ab" * 33]), WARM]))
def test_no_damage_stops_an_import(work, data, good):
    raw = json.dumps(good).encode()
    at = data.draw(st.integers(0, len(raw)))
    length = data.draw(st.integers(0, 8))
    damage = data.draw(st.binary(max_size=8))
    work.line(1, raw[:at] + damage + raw[at + length :])
