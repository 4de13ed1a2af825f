"""Weights as safetensors files keep them: the length of a header, the header as JSON, the raw numbers.

The file may be anybody's: whatever it claims is checked against its size before it is believed.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.float32]

_PREFIX = 8
"""Bytes in which the length of the header stands."""
_LONGEST_HEADER = 16 << 20
"""Bytes; those of the largest models have some hundred thousand."""
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per number of the kinds that are read."""


class WeightsError(Exception):
    """The file is not what it should be; the message is one line and goes behind the file's name."""


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Weights(Mapping[str, Tensor]):
    """The tensors of a file by name; each is read when it is asked for, as float32.

    Asking raises KeyError, OSError, and WeightsError where it is of a kind that is not read.
    """

    def __init__(self, path: Path) -> None:
        """Raises WeightsError, and OSError."""
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_PREFIX), "little")
            if size < _PREFIX or length > min(size - _PREFIX, _LONGEST_HEADER):
                raise WeightsError("is no safetensors file, or its end is missing")
            self._entries = _entries(file.read(length), size - _PREFIX - length)
        self._path, self._offset = path, _PREFIX + length

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        if entry.dtype not in _WIDTHS:
            raise WeightsError(f"has {name} as {entry.dtype}; expected F32, F16 or BF16")
        begin, end = entry.data_offsets
        with self._path.open("rb") as file:
            file.seek(self._offset + begin)
            raw = file.read(end - begin)
        if len(raw) != end - begin:
            raise WeightsError("has got shorter meanwhile")
        return _numbers(raw, entry.dtype).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one, without reading it. Raises KeyError."""
        return tuple(self._entries[name].shape)


def _numbers(raw: bytes, dtype: str) -> Tensor:
    if dtype == "BF16":
        # The upper half of a float32.
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)


def _entries(header: bytes, room: int) -> dict[str, _Entry]:
    """`room`: bytes of numbers that there are."""
    try:
        tree: dict[str, Any] = msgspec.json.decode(header, type=dict[str, Any])
        tree.pop("__metadata__", None)
        entries = msgspec.convert(tree, dict[str, _Entry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise WeightsError("has no header that can be read") from None
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if not 0 <= begin <= end <= room or any(side < 0 for side in entry.shape):
            raise WeightsError(f"has {name!r} outside of itself")
        width = _WIDTHS.get(entry.dtype)
        if width is not None and math.prod(entry.shape) * width != end - begin:
            raise WeightsError(f"has {name!r} in another size than its shape asks for")
    return entries
