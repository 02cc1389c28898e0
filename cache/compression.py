"""Label and confidence maps as the cache stores them. No torch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def compress(map_hw: NDArray[np.uint8]) -> bytes:
    """A map of small integers as zlib bytes, row by row."""
    # docs/files.md tells other tools that it is zlib: anything else is another schema version.
    return zlib.compress(np.ascontiguousarray(map_hw).tobytes(), level=6)


def decompress(data: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    """The inverse of `compress`; the shape (h, w) is in the cache's manifest."""
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)
