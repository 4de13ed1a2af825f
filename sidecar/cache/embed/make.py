"""From a model's files to what `local` loads: the graph, checked against vectors known to be right."""

import base64
import hashlib
from pathlib import Path

import msgspec
import numpy as np

from sidecar.cache.embed import bert, graph, model
from sidecar.cache.embed.base import Embedded, EmbedError, Vector
from sidecar.cache.embed.local import LocalEmbedder
from sidecar.cache.embed.model import Built

_LEAST = 0.97
"""Cosine of a text's vector to what it should be, from which on the graph is right. Of the default model the
worst of 1,200 questions has 0.992; a graph with a mistake in it is nowhere near."""
_REFERENCE = Path(__file__).with_name("reference.json")
"""Texts with their vectors by the default model in PyTorch, in float32, kept as float16."""


class _Known(msgspec.Struct, frozen=True):
    text: str
    vector: str
    """float16 in base64."""


class Made(msgspec.Struct, frozen=True):
    """What is to be kept."""

    graph: bytes
    tokenizer: bytes
    built: Built


def make(folder: Path, *, own: bool) -> Made:
    """Of the model in a folder. `own`: it holds the default model's files, which were checked, and nothing
    else; any other folder is somebody else's. Raises EmbedError.

    Takes some seconds, and some times the weights in memory.
    """
    stamps = {} if own else model.stamped(folder)
    known = bert.read(folder)
    if own:
        known = msgspec.structs.replace(known, tokens=model.PINNED_TOKENS)
    weights = bert.weights(folder)
    try:
        tokenizer = (folder / model.TOKENIZER).read_bytes()
        digests = [model.digest(folder / model.WEIGHTS), hashlib.sha256(tokenizer).hexdigest()]
        made = graph.build(known, weights)
        embedder = LocalEmbedder(made, tokenizer, known.tokens, "")
        if digests == _pinned() and (known.tokens, known.pooling) == (model.PINNED_TOKENS, "mean"):
            wanted = [_vector(one) for one in _reference()]
        else:
            exact = graph.build(known, weights, quantised=False)
            wanted = _vectors(LocalEmbedder(exact, tokenizer, known.tokens, ""))
    except OSError as error:
        raise EmbedError(f"{folder}: cannot be read: {error.strerror}") from None
    _check(_vectors(embedder), wanted)
    if not own and model.stamped(folder) != stamps:
        raise EmbedError(f"{folder}: was changed while it was read")
    facts = [*digests, known]
    built = Built(
        builder=model.BUILDER,
        source=hashlib.sha256(msgspec.json.encode(facts)).hexdigest(),
        graph=hashlib.sha256(made).hexdigest(),
        size=len(made),
        tokenizer=digests[1],
        tokens=known.tokens,
        origin=None if own else str(folder),
        stamps=stamps,
    )
    return Made(made, tokenizer, built)


def _pinned() -> list[str]:
    digests = {file.name: file.sha256 for file in model.PINNED}
    return [digests[model.WEIGHTS], digests[model.TOKENIZER]]


def _reference() -> list[_Known]:
    return msgspec.json.decode(_REFERENCE.read_bytes(), type=list[_Known])


def _vector(known: _Known) -> Vector:
    return np.frombuffer(base64.b64decode(known.vector), "<f2").astype(np.float32)


def _vectors(embedder: LocalEmbedder) -> list[Vector]:
    """Those of the reference's texts."""
    found = embedder.embed([known.text for known in _reference()])
    embedder.close()
    vectors = [one.vector for one in found if isinstance(one, Embedded)]
    if len(vectors) < len(found):
        raise EmbedError(
            "the model has no vectors for ordinary texts; do tokenizer.json and weights belong together?"
        )
    return vectors


def _check(found: list[Vector], wanted: list[Vector]) -> None:
    worst = min(float(one @ other) for one, other in zip(found, wanted, strict=True))
    if not worst >= _LEAST:
        raise EmbedError(
            f"the quantised model is not the model: of reference texts the worst cosine is {worst:.3f}, "
            f"and {_LEAST} is the least that is used"
        )
