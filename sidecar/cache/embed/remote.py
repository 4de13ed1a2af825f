"""Vectors from an OpenAI-compatible endpoint.

Blocking HTTP/1.1 on one kept connection in the caller's thread. What fails, fails within the timeout, and is
not tried again: the caller leaves alone what keeps failing.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sidecar.cache.embed.base import Embedded, EmbedError
from sidecar.cache.embed.endpoint import Endpoint, RefusedError
from sidecar.checks_inbound import read_key
from sidecar.core.values import ConfigError
from sidecar.tables import Semantic

_TOGETHER = 256
"""Texts per request; endpoints have limits, and the smallest ones are not far above."""
_FIXED, _PER_TEXT = 64 << 10, 256 << 10
"""Bytes of the largest answer, by the number of texts: a vector of 4096 numbers in full is 90 KB."""
_LONGEST_SPACE = 200


class RemoteEmbedder:
    """One endpoint and model. For one thread at a time. If it cuts texts, nobody is told of it."""

    def __init__(self, semantic: Semantic) -> None:
        """Nothing is asked yet. Raises EmbedError."""
        self._endpoint = Endpoint(semantic.embedder, _key(semantic.key_file), float(semantic.timeout))
        self._model = semantic.model
        self._dimensions: int | None = None
        self.space = _space(f"{self._endpoint.place}:{semantic.model}")

    def embed(self, texts: Sequence[str]) -> list[Embedded | EmbedError]:
        """Raises EmbedError."""
        self._endpoint.begin()
        made: list[Embedded | EmbedError] = []
        for start in range(0, len(texts), _TOGETHER):
            made += self._some(texts[start : start + _TOGETHER])
        return made

    def close(self) -> None:
        self._endpoint.close()

    def _some(self, texts: Sequence[str]) -> list[Embedded | EmbedError]:
        try:
            return self._ask(texts)
        except RefusedError as error:
            if len(texts) == 1:
                return [error]
        # One of them is what it does not like, such as one too long. The others are not to suffer for it.
        return [one for text in texts for one in self._some([text])]

    def _ask(self, texts: Sequence[str]) -> list[Embedded | EmbedError]:
        """Raises EmbedError."""
        asked = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        body = json.dumps(asked, ensure_ascii=True).encode()
        answer = self._endpoint.post(body, _FIXED + _PER_TEXT * len(texts))
        try:
            # Not a stricter parser: NaN, which some write, is to cost one vector and not all.
            data = json.loads(answer)["data"]
            rows = {row.get("index", place): row["embedding"] for place, row in enumerate(data)}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise EmbedError("the endpoint's answer is not what embeddings look like") from None
        if len(data) != len(texts) or set(rows) != set(range(len(texts))):
            raise EmbedError(
                f"the endpoint gave {len(data)} embeddings for {len(texts)} texts, or numbered them oddly"
            )
        return [self._vector(rows[place]) for place in range(len(texts))]

    def _vector(self, row: Any) -> Embedded | EmbedError:
        if not isinstance(row, list) or not row or not all(type(value) in (int, float) for value in row):
            return EmbedError("the endpoint gave something else than a vector of numbers")
        try:
            numbers = np.array(row, np.float64)
            length = math.sqrt(float(numbers @ numbers))
        except (OverflowError, ValueError):
            length = math.inf
        if not math.isfinite(length) or not length:
            return EmbedError("the endpoint gave a vector of zeros, or of numbers that are none")
        if self._dimensions is None:
            self._dimensions = len(row)
        if len(row) != self._dimensions:
            return EmbedError(f"the endpoint gave {len(row)} numbers where it gave {self._dimensions} before")
        return Embedded((numbers / length).astype(np.float32))


def _space(name: str) -> str:
    whole = f"remote:{name}"
    return whole if len(whole) <= _LONGEST_SPACE else f"remote:{hashlib.sha256(name.encode()).hexdigest()}"


def _key(file: str | None) -> str | None:
    """Raises EmbedError, which does not quote it."""
    if file is None:
        return None
    try:
        key = read_key("semantic.key_file", file)
    except ConfigError as error:
        raise EmbedError(str(error)) from None
    if b" " in key:
        raise EmbedError("semantic.key_file: expected one line with the key, and nothing else")
    return key.decode("ascii")
