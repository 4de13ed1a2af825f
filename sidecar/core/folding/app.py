"""An app's own stream, as the text that it amounts to: what people read of it, to compare it with another
one."""

from sidecar.core.dialects.app import NO_CONTENT, texts
from sidecar.core.dialects.base import dumps, loads
from sidecar.core.folding.base import events


def fold(body: bytes) -> bytes:
    """JSON with all of its texts in one."""
    pieces: list[str] = []
    for name, data in events(body):
        if name in NO_CONTENT:
            continue
        try:
            pieces += texts(loads(data))
        except ValueError:
            pieces.append(data.decode())
    return dumps({"text": "".join(pieces)})
