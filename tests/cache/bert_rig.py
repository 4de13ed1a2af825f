"""A BERT small enough to be worked out in numpy, and the files that one comes in."""

import json
import math
from pathlib import Path

import numpy as np
import tokenizers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["the", "of", "is", "what", "how", "capital", "france", "a", "b", "c", "?", "##s", "##ing", "word"]
WORDS += list("defghijklmnopqrstuvwxyz0123456789.,!")
HIDDEN, HEADS, LAYERS, INNER, POSITIONS = 64, 4, 2, 96, 40
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "layer_norm_eps": 1e-12,
    "vocab_size": len(WORDS),
}
KINDS = {"F32": "<f4", "F16": "<f2"}


def tensors(seed: int = 1) -> dict[str, np.ndarray]:
    """All weights, at random."""
    random = np.random.default_rng(seed)

    def draw(*shape, scale=0.3):
        return (random.standard_normal(shape) * scale).astype(np.float32)

    made = {
        "embeddings.word_embeddings.weight": draw(len(WORDS), HIDDEN, scale=1),
        "embeddings.position_embeddings.weight": draw(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": draw(2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(LAYERS):
        at = f"encoder.layer.{number}."
        for name in ("query", "key", "value"):
            made[f"{at}attention.self.{name}.weight"] = draw(HIDDEN, HIDDEN)
            made[f"{at}attention.self.{name}.bias"] = draw(HIDDEN)
        shapes = {
            "attention.output": (HIDDEN, HIDDEN),
            "intermediate": (INNER, HIDDEN),
            "output": (HIDDEN, INNER),
        }
        for name, shape in shapes.items():
            made[f"{at}{name}.dense.weight"] = draw(*shape)
            made[f"{at}{name}.dense.bias"] = draw(shape[0])
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    for name in norms:
        made[f"{name}.weight"] = 1 + draw(HIDDEN, scale=0.1)
        made[f"{name}.bias"] = draw(HIDDEN)
    return made


def safetensors(named: dict[str, np.ndarray], kind: str = "F32") -> bytes:
    """The file, all numbers of one kind."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in named.items():
        if kind == "BF16":
            raw = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            raw = values.astype(KINDS[kind]).tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def tokenizer() -> str:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made.to_str()


def folder(where: Path, *, weights: bytes | None = None, prefix: str = "", **config) -> Path:
    """A folder of sentence-transformers."""
    where.mkdir(exist_ok=True)
    named = {prefix + name: values for name, values in tensors().items()}
    (where / "model.safetensors").write_bytes(safetensors(named) if weights is None else weights)
    (where / "config.json").write_text(json.dumps(CONFIG | config))
    (where / "tokenizer.json").write_text(tokenizer())
    return where


def forward(named: dict[str, np.ndarray], ids: list[int], pooling: str = "mean") -> np.ndarray:
    """The vector of some tokens, by the book (Devlin et al., 2018), in float64."""
    w = {name: values.astype(np.float64) for name, values in named.items()}

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x):
        return x.reshape(len(ids), HEADS, -1).transpose(1, 0, 2)

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(LAYERS):
        at = f"encoder.layer.{number}."
        query, key, value = (
            heads(dense(x, f"{at}attention.self.{name}")) for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(HIDDEN // HEADS)
        scores = np.exp(scores - scores.max(2, keepdims=True))
        mixed = (scores / scores.sum(2, keepdims=True)) @ value
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        x = norm(x + dense(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        inner = dense(x, f"{at}intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + dense(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
    pooled = x.mean(0) if pooling == "mean" else x[0]
    return pooled / np.linalg.norm(pooled)
