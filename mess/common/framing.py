"""How pictures of any size become inputs of one: stretched, padded, or cut into tiles. No torch.

An input is a *frame*: it shows a part of the picture at some place in it, and of that the *core*
counts. Stretched, all three are whole. Padded, the picture keeps its shape and lies in the middle.
In tiles it keeps its resolution, too: neighbours overlap, and the middle of what both show divides
their cores, so that each pixel of the picture is in exactly one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from mess.common.images import resize_image, resize_mask
from mess.common.metrics import VOID

Fit = Literal["stretch", "pad", "tile"]

MOST_OVERLAP = 0.5
"""Of a tile's side: there each pixel is computed four times."""

OVERLAP = 0.125


def as_fit(value: str) -> Fit:
    """The way of fitting; raises ValueError for one that is not known."""
    if value not in get_args(Fit):
        raise ValueError(f"fit is one of {', '.join(get_args(Fit))}, got {value!r}")
    return cast(Fit, value)


class Box(NamedTuple):
    """Pixels of a picture or a frame."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """What cuts it out of an array (H, W, ...)."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


class Frame(NamedTuple):
    """One input: `source`, pixels of the picture, lies at `place`, and `core` of that counts.

    size: height and width of the input. tile: row and column; of what is no tile both are 0.
    """

    size: tuple[int, int]
    source: Box
    place: Box
    core: Box
    tile: tuple[int, int] = (0, 0)

    @property
    def core_of_picture(self) -> Box:
        """The core in pixels of the picture; means nothing where that was scaled."""
        top, left = self.source.top - self.place.top, self.source.left - self.place.left
        return Box(self.core.top + top, self.core.left + left, self.core.height, self.core.width)

    def image(self, image_HW3: NDArray[np.uint8], fill: tuple[int, int, int]) -> NDArray[np.uint8]:
        """What it shows of an image, (*size, 3), on the colour `fill`."""
        part = image_HW3[self.source.slices]
        return self._placed(resize_image(part, self.place[2:]), np.array(fill, np.uint8))

    def mask(self, mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What it shows of a mask, `size`, on void."""
        part = mask_HW[self.source.slices]
        return self._placed(resize_mask(part, self.place[2:]), np.array(VOID, np.uint8))

    def judged(self, mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A mask of its size with void outside the core."""
        if self.core == self.place:
            return mask_HW
        out = np.full(self.size, VOID, np.uint8)
        out[self.core.slices] = mask_HW[self.core.slices]
        return out

    def _placed(self, part: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.place[2:] == self.size:
            return part
        out = np.empty((*self.size, *part.shape[2:]), np.uint8)
        out[...] = background
        out[self.place.slices] = part
        return out


@dataclass(frozen=True, kw_only=True)
class Framing:
    """What frames are made of a picture.

    size: height and width of a frame in pixels.
    overlap: least overlap of neighbouring tiles, as a share of their side.
    Raises ValueError for values that mean nothing.
    """

    size: tuple[int, int]
    fit: Fit = "stretch"
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        as_fit(self.fit)
        if min(self.size) < 1:
            raise ValueError(f"size is at least 1 by 1, got {list(self.size)}")
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise ValueError(f"overlap is a share from 0 to {MOST_OVERLAP}, got {self.overlap:g}")

    @property
    def tiles(self) -> bool:
        """Whether a picture may become several frames."""
        return self.fit == "tile"

    def fingerprint(self) -> list[Any]:
        """What tells apart images that were brought to one size in different ways.

        Nothing where they are stretched, as all were before there was a choice.
        """
        if self.fit == "stretch":
            return []
        return [self.fit, self.overlap] if self.tiles else [self.fit]

    def frames(self, shape: tuple[int, int]) -> tuple[Frame, ...]:
        """Those of a picture of so many rows and columns; of tiles row by row."""
        return _frames(self, shape)


def stitched(
    frames: Iterable[Frame], maps: Iterable[NDArray[np.uint8]], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """The label map of a picture of `shape` from those of its tiles: each pixel by its core."""
    out = np.empty(shape, np.uint8)
    for frame, map_HW in zip(frames, maps, strict=True):
        out[frame.core_of_picture.slices] = map_HW[frame.core.slices]
    return out


# Most pictures of a data set have one of a few sizes.
@lru_cache(maxsize=64)
def _frames(framing: Framing, shape: tuple[int, int]) -> tuple[Frame, ...]:
    size, whole = framing.size, Box(0, 0, *shape)
    if framing.fit == "stretch":
        place = Box(0, 0, *size)
        return (Frame(size, whole, place, place),)
    if framing.fit == "pad":
        place = _in_the_middle(_fitted(shape, size), size)
        return (Frame(size, whole, place, place),)
    rows, columns = (
        _cuts(length, side, framing.overlap) for length, side in zip(shape, size, strict=True)
    )
    return tuple(
        _tile(size, row, column, (number, position))
        for number, row in enumerate(rows)
        for position, column in enumerate(columns)
    )


class _Cut(NamedTuple):
    """A tile along one side: its pixels of the picture, and those of its core."""

    start: int
    stop: int
    core_start: int
    core_stop: int


def _cuts(length: int, side: int, overlap: float) -> list[_Cut]:
    """Tiles of `side` pixels along `length`, as few as overlap enough, spread evenly."""
    if length <= side:
        return [_Cut(0, length, 0, length)]
    stride = side - round(overlap * side)
    gaps = -(-(length - side) // stride)
    starts = [number * (length - side) // gaps for number in range(gaps + 1)]
    # Starts differ, so these do, and no core is empty.
    bounds = [0, *((start + after + side) // 2 for start, after in pairwise(starts)), length]
    cores = pairwise(bounds)
    return [_Cut(start, start + side, *core) for start, core in zip(starts, cores, strict=True)]


def _tile(size: tuple[int, int], row: _Cut, column: _Cut, tile: tuple[int, int]) -> Frame:
    source = Box(row.start, column.start, row.stop - row.start, column.stop - column.start)
    place = _in_the_middle((source.height, source.width), size)
    core = Box(
        place.top + row.core_start - row.start,
        place.left + column.core_start - column.start,
        row.core_stop - row.core_start,
        column.core_stop - column.core_start,
    )
    return Frame(size, source, place, core, tile)


def _fitted(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The largest shape of the same proportions that fits into `size`, in whole pixels."""
    (height, width), (most_rows, most_columns) = shape, size
    # In whole numbers, so that every machine pads alike.
    if most_rows * width <= most_columns * height:
        return most_rows, min(max(_rounded(width * most_rows, height), 1), most_columns)
    return min(max(_rounded(height * most_columns, width), 1), most_rows), most_columns


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _in_the_middle(part: tuple[int, int], size: tuple[int, int]) -> Box:
    """An odd pixel that is left goes below and to the right."""
    return Box((size[0] - part[0]) // 2, (size[1] - part[1]) // 2, *part)
