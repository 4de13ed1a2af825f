"""Server-sent events, as bytes."""

import re

import orjson

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def event(name: str, data: object) -> bytes:
    """An event of that name, its data as JSON, with the blank line that ends it."""
    # A name with a line end in it would be further fields, or further events.
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"an event's name is 1 to 64 ASCII letters, digits, '_', '.', ':' or '-', not {name!r:.80}"
        )
    try:
        encoded = orjson.dumps(data)  # has no line ends: JSON escapes those in strings
    except orjson.JSONEncodeError as error:
        raise TypeError(f"the data of an event ({name}) cannot be written as JSON: {error}") from error
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encoded)
