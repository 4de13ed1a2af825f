"""A BERT in this process, on one core: from text to tokens to a vector."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from sidecar.cache.embed.base import Embedded, EmbedError
from sidecar.cache.embed.model import INPUT
from sidecar.cache.embed.runtime import onnxruntime

_CHARACTERS = 32
"""Per token, of the beginning of a text that is looked at: many more than any language has on average. It
bounds the time for a text of any length."""
_UNKNOWN = "[UNK]"
"""What a BERT reads in the place of words that it has no tokens for, most Chinese ones among them."""
_SILENT = 4
"""onnxruntime's level of what is fatal. It writes to stderr, which is for log lines."""


class LocalEmbedder:
    """One model. For one thread at a time."""

    def __init__(self, graph: bytes, tokenizer: bytes, tokens: int, space: str) -> None:
        """`graph`: the ONNX model; `tokenizer`: what is in its tokenizer.json; `tokens`: the most that the
        model reads. Raises EmbedError."""
        options = onnxruntime.SessionOptions()
        # Of the caller's own thread, which others share a core with: a pool would spin, and take another one.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Plans of memory for every length that was ever seen: 10 MB more, and no time less.
        options.enable_mem_pattern = False
        options.log_severity_level = _SILENT
        try:
            self._session: Any = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(tokenizer)
        except Exception as error:  # noqa: BLE001 - reason: foreign code, which raises Exception itself
            raise EmbedError(f"the model cannot be loaded ({type(error).__name__})") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(tokens)
        self._longest = tokens * _CHARACTERS
        self._unknown = self._tokenizer.token_to_id(_UNKNOWN)
        """None where the model knows everything."""
        self.space = space

    def embed(self, texts: Sequence[str]) -> list[Embedded | EmbedError]:
        """One by one; `graph.build` says why."""
        return [self._one(text) for text in texts]

    def close(self) -> None:
        """Nothing can be embedded any more."""
        self._session = self._tokenizer = None

    def _one(self, text: str) -> Embedded | EmbedError:
        try:
            # Not `encode_batch`: it has a pool of threads, and warns of forks.
            encoding = self._tokenizer.encode(text[: self._longest])
            (vector,) = self._session.run(None, {INPUT: np.array(encoding.ids, np.int64)})
        except Exception as error:  # noqa: BLE001 - reason: foreign code, which raises Exception itself
            return EmbedError(f"the model has no vector for a text ({type(error).__name__})")
        if not math.isfinite(vector.sum()):
            return EmbedError("the model gave a vector of numbers that are none")
        truncated = bool(encoding.overflowing) or len(text) > self._longest
        return Embedded(vector, truncated=truncated, unknown=self._unknown in encoding.ids)
