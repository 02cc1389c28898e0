"""PNG files by the format's own words, so that what reads them is not what wrote them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
_SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def write_png(
    path: Path,
    samples: NDArray[np.integer],
    *,
    bits: int,
    kind: int = GREY,
    before: bytes = b"",
    behind: bytes = b"",
) -> Path:
    """Samples of shape (H, W) or (H, W, channels), each of so many bits.

    before, behind: chunks that stand before and behind the pixels.
    """
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1).astype(np.uint16)
    assert rows.shape[1] == width * _SAMPLES[kind]
    # The bits of each sample, highest first; a row is filled up to whole bytes.
    spread = rows[..., None] >> np.arange(bits - 1, -1, -1) & 1
    packed = np.packbits(spread.astype(np.uint8).reshape(height, -1), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(lines))
        + behind
        + chunk(b"IEND", b"")
    )
    return path


def exif_chunk(orientation: int) -> bytes:
    """The chunk with the one entry that says how the image is turned."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return chunk(b"eXIf", b"MM\0*" + struct.pack(">IH", 8, 1) + entry + b"\0\0\0\0")
