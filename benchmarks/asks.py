"""The requests of a run, as an app sends them, and what they ask of the scripted provider."""

from typing import Any

import orjson

from benchmarks.jobs import NAMED, NUMBER

CREDENTIAL = b"Authorization: Bearer sk-benchmark-000000000000000000000000000000000000"


def chat(
    *,
    stream: bool,
    script: dict[str, object],
    path: str = "/v1/chat/completions",
    accept: bytes = b"application/json",
    fields: tuple[bytes, ...] = (),
    user: str | None = None,
) -> bytes:
    """A chat completion as an app sends it, about 1.5 KB, with what the scripted provider is to answer."""
    system = "You are a support agent for a bookshop. Be brief, be kind, and quote the order number. " * 5
    turns = [
        {"role": "system", "content": system},
        {"role": "user", "content": "Hello, my parcel has not come. The order is 48213, from last Tuesday."},
        {"role": "assistant", "content": "I am sorry to hear that. Order 48213 left us on Wednesday. " * 4},
        {"role": "user", "content": "It says delivered, but the neighbours have not seen it. What now?"},
    ]
    asked = {"model": "scripted", "messages": turns, "temperature": 0.2, "max_tokens": 512, "stream": stream}
    if stream:
        asked["stream_options"] = {"include_usage": True}
    if user is not None:
        asked["user"] = user
    body = orjson.dumps(asked)
    lines = [
        b"POST %b HTTP/1.1" % path.encode(),
        b"Host: sidecar.example",
        b"Accept: " + accept,
        b"Content-Type: application/json",
        b"User-Agent: OpenAI/Python 1.90.0",
        b"X-Stainless-Lang: python",
        b"X-Stainless-Package-Version: 1.90.0",
        b"X-Stainless-Retry-Count: 0",
        CREDENTIAL,
        *fields,
        b"X-Scripted: " + orjson.dumps(script),
        b"Content-Length: %d" % len(body),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def streamed(*, events: int, interval: float = 0.0, **more: Any) -> bytes:
    """`more`: as for `chat`."""
    return chat(stream=True, script={"tokens": events, "interval": interval}, **more)


def back(query: bytes = b"", *fields: bytes) -> bytes:
    """A client that comes back to a stream."""
    lines = [
        b"GET /_slipstream/streams/%b%b HTTP/1.1" % (NAMED, query),
        b"Host: sidecar.example",
        CREDENTIAL,
        *fields,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


WHOLE = chat(stream=False, script={"tokens": 150})
TRACED = chat(
    stream=False,
    script={"tokens": 150},
    fields=(b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-%b-01" % NUMBER,),
)
"""Asks the same each time, and has other bytes each time."""
REFERRED = chat(
    stream=False,
    script={"tokens": 150},
    fields=(b"Referer: https://app.example/%b" % NUMBER,),
)
"""The same, in a line of the head that is not about tracing."""
ANOTHER = chat(stream=False, script={"tokens": 150}, user=NUMBER.decode())
"""Asks something else each time."""
GO_ON = b"POST /word HTTP/1.1\r\nHost: sidecar.example\r\nContent-Length: 0\r\n\r\n"
"""Lets the streams that the provider holds begin, and when it comes again, end."""
