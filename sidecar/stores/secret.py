"""The installation's secrets: 32 random bytes each, made once, readable by their owner only."""

import os
import secrets
from base64 import b64decode, b64encode
from pathlib import Path

_BYTES = 32
_LEAST_KEY = 24
"""Bytes, by the Standard Webhooks specification."""
_PREFIX = b"whsec_"


def load_or_create(folder: Path) -> bytes:
    """The secret in `folder`, made on first use. The folder is made with mode 0700.

    Raises OSError when the folder cannot be used, ValueError when the file is not a secret.
    """
    path = folder / "secret"
    secret = _made_once(path, secrets.token_bytes(_BYTES))
    if len(secret) != _BYTES:
        raise ValueError(f"{path} is damaged: remove it, and a new secret is made")
    return secret


def webhook_key(folder: Path) -> bytes:
    """The key that signs webhooks. Its file holds it as receivers' libraries take it: `whsec_` and base64
    (standardwebhooks.com). Raises as `load_or_create` does."""
    path = folder / "webhook-key"
    made = _PREFIX + b64encode(secrets.token_bytes(_BYTES)) + b"\n"
    text = _made_once(path, made).strip()
    try:
        key = b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        key = b""
    if len(key) < _LEAST_KEY:
        raise ValueError(f"{path} is damaged: remove it, and a new key is made, or put whsec_... in it")
    return key


def _made_once(path: Path, made: bytes) -> bytes:
    """What is in the file; `made`, if there was none."""
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        # Written aside and linked into place: two processes that start at once agree on one secret,
        # and a crash never leaves half of one.
        draft = folder / f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, made)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()
