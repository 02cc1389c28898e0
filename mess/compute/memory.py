"""Keeping the C library from handing memory back between operations."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""

_NEVER = 2**30
"""Bytes; larger than any block that is used again and again."""


def keep_memory() -> None:
    """Have freed memory stay with the process, where the C library is glibc.

    It otherwise returns the activations of a network after every operation, and each page of the
    next ones is then mapped and cleared anew: a quarter of the time of a forward pass on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    # Both: blocks above the first are mapped and given back one by one, the second is about the
    # end of the heap. To set either ends glibc's own adjusting of them.
    library.mallopt(_MMAP_THRESHOLD, _NEVER)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
