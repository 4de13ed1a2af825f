"""Questions of about twenty tokens, twice in other words, and requests that ask them.

They are made of parts, so that there are enough for each to be asked once: nothing is to come out of the
exact cache. How good the cache is at telling questions apart is not what they are for; that is measured by
`semantic_quality`.
"""

import itertools
import random
from collections.abc import Iterator

import orjson

from benchmarks.asks import CREDENTIAL

_VERBS = (
    *("change", "check", "copy", "delete", "download", "edit", "export", "find", "hide", "open", "print"),
    *("rename", "restore", "save", "send"),
)
_THINGS = (
    *("address", "archive", "budget", "calendar", "contract", "draft", "history", "invoice", "label"),
    *("message", "photo", "playlist", "profile", "receipt", "report", "schedule", "statement", "ticket"),
)
_OWNERS = (
    *("account", "bank", "club", "company", "doctor", "family", "gym", "hotel", "landlord", "library"),
    *("office", "project", "school", "shop", "team"),
)
_CASES = (
    *("after I moved to another city", "before the end of the month", "while I am on a long trip"),
    *("without calling the support team", "when the main page does not load", "if I have lost my old card"),
    *("on a phone with a broken screen", "in the browser of a friend", "from outside of the country"),
)
_ASKED = (
    "How can I {}, please?",
    "Please tell me how I can {}.",
    "How could I {}?",
    "Could you tell me how to {}?",
    "How do you {}?",
)
"""The same as "How do I ...?"."""
_SYSTEM = (
    "You are a support agent. Be brief, be kind, and say what to do first and what to do after that. " * 8
)
TOKENS = 150
"""Words of an answer."""


def pairs(seed: int) -> Iterator[tuple[str, str]]:
    """A question, and the same one in other words; some tens of thousands, no two alike."""
    parts = list(itertools.product(_VERBS, _THINGS, _OWNERS, _CASES))
    random.Random(seed).shuffle(parts)
    for number, (verb, thing, owner, case) in enumerate(parts):
        what = f"{verb} the {thing} of my {owner} {case}"
        yield f"How do I {what}?", _ASKED[number % len(_ASKED)].format(what)


def asking(text: str, *fields: bytes) -> bytes:
    """A chat completion as an app sends it, of about 1.5 KB, whose last turn is that question."""
    turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]
    body = orjson.dumps({"model": "scripted", "messages": turns, "temperature": 0.2, "max_tokens": 512})
    lines = [
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: sidecar.example",
        b"Accept: application/json",
        b"Content-Type: application/json",
        b"User-Agent: OpenAI/Python 1.90.0",
        b"X-Stainless-Lang: python",
        CREDENTIAL,
        *fields,
        b'X-Scripted: {"tokens":%d}' % TOKENS,
        b"Content-Length: %d" % len(body),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
