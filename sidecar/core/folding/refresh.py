"""A stored answer as a new one: an id of its own and the time of now, in as many bytes.

Nothing inside a text is touched: there, a quote stands behind a backslash, so `"id":` and `"created":`
without one are keys. That a key is the answer's own is known by its value, the one of the first event.
Ollama's `created_at` is taken only from the front of a line, since arguments of calls are objects there.
"""

import re
import secrets
import string
from datetime import datetime, timedelta

import orjson

from sidecar.core.dialects.base import Json

_KEYS = {
    "openai.chat": b"id",
    "openai.completions": b"id",
    "anthropic.messages": b"id",
    "gemini.generate_content": b"responseId",
}
_IDENT = re.compile(r"((?:[a-z]+[-_])*+(?:01)?)([A-Za-z0-9._:-]+)", re.ASCII)
"""A prefix of words (`chatcmpl-`, `msg_01`), and what differs from answer to answer."""
_LEAST = 8
"""Characters that are left to chance, or the id is one that other servers count up."""
_ALPHABETS = (
    string.digits,
    string.digits + "abcdef",
    string.digits + string.ascii_lowercase,
    string.digits + string.ascii_letters,
)
_DATA = re.compile(rb"(?<![^\r\n])data: ?(\{[^\r\n]*)")
_CREATED = re.compile(rb'("created": ?)(\d++)(?![.eE])')
_MADE = re.compile(
    rb'^(\{\s*(?:"\w+"\s*:\s*"(?:[^"\\\n]|\\.)*+"\s*,\s*)*?"created_at"\s*:\s*")'
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)",
    re.MULTILINE,
)


def refreshed(dialect: str, body: bytes, ident: str | None, now: float) -> bytes:
    """`body`, in the same length, with another id and the time of now (seconds since the epoch).

    `ident`: the answer's id; looked for in the first event when None. Ids of fewer than eight characters
    that mean nothing stay, and so do all of the Responses API, since `previous_response_id` refers to them.
    """
    if dialect.startswith("ollama."):
        return _dated(body, now)
    key = _KEYS.get(dialect)
    if key is None:
        return body
    first = _first(body, key.decode())
    old = ident or first.get(key.decode())
    new = _another(old) if isinstance(old, str) else None
    made = body
    if new is not None and not _ends_a_name(key, body):
        for gap in (b"", b" "):
            field = b'"%b":%b"%%b"' % (key, gap)
            made = made.replace(field % str(old).encode(), field % new.encode())
    if dialect.startswith("openai."):
        made = _created(made, first.get("created"), b"%d" % now)
    return made


def _ends_a_name(key: bytes, body: bytes) -> bool:
    """Whether a longer key ends like this one, behind a quote."""
    return b'\\"%b":' % key in body


def _first(body: bytes, key: str) -> Json:
    """The object that has the answer's id: of the first event that has one, or the whole answer."""
    plain = body.lstrip()[:1] in (b"{", b"[")
    for data in (body,) if plain else (match[1] for match in _DATA.finditer(body)):
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return {}
        value = value[0] if isinstance(value, list) and value else value
        value = value if isinstance(value, dict) else {}
        message = value.get("message")
        value = message if isinstance(message, dict) else value
        if value.get(key):
            return value
    return {}


def _another(ident: str) -> str | None:
    found = _IDENT.fullmatch(ident)
    if found is None:
        return None
    prefix, rest = found.groups()
    used = {char for char in rest if char.isalnum()}
    if sum(char.isalnum() for char in rest) < _LEAST:
        return None
    alphabet = next(alphabet for alphabet in _ALPHABETS if used <= set(alphabet))
    return prefix + "".join(secrets.choice(alphabet) if char.isalnum() else char for char in rest)


def _created(body: bytes, old: object, new: bytes) -> bytes:
    """Only where all events say the same time, as they do: what differs has another meaning."""
    if _ends_a_name(b"created", body):
        return body
    said = {match[2] for match in _CREATED.finditer(body) if len(match[2]) == len(new)}
    if said != {str(old).encode()}:
        return body
    return _CREATED.sub(lambda match: match[1] + (new if match[2] in said else match[2]), body)


def _dated(body: bytes, now: float) -> bytes:
    """All times moved by the same whole seconds, so that the last one is now: their order stays."""
    found = list(_MADE.finditer(body))
    try:
        last = datetime.fromisoformat((found[-1][2] + found[-1][3]).decode())
        move = timedelta(seconds=int(now) - int(last.timestamp()))
        made = [datetime.fromisoformat(match[2].decode()) + move for match in found]
    except (IndexError, ValueError, OverflowError):
        return body  # no time, or one that no calendar has
    times = iter(made)
    moved = _MADE.sub(
        lambda match: match[1] + next(times).isoformat().encode() + match[0][len(match[1]) + 19 :], body
    )
    return moved if len(moved) == len(body) else body
