"""What answers on a coarse grid can reach: masks brought to the grid and back. No torch.

Shapes: C classes, H×W label pixels, h×w positions of the grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mess.common.metrics import VOID
from mess.common.resizing import upsampled


def grid_of(size: tuple[int, int], output_stride: int) -> tuple[int, int]:
    """Rows and columns of features at `output_stride`: strided convolutions round up."""
    return -(-size[0] // output_stride), -(-size[1] // output_stride)


def best_on_grid(mask_HW: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask as a network that knows the share of every class at h×w positions would answer it.

    Bilinear upsampling and argmax turn shares of the labelled area into a mask, as they do with
    logits. Sharper ones than shares could come out a little higher, of a network that errs nowhere.
    """
    present = np.unique(mask_HW[mask_HW != VOID])
    if not present.size:
        return np.zeros_like(mask_HW)
    onehot_CHW = (mask_HW == present[:, np.newaxis, np.newaxis]).astype(np.float32)
    shares_Chw = _area_means(_area_means(onehot_CHW, 1, grid[0]), 2, grid[1])
    size = (mask_HW.shape[0], mask_HW.shape[1])
    return present[upsampled(shares_Chw, size).argmax(axis=0)]


def _area_means(values: NDArray[np.float32], axis: int, positions: int) -> NDArray[np.float32]:
    """Means over as many stretches of equal length along an axis; a pixel may be in two of them."""
    pixels = values.shape[axis]
    # Sums from the first pixel to each edge, whose difference is a stretch's; ends need not be
    # whole pixels, within which sums grow evenly.
    first = np.zeros_like(values.take([0], axis))
    sums = np.concatenate([first, values.cumsum(axis, dtype=np.float64)], axis)
    edges = np.arange(positions + 1) * pixels / positions
    whole = np.minimum(edges.astype(np.int64), pixels - 1)
    part = (edges - whole).reshape([-1 if n == axis else 1 for n in range(values.ndim)])
    before, after = sums.take(whole, axis), sums.take(whole + 1, axis)
    means = np.diff(before + part * (after - before), axis=axis) * positions / pixels
    return means.astype(np.float32)
