"""The page's files, read once: what a request names is looked up in a table, never on the disk."""

from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).with_name("page")
_INDEX = "index.html"
_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}


class File(NamedTuple):
    """One of them."""

    kind: bytes
    body: bytes


def load(folder: Path = _FOLDER) -> dict[str, File]:
    """All files by their paths in URLs."""
    return {
        "/" if path.name == _INDEX else f"/{path.name}": File(_KINDS[path.suffix], path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.suffix in _KINDS
    }
