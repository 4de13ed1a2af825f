"""The local model that was made ready, loaded."""

import hashlib
from pathlib import Path

from sidecar.cache.embed import model
from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.local import LocalEmbedder
from sidecar.cache.embed.model import Place
from sidecar.tables import Semantic

_FIRST = "The first text takes five times as long as those after it."
_REMEDY = "run `slipstream model pull`"


def opened(semantic: Semantic, folder: Path) -> LocalEmbedder:
    """`folder`: the data folder. Raises EmbedError."""
    try:
        place = model.find(semantic, folder)
    except ValueError as error:
        raise EmbedError(str(error)) from None
    if place is None:
        raise EmbedError(f"{semantic.model} is not ready in {model.root(folder)}: {_REMEDY}")
    graph = _read(place, model.GRAPH, place.built.graph)
    tokenizer = _read(place, model.TOKENIZER, place.built.tokenizer)
    embedder = LocalEmbedder(graph, tokenizer, place.built.tokens, place.built.space)
    embedder.embed([_FIRST])
    return embedder


def _read(place: Place, name: str, digest: str) -> bytes:
    """What was put there, and nothing else: a damaged graph would give damaged vectors."""
    path = place.folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EmbedError(f"{path}: cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise EmbedError(f"{path}: is damaged: {_REMEDY}")
    return content
