"""Answers that are no model's: another kind of event stream, downloads, odd headers, statuses, redirects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import parse_qs

from sidecar.scripted.answers.base import EVENT_STREAM, Answer, Ask, answer, dumps, event_stream, sse
from sidecar.scripted.script import Script, content

TEXT = (("Content-Type", "text/plain; charset=utf-8"),)
BINARY = (("Content-Type", "application/octet-stream"),)
BLOCK = hashlib.shake_128(b"scripted").digest(65536)
ELSEWHERE = "http://elsewhere.invalid/landing"
ODD = (
    *TEXT,
    ("Set-Cookie", "a=1; Path=/"),
    ("X-ODD-cAsE", "kept"),
    ("Set-Cookie", "b=2; Path=/"),
    ("x-empty", ""),
    ("X-Repeated", "one"),
    ("x-repeated", "two"),
    ("ETag", '"scripted"'),
    ("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT"),
)


def ask(_body: Mapping[str, object], path: str, query: str) -> Ask:
    return Ask(inputs=(path, query))


def refuse(status: int, message: str, _ask: Ask) -> Answer:
    retry = (("Retry-After", "1"),) if status in (429, 529) else ()
    return Answer((f"{message}\n".encode(),), TEXT + retry, status)


def events(_ask: Ask, script: Script) -> Answer:
    """Like a feed of notifications: a comment and `retry:`, then named events, the last one called `end`."""
    made = [b": scripted\n\n", b"retry: 2500\n\n"]
    made += [sse(dumps({"n": i, "text": text}), "token") for i, text in enumerate(content(script))]
    made.append(sse("bye", "end"))
    return event_stream(made, script, headers=EVENT_STREAM, error=sse('{"error": "failed"}', "error"))


def download(ask: Ask, _script: Script) -> Answer:
    """`/bytes/N`: blocks of 64 KiB that are one object in memory, however many they are."""
    path, query = ask.inputs
    number = path.rpartition("/")[2]
    if not number.isdigit():
        return refuse(400, "expected /bytes/N", ask)
    whole, rest = divmod(int(number), len(BLOCK))
    blocks = (BLOCK,) * whole + ((BLOCK[:rest],) if rest else ())
    return Answer(blocks, BINARY, stream=parse_qs(query).get("chunked") == ["1"])


def status(ask: Ask, _script: Script) -> Answer:
    number = ask.inputs[0].rpartition("/")[2]
    if not (number.isdigit() and 200 <= int(number) < 600):
        return refuse(400, "expected /status/N, with N from 200 to 599", ask)
    return refuse(int(number), f"status {number}", ask)


def headers(_ask: Ask, _script: Script) -> Answer:
    return Answer((b"odd headers\n",), ODD)


def redirect(_ask: Ask, _script: Script) -> Answer:
    return Answer((b"elsewhere\n",), (*TEXT, ("Location", ELSEWHERE)), 302)


def early(_ask: Ask, _script: Script) -> Answer:
    return answer({"early": True})
