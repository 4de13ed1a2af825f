"""When are two request bodies the same? When their canonical forms are.

The form is for hashing, never for sending: UTF-8 JSON without whitespace, keys sorted at every depth,
one spelling for each string and number. Arrays keep their order, `1` is not `1.0`, integers are exact up to
4300 digits, and what has a point or an exponent is a double, as in RFC 8785. A body that two upstreams
might read differently has no form at all.

One order of keys does mean something: structured outputs come in the order of a JSON Schema's
`properties`. Where a body has such, their order is written behind the form.

The standard library parses, because orjson neither tells of a duplicate key nor keeps an integer of more
than 64 bits; orjson writes, because it does so eight times faster.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson

T = TypeVar("T")

LARGEST = 256 * 1024
"""Bodies longer than this are keyed by their bytes as sent, because parsing them would stop every stream
of the process. For the caller to look at."""


def canonical(body: bytes, ignored: Sequence[str] = ()) -> bytes | None:
    """The canonical form of a JSON object without the `ignored` fields, or None when the body cannot be
    judged. A dot leads into a field: `metadata.trace`. Raises nothing."""
    made = forms(body, ignored)
    return made[0] if made is not None else None


def forms(body: bytes, *without: Sequence[str]) -> list[bytes] | None:
    """As `canonical`, several times: each form lacks the fields of those before it, too."""
    return _read(body, lambda value: _forms(value, without))


def without_text(
    body: bytes, ignored: Sequence[str], place: Callable[[dict[str, Any]], tuple[str | int, ...] | None]
) -> tuple[str, bytes] | None:
    """A text of the body, and the canonical form of all the rest. `place` tells where the text is; None where
    it is nowhere, or the body cannot be judged."""
    return _read(body, lambda value: _parted(value, ignored, place))


def _read(body: bytes, make: Callable[[object], T]) -> T | None:
    try:
        text = body.decode()  # json.loads would guess UTF-16 and UTF-32, and let surrogates through
        try:
            return make(_parse(text))
        except TypeError:
            # Something that orjson does not write. An integer of more than 64 bits goes in as its digits;
            # a lone surrogate and nesting deeper than 254 fail again.
            return make(_parse_exactly(text))
    except (ValueError, TypeError, RecursionError):
        return None


def _parted(
    value: object, ignored: Sequence[str], place: Callable[[dict[str, Any]], tuple[str | int, ...] | None]
) -> tuple[str, bytes] | None:
    if type(value) is not dict:
        return None
    for name in ignored:
        _remove(value, name.split("."))
    path = place(value)
    if path is None:
        return None
    *into, last = path
    member: Any = value
    for step in into:
        member = member[step]
    text = member[last]
    # Where the text was follows from what is left.
    member[last] = ""
    return text, _written(value)


def _forms(value: object, without: Sequence[Sequence[str]]) -> list[bytes] | None:
    if type(value) is not dict:
        return None
    made = []
    for names in without:
        for name in names:
            _remove(value, name.split("."))
        made.append(_written(value))
    return made


def _remove(value: dict[str, Any], path: list[str]) -> None:
    *into, last = path
    for name in into:
        member = value.get(name)
        if type(member) is not dict:
            return
        value = member
    value.pop(last, None)


def _written(value: dict[str, Any]) -> bytes:
    form = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if b'"properties":{' not in form:
        return form
    orders: list[list[str]] = []
    _orders(value, orders)
    return form + b"\n" + orjson.dumps(orders)


def _orders(value: object, orders: list[list[str]]) -> None:
    """The order of the members of every `properties`, in the order of the form."""
    if type(value) is dict:
        for name in sorted(value):
            member = value[name]
            if name == "properties" and type(member) is dict:
                orders.append(list(member))
            _orders(member, orders)
    elif type(value) is list:
        for member in value:
            _orders(member, orders)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a duplicate key: some upstreams take its first value, some its last")
    return made


def _digits(text: str) -> orjson.Fragment:
    return orjson.Fragment(text if text != "-0" else "0")  # JSON has no other integer with two spellings


# orjson reads the floats, too: it refuses what is not finite, which it would otherwise write as null.
_parse = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=orjson.loads, parse_constant=orjson.loads
).decode
_parse_exactly = json.JSONDecoder(parse_int=_digits).decode  # only for what _parse has not refused
