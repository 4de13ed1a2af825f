"""What a folder with a sentence-transformers model says of itself, as far as vectors depend on it.

Only one architecture is read: BERT with exact GELU, pooled by mean or first token. Of anything else it is
said what it is.
"""

from pathlib import Path
from typing import Any

import msgspec

from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.model import CONFIG, MODULES, POOLING, SENTENCES, TOKENIZER, WEIGHTS
from sidecar.cache.embed.weights import Weights, WeightsError

_MOST_LAYERS = 64
_LONGEST_CONFIG = 1 << 20
"""Bytes."""


class _Module(msgspec.Struct, frozen=True):
    type: str


class Bert(msgspec.Struct, frozen=True):
    """Everything that is not in the weights."""

    layers: int
    heads: int
    hidden: int
    """Numbers per token, and of the vector."""
    eps: float
    """Of the layer norms."""
    tokens: int
    """The most that are read of a text, the two special ones included."""
    pooling: str
    """`mean` or `cls`."""


def read(folder: Path) -> Bert:
    """Raises EmbedError."""
    config = _json(folder, CONFIG)
    kind = config.get("model_type")
    if kind != "bert":
        raise EmbedError(f"{folder}: is a {kind or 'model without model_type'}; only BERT models can be used")
    if config.get("hidden_act") != "gelu":
        raise EmbedError(f"{folder}: has hidden_act = {config.get('hidden_act')}; only gelu can be used")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise EmbedError(f"{folder}: has position embeddings that are not absolute")
    if not (folder / WEIGHTS).is_file():
        raise EmbedError(f"{folder}: has no {WEIGHTS}; weights in other formats are not read")
    if not (folder / TOKENIZER).is_file():
        raise EmbedError(f"{folder}: has no {TOKENIZER}")
    _check_modules(folder)
    positions = _count(folder, config, "max_position_embeddings")
    longest = _json(folder, SENTENCES).get("max_seq_length") if (folder / SENTENCES).is_file() else None
    eps = config.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise EmbedError(f"{folder}: {CONFIG} has no sensible layer_norm_eps")
    made = Bert(
        layers=_count(folder, config, "num_hidden_layers"),
        heads=_count(folder, config, "num_attention_heads"),
        hidden=_count(folder, config, "hidden_size"),
        eps=eps,
        tokens=min(longest, positions) if isinstance(longest, int) and longest > 2 else positions,
        pooling=_pooling(folder),
    )
    if made.layers > _MOST_LAYERS or made.hidden % made.heads:
        raise EmbedError(f"{folder}: {CONFIG} describes no BERT that there could be")
    return made


def weights(folder: Path) -> Weights:
    """Raises EmbedError."""
    try:
        return Weights(folder / WEIGHTS)
    except WeightsError as error:
        raise EmbedError(f"{folder / WEIGHTS}: {error}") from None
    except OSError as error:
        raise EmbedError(f"{folder / WEIGHTS}: cannot be read: {error.strerror}") from None


def _check_modules(folder: Path) -> None:
    """That nothing else is done to the vectors."""
    if not (folder / MODULES).is_file():
        return
    try:
        modules = msgspec.json.decode((folder / MODULES).read_bytes(), type=list[_Module])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError):
        raise EmbedError(f"{folder / MODULES}: is not the JSON that is expected there") from None
    for module in modules:
        kind = module.type.rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise EmbedError(f"{folder}: has a module {kind!r} behind its BERT; such models cannot be used")


def _pooling(folder: Path) -> str:
    if not (folder / POOLING).is_file():
        return "mean"
    modes = [name for name, value in _json(folder, POOLING).items() if "mode" in name and value is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise EmbedError(f"{folder}: pools its tokens in a way that is not known here: {', '.join(modes)}")
    return known[modes[0]]


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        with (folder / name).open("rb") as file:
            tree: dict[str, Any] = msgspec.json.decode(file.read(_LONGEST_CONFIG), type=dict[str, Any])
    except OSError as error:
        raise EmbedError(f"{folder / name}: cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise EmbedError(f"{folder / name}: is not the JSON that is expected there") from None
    return tree


def _count(folder: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise EmbedError(f"{folder / CONFIG}: has no sensible {name}")
    return value
