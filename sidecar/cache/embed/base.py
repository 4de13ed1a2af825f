"""What turns questions into vectors, wherever that happens.

An embedder blocks: it is for one thread of its own. It is given all the texts that wait, and gives one vector
or one error for each.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:  # whoever has no embedder needs no numpy
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]
else:
    Vector = Any
"""Of shape (dimensions,) and length 1."""


class EmbedError(Exception):
    """There is no vector for a text; the message is one line for people, and does not quote the text."""


class Embedded(msgspec.Struct, frozen=True, eq=False):
    """What became of a text."""

    vector: Vector
    truncated: bool = False
    """The text has more tokens than the model reads; the vector is that of its beginning."""
    unknown: bool = False
    """There are characters in it that the model does not know: it takes all of them for the same one."""


class Embedder(Protocol):
    """One model, loaded and ready."""

    @property
    def space(self) -> str:
        """Names what makes the vectors: those of two spaces say nothing of each other. At most 200
        characters."""

    def embed(self, texts: Sequence[str]) -> list[Embedded | EmbedError]:
        """One for each text, in their order. The vector of a text does not depend on what else is asked for.
        Raises EmbedError when none of them can be had."""

    def close(self) -> None:
        """Never raises."""
