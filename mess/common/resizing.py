"""Resizing defined once: bilinear for logits, nearest neighbour for classes. No torch.

Bilinear means align_corners=False without antialiasing: of n input positions, output pixel x of N
is at (x + 1/2) · n / N - 1/2, but no further out than the first and the last. These are fractions,
so a weight is its exact value rounded once to float32, on every processor. Between positions with a
and b there is a + weight · (b - a), first down the rows, then across the columns, all in float32:
`upsampled` says it in full.

Everything else that upsamples is held against that. The compiled counts are equal to it. Operations
of torch and onnxruntime round positions as well, by up to 3 · 2^-24 · n, and add in an order of
their own: `tolerance` bounds by how much. Their classes differ only where two logits are closer
than twice that.

Shapes: h×w input positions, H×W output pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def tolerance(native: tuple[int, int]) -> float:
    """By how much upsampled logits may differ, of the largest logit of an image by its size.

    A weight that is off by d moves a logit by d · |b - a|, so positions account for 6 · 2^-24 of
    h + w, and the additions in any order for less than 16 · 2^-24.
    """
    return (6 * sum(native) + 16) * 2.0**-24


class Axis(NamedTuple):
    """Bilinear interpolation along one axis.

    start: first pixel of each input position's *cell*, the pixels between it and the next one, and
    the end of the last cell. weight: of the next position, by pixel; 0 in the last cell.
    """

    start: NDArray[np.int64]
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, inputs: int, outputs: int) -> Axis:
        # In units of half an output pixel all is whole numbers.
        unit = 2 * outputs
        source = (2 * np.arange(outputs) + 1) * inputs - outputs
        before, rest = np.divmod(source.clip(0, (inputs - 1) * unit), unit)
        # Where the map shrinks, cells may be empty: they start where the next one does.
        start = np.searchsorted(before, np.arange(inputs + 1))
        # Divided in float64 and rounded again to float32: of whole numbers below 2^24 that is as
        # good as rounded once if the quotient has 2 · 24 + 2 digits, and float64 has 53.
        return cls(start.astype(np.int64), (rest / unit).astype(np.float32))

    def neighbours(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The positions before and after each pixel; of the last cell both are the last one."""
        inputs = len(self.start) - 1
        before = np.repeat(np.arange(inputs), np.diff(self.start))
        return before, np.minimum(before + 1, inputs - 1)

    def matrix(self) -> NDArray[np.float32]:
        """The same as a matrix, (outputs, inputs)."""
        before, after = self.neighbours()
        pixels = np.arange(len(self.weight))
        out = np.zeros((len(pixels), len(self.start) - 1), np.float32)
        out[pixels, before] = 1 - self.weight
        # Added, for in the last cell both positions are one, which would lose its 1 otherwise.
        out[pixels, after] += self.weight
        return out


class Grid(NamedTuple):
    """From h×w input positions to H×W pixels."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, native: tuple[int, int], size: tuple[int, int]) -> Grid:
        return cls(Axis.of(native[0], size[0]), Axis.of(native[1], size[1]))


def upsampled(values_hw: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.floating]:
    """Bilinear to `size`, (..., h, w) to (..., H, W): the definition, in so many words."""
    rows, columns = Grid.of((values_hw.shape[-2], values_hw.shape[-1]), size)
    above, below = (values_hw[..., some, :] for some in rows.neighbours())
    values_Hw = above + rows.weight[:, np.newaxis] * (below - above)
    left, right = (values_Hw[..., some] for some in columns.neighbours())
    return left + columns.weight * (right - left)


def nearest_positions(inputs: int, outputs: int) -> NDArray[np.int64]:
    """Which input position each output pixel shows by nearest neighbour: x · n // N."""
    # In whole numbers: in float32 a rounded n / N can bring x · n / N below the whole it is.
    return np.arange(outputs) * inputs // outputs


def nearest(map_hw: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """A map of classes by nearest neighbour, (..., h, w) to (..., H, W)."""
    rows = nearest_positions(map_hw.shape[-2], size[0])
    columns = nearest_positions(map_hw.shape[-1], size[1])
    return map_hw[..., rows[:, np.newaxis], columns]
