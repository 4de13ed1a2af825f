"""What must be true of who may ask, and of the keys and certificates that are files.

`check` is for everybody who reads the configuration. The rest is for those who are going to serve: where they
may listen, and whether the files can be used that it names.
"""

import hashlib
import os
import re
import ssl
from pathlib import Path

from sidecar.core.headers import HOP_BY_HOP
from sidecar.core.values import ConfigError, is_loopback, shown
from sidecar.tables import Config

HOW = 'the SHA-256 of a token of yours: printf %s "$TOKEN" | sha256sum'
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@ -]{0,63}")
_NAMESPACE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")
"""As a header field can have it, without quoting or encoding."""
_FIELD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_OURS = frozenset(name.decode() for name in HOP_BY_HOP) | {"host", "content-length", "content-type", "expect"}
"""Fields that say how a request is framed and where it goes."""
_KEY = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_LONGEST_KEY = 16 << 10
MOST_CLIENTS = 10_000


def check(config: Config) -> None:
    """Raises ConfigError."""
    names, tokens = set(), set()
    if len(config.clients) > MOST_CLIENTS:
        raise ConfigError(f"clients: {len(config.clients)} of them; expected at most {MOST_CLIENTS}")
    for number, client in enumerate(config.clients):
        where = f"clients[{number}]"
        if _NAME.fullmatch(client.name) is None:
            remedy = "expected up to 64 letters, digits, spaces and any of . _ - @"
            raise ConfigError(f"{where}.name{shown(client.name)}: {remedy}")
        if client.name in names:
            raise ConfigError(f"{where}.name{shown(client.name)}: another client has it; names are unique")
        names.add(client.name)
        check_hash(f"{where}.token_sha256", client.token_sha256)
        if client.token_sha256.lower() in tokens:
            raise ConfigError(
                f"{where}.token_sha256: another client has this token; each needs one of its own"
            )
        tokens.add(client.token_sha256.lower())
        if client.namespace is not None and _NAMESPACE.fullmatch(client.namespace) is None:
            remedy = "expected printable ASCII without spaces at the ends, such as team-a"
            raise ConfigError(f"{where}.namespace{shown(client.namespace)}: {remedy}")
    tls = config.tls
    for one, other in (("certificate", "key"), ("key", "certificate")):
        if getattr(tls, one) is not None and getattr(tls, other) is None:
            raise ConfigError(f"tls.{one}{shown(getattr(tls, one))}: without tls.{other}; give both or none")
    for number, upstream in enumerate(config.upstreams):
        where, header = f"upstreams[{number}].key_header", upstream.key_header
        if header is None:
            continue
        if upstream.key_file is None:
            raise ConfigError(f"{where}: without key_file there is no key for it")
        if (
            _FIELD.fullmatch(header) is None
            or header.lower() in _OURS
            or header.lower().startswith("slipstream-")
        ):
            # It is not shown: it may be the key itself by mistake.
            raise ConfigError(f"{where}: expected the name of a header field such as x-api-key")


def check_hash(key: str, value: str) -> None:
    """A token's SHA-256, which is not shown: it may be the token itself by mistake. Raises ConfigError."""
    if _HASH.fullmatch(value) is None:
        raise ConfigError(f"{key}: expected 64 hexadecimal digits, {HOW}")
    if value.lower() == hashlib.sha256(b"").hexdigest():
        raise ConfigError(f"{key}: the SHA-256 of nothing; is TOKEN empty? It is {HOW}")


def check_host(config: Config) -> None:
    """Raises ConfigError for an address at which this configuration must not listen. Who only wants to know
    where a sidecar is need not ask."""
    if (reason := refusal(config, config.server.host)) is not None:
        raise ConfigError(reason)


def refusal(config: Config, host: str) -> str | None:
    """Why this configuration must not listen on `host`, an address or a name, with what to do about it; None
    if it may. Beyond loopback it takes clients or TLS, and clients where there are keys to be spent."""
    if is_loopback(host) or config.server.allow_public or config.clients:
        return None
    where = f"server.host{shown(host)}"
    if config.tls.certificate is None:
        return (
            f"{where}: anyone who reaches it could use it: add [[clients]], or tls.certificate and tls.key, "
            "or set server.allow_public = true"
        )
    for number, upstream in enumerate(config.upstreams):
        if upstream.key_file is not None:
            return (
                f"{where}: anyone who reaches it could spend the key of upstreams[{number}].key_file: "
                "add [[clients]], listen on 127.0.0.1, or set server.allow_public = true"
            )
    return None


def check_files(config: Config) -> None:
    """Read the keys and certificates that it names. Raises ConfigError."""
    for number, upstream in enumerate(config.upstreams):
        if upstream.key_file is not None:
            read_key(f"upstreams[{number}].key_file", upstream.key_file)
    if config.tls.certificate is not None and config.tls.key is not None:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config.tls.certificate, config.tls.key)


def find(name: str) -> Path:
    """The file of that name; `~` is the user's home. A relative one is looked up in systemd's credentials
    first (`$CREDENTIALS_DIRECTORY`), then in the working directory."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and not Path(name).is_absolute():
        path = Path(folder) / name
        if path.exists():
            return path
    return _expanded(name)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user
        return Path(name)


def read_key(key: str, name: str) -> bytes:
    """The one line in a file. `key`: of the configuration, for errors. Raises ConfigError, without any of
    what is in it."""
    where = f"{key}{shown(name) if _is_path(name) else ''}"
    try:
        with find(name).open("rb") as file:
            content = file.read(_LONGEST_KEY + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot be read: {_why(error)}") from None
    line = content.strip(b" \t\r\n")
    if not line:
        raise ConfigError(f"{where}: the file is empty; expected one line with the key")
    if len(content) > _LONGEST_KEY or _KEY.fullmatch(line) is None:
        raise ConfigError(f"{where}: expected one line with the key, in ASCII, and nothing else")
    return line


def _is_path(name: str) -> bool:
    """Whether that is meant as a file's name: it may be the key itself by mistake."""
    if "/" in name or "." in name:
        return True
    try:
        return find(name).exists()
    except (OSError, ValueError):
        return False


def load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load a certificate and its key into a context. Raises ConfigError."""
    said_certificate, said_key = shown(certificate), shown(key)
    for name, file in (("certificate", certificate), ("key", key)):
        try:
            with find(file).open("rb") as opened:
                opened.read(1)
        except (OSError, ValueError) as error:
            raise ConfigError(f"tls.{name}{shown(file)}: cannot be read: {_why(error)}") from None
    asked: list[bool] = []

    def passphrase() -> str:
        # Else OpenSSL would ask for it on the terminal, and wait.
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(find(certificate), find(key), passphrase)
    except ssl.SSLError as error:
        if asked:
            raise ConfigError(f"tls.key{said_key}: it has a passphrase; give it without one") from None
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            pair = f"it is not the key of tls.certificate{said_certificate}; renew both together"
            raise ConfigError(f"tls.key{said_key}: {pair}") from None
        raise ConfigError(
            f"tls.certificate{said_certificate}, tls.key{said_key}: "
            f"expected PEM files ({error.reason or 'they cannot be used'})"
        ) from None
    except OSError as error:
        raise ConfigError(f"tls.certificate{said_certificate}: cannot be used: {_why(error)}") from None


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
