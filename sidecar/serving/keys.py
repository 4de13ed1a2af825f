"""The sidecar's own keys of upstreams, so that apps need none.

A key belongs to one upstream, by name and address; no request can have it sent anywhere else. It is read from
its file at the start and whenever the configuration is read again, and is nowhere else: not in the
configuration, not in what is stored, not in any message.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote_to_bytes

import msgspec

from sidecar.checks_inbound import read_key
from sidecar.config import UpstreamTable
from sidecar.core.dialects import Dialect
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import without_credentials
from sidecar.core.headers import CREDENTIALS
from sidecar.engine.source import Call
from sidecar.serving.routes import Route, place_of

_BY_HOST = {
    "api.anthropic.com": b"x-api-key",
    "generativelanguage.googleapis.com": b"x-goog-api-key",
}
_BY_PROVIDER = {"anthropic": b"x-api-key", "gcp.gemini": b"x-goog-api-key"}
"""Where gateways that speak a provider's format expect a key: where the provider's SDKs put it."""
_AZURE = ".openai.azure.com"
_PROTOCOL = b"sec-websocket-protocol"
_BROWSERS = b"openai-insecure-api-key."
_ALWAYS = frozenset({*CREDENTIALS, b"proxy-authorization"})
_OUT = re.compile(rb"(?:^|[/\\])\.{1,2}(?:[/\\;#?]|$)")
"""With what servers take for a slash, and for the end of a segment."""


class Key(msgspec.Struct, frozen=True):
    """The key of one upstream."""

    value: bytes
    header: bytes | None
    """The field that carries it, as configured."""
    mark: bytes
    """Stands for it where answers are told apart by it."""

    def __repr__(self) -> str:
        return "Key(...)"  # whatever prints one


class Keys:
    """The keys of all upstreams."""

    def __init__(self, tables: Sequence[UpstreamTable], secret: bytes) -> None:
        self._tables = [(number, table) for number, table in enumerate(tables) if table.key_file is not None]
        self._secret = secret
        self._keys: dict[str, Key] = {}

    def __bool__(self) -> bool:
        return bool(self._tables)

    def read(self) -> None:
        """Read the files, again if need be: all of them, or nothing changes. Raises ConfigError."""
        self.prepare()()

    def prepare(self) -> Callable[[], None]:
        """Read them, in any thread. What is returned makes use of what was in them, and does not fail. Raises
        ConfigError."""
        keys = {
            place_of(table): self._key(table, read_key(f"upstreams[{number}].key_file", table.key_file or ""))
            for number, table in self._tables
        }

        def take() -> None:
            self._keys = keys

        return take

    def assume(self) -> None:
        """Take them for read, without their values: for those who send nothing."""
        self._keys = {place_of(table): self._key(table, b"") for _, table in self._tables}

    def of(self, route: Route | None) -> Key | None:
        """The key for what goes that way, if it is the sidecar's business."""
        return self._keys.get(route.place) if route is not None else None

    def _key(self, table: UpstreamTable, value: bytes) -> Key:
        mark = hashlib.blake2b(value, key=self._secret, digest_size=32, person=b"upstream key").digest()
        return Key(value, table.key_header.encode() if table.key_header is not None else None, mark)


def keyed(call: Call, key: Key, dialect: Dialect | None) -> Call:
    """The call with the sidecar's key, and no other credential. `dialect`: of the request."""
    name, value = _field(call.origin.host, key, dialect)
    dropped = _ALWAYS | {name.lower()}
    headers = []
    for field, content in call.headers:
        rest = _without_key(content) if field.lower() == _PROTOCOL else content
        if field.lower() not in dropped and (rest or not content):
            headers.append((field, rest))
    headers.append((name, value))
    return msgspec.structs.replace(call, target=without_credentials(call.target), headers=headers)


def check_path(target: bytes) -> None:
    """Raises RefusedError for a path that an upstream may take for one outside of where its URL leads: the
    key is for what is there."""
    path = unquote_to_bytes(target.partition(b"?")[0])
    if _OUT.search(path) is not None:
        detail = "the path has a segment . or .., and with a key of the sidecar's it must not lead elsewhere"
        raise RefusedError("bad_request", detail, close=False)


def _without_key(protocols: bytes) -> bytes:
    """The subprotocols of a WebSocket, among which browsers put a key: they can set no other field."""
    members = [member.strip() for member in protocols.split(b",")]
    return b", ".join([member for member in members if not member.lower().startswith(_BROWSERS)])


def _field(host: str, key: Key, dialect: Dialect | None) -> tuple[bytes, bytes]:
    if key.header is not None:
        return key.header, key.value
    name = _BY_HOST.get(host) or (b"api-key" if host.endswith(_AZURE) else None)
    if name is None and dialect is not None:
        name = _BY_PROVIDER.get(dialect.provider)
    return (name, key.value) if name is not None else (b"Authorization", b"Bearer " + key.value)
