"""sidecar.engine.rest: a call that has ended says the same as before, and nobody has to look at it."""

import asyncio
import gc

import msgspec
import orjson
import pytest

from sidecar.core.answer import Answer
from sidecar.core.dialects import recognise
from sidecar.core.latency import Labels
from sidecar.core.recording import BLOCK, Recording
from sidecar.core.types import End, Fault, Head, Intent, Outcome, Request
from sidecar.engine.pump import RETAINED, Ask, Live
from sidecar.engine.reader import Reader
from sidecar.engine.rest import lay, wake
from sidecar.serving.visit import heard
from tests.engine.rig import run

OPENAI = "/v1/chat/completions"
GEMINI = "/v1beta/models/m:streamGenerateContent"
SSE = ((b"Content-Type", b"text/event-stream"), (b"X-Request-Id", b"r"))
JSON = ((b"Content-Type", b"application/json"),)
NDJSON = ((b"Content-Type", b"application/x-ndjson"),)
COMPLETE = End(Outcome.COMPLETE)
BROKEN = End(Outcome.TRUNCATED, Fault("upstream_cut", "it was cut"))


def event(text, end="\n", finish=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"model": "m-1", "choices": [choice]}) + 2 * end.encode()


def ollama(text, *, done=False):
    return b'{"model":"m-1","message":{"role":"assistant","content":"%b"},"done":%b,"eval_count":7}\n' % (
        text,
        b"true" if done else b"false",
    )


def big(count=4000):
    return [event(f"word {number}") for number in range(count)]


USAGE = b'data: {"model":"m-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAMS = {
    "whole": (OPENAI, SSE, [event("a"), event("b"), event("c", finish="stop"), USAGE, DONE], COMPLETE),
    "of crlf, broken": (OPENAI, SSE, [event("a", "\r\n"), event("b", "\r\n"), b"data: {"], BROKEN),
    "of cr, broken": (OPENAI, SSE, [event("a", "\r"), event("b", "\r"), b"data: {}\r"], BROKEN),
    "with an error": (OPENAI, SSE, [event("a"), b'data: {"error":{"type":"overloaded"}}\n\n'], COMPLETE),
    "with ids of its own": (OPENAI, SSE, [event("a"), b"id: 7\n" + event("b"), event("c"), DONE], COMPLETE),
    "with what nobody can read": (OPENAI, SSE, [event("a"), b"data: no json\n\n", DONE], COMPLETE),
    "long": (OPENAI, SSE, [*big(), DONE], COMPLETE),
    "long, cut in an event": (OPENAI, SSE, [*big(), b"data: {"], BROKEN),
    "of lines": ("/api/chat", NDJSON, [ollama(b"a"), ollama(b"b"), ollama(b"", done=True)], COMPLETE),
    "a JSON array": (
        GEMINI,
        JSON,
        [b"[", b'{"candidates":[{"content":{"parts":[{"text":"a"}]}}]}', b"]"],
        COMPLETE,
    ),
    "of no known format": ("/else", SSE, [b"data: a\n\n", b"data: b\n\n"], COMPLETE),
    "no stream": (OPENAI, JSON, [b'{"model":"m-1","choices":[],"usage":{"prompt_tokens":3}}'], COMPLETE),
    "of lines, broken": ("/api/chat", NDJSON, [ollama(b"a"), ollama(b"b"), b'{"model"'], BROKEN),
    "a JSON array, broken": (
        GEMINI,
        JSON,
        [b"[", b'{"candidates":[{"content":{"parts":[{"text":"a"}]}}'],
        BROKEN,
    ),
    "empty": (OPENAI, SSE, [], BROKEN),
}


