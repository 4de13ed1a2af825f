"""The installation's secret: 32 random bytes, made once, readable by its owner only."""

import os
import secrets
from pathlib import Path

_BYTES = 32


def load_or_create(folder: Path) -> bytes:
    """The secret in `folder`, made on first use. The folder is made with mode 0700.

    Raises OSError when the folder cannot be used, ValueError when the file is not a secret.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "secret"
    if not path.exists():
        # Written aside and linked into place: two processes that start at once agree on one secret,
        # and a crash never leaves half of one.
        draft = folder / f"secret.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    secret = path.read_bytes()
    if len(secret) != _BYTES:
        raise ValueError(f"{path} is damaged: remove it, and a new secret is made")
    return secret
