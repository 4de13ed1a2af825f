"""The embedder that the configuration asks for. What it needs is imported when it is wanted."""

from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.cache.embed import model
from sidecar.tables import Semantic

if TYPE_CHECKING:  # it imports numpy
    from sidecar.cache.embed.base import Embedder


def load(semantic: Semantic, folder: Path) -> "Embedder":
    """Ready to embed. `folder`: the data folder. Blocks. Raises EmbedError, which says what to do."""
    if model.is_local(semantic):
        from sidecar.cache.embed.opened import opened  # noqa: PLC0415

        return opened(semantic, folder)
    from sidecar.cache.embed.remote import RemoteEmbedder  # noqa: PLC0415

    return RemoteEmbedder(semantic)


def ready(semantic: Semantic, folder: Path) -> bool:
    """Whether `load` would find what it needs on this machine. Cheap, and never raises."""
    try:
        return not model.is_local(semantic) or model.find(semantic, folder) is not None
    except ValueError:
        return False