def ended(name, *, packed=False):
    """A call that has been made."""
    path, fields, parts, end = STREAMS[name]
    request = Request("POST", b"", path, "", (), {})
    answer = Answer(request, recognise("POST", path), Intent("m", stream=name != "no stream"))
    labels = Labels("u", "openai", "chat", "m", stream=True)
    live = Live(Recording(limit=RETAINED), answer, Ask(b"identity", b"key", alone=True), labels)
    live.name, live.fleeting = "s_1", True
    live.timings.started, live.timings.head = 5.0, 6.0
    head = Head(200, b"OK", fields, {key.lower(): value for key, value in fields})
    answer.begin(head)
    live.recording.commit(head)
    now = 10.0
    for part in parts:
        live.recording.events.extend(answer.feed(part, now))
        live.recording.append(part)
        now += 0.25
    live.recording.events.extend(answer.close(now) if end is COMPLETE else answer.settle(now))
    live.recording.finish(end)
    while packed and live.recording.pack():
        pass
    return live


def said(live):
    """All that is told to somebody who comes to a call that has ended."""
    answer, recording = live.answer, live.recording
    live.learn()
    told = heard(live, 0)
    gaps = told.gaps
    return (
        (
            live.name,
            live.ask.identity,
            live.ask.key,
            live.labels,
            live.timings,
            live.fleeting,
            live.apart,
            live.held,
            live.spans,
        ),
        (told.response_model, told.input_tokens, told.output_tokens, told.events, told.deltas),
        (told.first_at, told.first_kind, told.last_at, gaps.percentiles(0.0, 0.5, 0.99), gaps.longest),
        (answer.dialect, answer.query, answer.intent, answer.streaming, answer.identity, answer.resumable),
        (
            answer.takes_ids,
            answer.ids_until,
            answer.framed,
            answer.events_are_separate,
            answer.over,
            answer.said,
        ),
        (answer.closing, answer.unreadable, answer.learnt, answer.facts.error, answer.facts.finish),
        (recording.head, recording.end, recording.size, list(recording.events), recording.whole()),
        (recording.retained, recording.readers, recording.backlog),
    )


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", STREAMS)
def test_what_wakes_says_what_was_laid_to_rest(name, packed):
    live = ended(name, packed=packed)
    rested = lay(live)
    facts = msgspec.structs.asdict(rested.told.facts)
    before = said(live)
    for _ in range(2):
        assert said(wake(rested)) == before
    assert said(wake(lay(wake(rested)))) == before
    assert msgspec.structs.asdict(rested.told.facts) == facts, "what they have together does not change"


def test_it_can_be_read_from_each_event_by_several_at_once():
    async def main():
        loop = asyncio.get_running_loop()
        rested = lay(ended("long", packed=True))
        whole = b"".join(STREAMS["long"][2])
        live = wake(rested)
        assert len(rested.recording.packed) == len(whole) // BLOCK - 1
        for count in (0, 1, 100, 3999, 4000, 4001):
            readers = [Reader(live.recording, loop, live.recording.after(count)) for _ in range(2)]
            for reader in readers:
                got = b""
                while data := await reader.read():
                    got += data
                assert got == b"".join(STREAMS["long"][2][count:])
                reader.close()
        assert wake(rested).recording.whole() == whole

    run(main)


def test_who_reads_on_when_it_is_laid_to_rest_gets_all_of_it():
    async def main():
        live = ended("long")
        reader = Reader(live.recording, asyncio.get_running_loop(), 10)
        rested = lay(live)
        reader.close()
        again = Reader(live.recording, asyncio.get_running_loop(), 10)
        got = b""
        while data := await again.read():
            got += data
        again.close()
        assert got == b"".join(STREAMS["long"][2])[10:] == wake(rested).recording.whole()[10:]
        assert rested.recording.rest is live.recording._bytes, "many may hold them"

    run(main)


@pytest.mark.parametrize("name", STREAMS)
def test_the_garbage_collector_has_nothing_to_look_at(name):
    """What is kept of tens of thousands of streams would else stop the event loop in each full collection."""
    one, other = [lay(ended(name, packed=True)) for _ in range(2)]
    gc.collect()  # which finds that tuples of values need not be looked at again
    assert followed(one) - followed(other) == set()


def followed(rested):
    """What of it the garbage collector looks at, by identity."""
    seen, found, todo = set(), set(), [rested]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        if gc.is_tracked(one):
            found.add((type(one).__name__, id(one)))
        todo += gc.get_referents(one)
    return found
