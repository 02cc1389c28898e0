"""torch's bilinear interpolation on the CPU, to the last digit: its weights, and single pixels.

torch has several kernels for it, by layout, number of classes, size and threads, and they round
differently. Where two classes are all but equal the rounding decides. Nothing here relies on how
the kernels are written: weights are read off what torch makes of ones, and the order of operations
off what it makes of random numbers. Where no known order reproduces these, torch is asked itself.

Shapes: B images, C classes, H×W pixels of the input, h×w native positions, D pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mess.prediction.kernels import Axis, Grid

_MANY = 4096
"""Pixels from which on a whole map is as fast."""


class _Kernel(NamedTuple):
    """What decides how torch interpolates."""

    classes: int
    native: tuple[int, int]
    size: tuple[int, int]
    channels_last: bool
    threads: int

    @classmethod
    def of(cls, logits_BChw: Tensor, size: tuple[int, int]) -> _Kernel:
        _, classes, height, width = logits_BChw.shape
        last = logits_BChw.is_contiguous(memory_format=torch.channels_last)
        return cls(classes, (height, width), size, last, torch.get_num_threads())

    def laid_out(self, logits_BChw: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return logits_BChw.contiguous(memory_format=layout)


def upsample_logits(logits_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits at `size` (H, W), align_corners=False."""
    return F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False)


def upsampled_classes(logits_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Class of every pixel at `size` (H, W): the definition that everything else here follows."""
    return upsample_logits(logits_BChw, size).argmax(1)


def grid_of(logits_BChw: Tensor, size: tuple[int, int]) -> Grid:
    """The interpolation that `upsampled_classes` uses on these logits."""
    return _arithmetic(_Kernel.of(logits_BChw, size)).grid


def classes_at(
    logits_BChw: Tensor, size: tuple[int, int], pixel_D3: NDArray[np.integer]
) -> NDArray[np.intp]:
    """What `upsampled_classes` gives at some pixels, each image, row and column; shape (D,)."""
    kernel = _Kernel.of(logits_BChw, size)
    found_D = np.full(len(pixel_D3), -1, dtype=np.intp)
    grid, orders = _arithmetic(kernel)
    if orders is not None and len(pixel_D3) < _MANY:
        image_D, row_D, column_D = pixel_D3.T
        corners = _corners(grid, kernel, row_D, column_D)
        # Not by torch: in another thread it would start threads of its own.
        logits = logits_BChw.numpy()
        logits_DC = [
            logits[image_D, :, rows, columns]
            for rows, columns in zip(corners.rows, corners.columns, strict=True)
        ]
        return _blend(orders, corners, logits_DC).argmax(1)
    found_D = np.empty(len(pixel_D3), dtype=np.intp)
    for i in np.unique(pixel_D3[:, 0]):
        here_D = pixel_D3[:, 0] == i
        class_HW = upsampled_classes(logits_BChw[i : i + 1], size)[0].numpy()
        found_D[here_D] = class_HW[pixel_D3[here_D, 1], pixel_D3[here_D, 2]]
    return found_D


class _Arithmetic(NamedTuple):
    """How torch interpolates: where, and in which order each class is summed, None where unknown.

    The order is an index into `_ORDERS`.
    """

    grid: Grid
    orders: tuple[int, ...] | None


@lru_cache(maxsize=128)
def _arithmetic(kernel: _Kernel) -> _Arithmetic:
    """Told by random logits, of which every pixel must come out the same to the last digit."""
    generator = torch.Generator().manual_seed(0)
    logits_1Chw = torch.randn(1, kernel.classes, *kernel.native, generator=generator)
    whole_CHW = upsample_logits(kernel.laid_out(logits_1Chw), kernel.size)[0].numpy()
    true_DC = whole_CHW.reshape(kernel.classes, -1).T
    pixels = np.indices(kernel.size).reshape(2, -1)
    for fused in (True, False):
        grid = Grid(_axis(kernel, 0, fused), _axis(kernel, 1, fused))
        corners = _corners(grid, kernel, *pixels)
        logits_DC = [
            logits_1Chw[0].numpy()[:, rows, columns].T
            for rows, columns in zip(corners.rows, corners.columns, strict=True)
        ]
        same = np.array([(_sums(order, corners, logits_DC) == true_DC).all(0) for order in _ORDERS])
        if same.any(axis=0).all():
            return _Arithmetic(grid, tuple(same.argmax(axis=0).tolist()))
    return _Arithmetic(grid, None)


def _axis(kernel: _Kernel, axis: int, fused: bool) -> Axis:
    """Positions and weights along an axis: how much of one in every third position a pixel gets.

    A pixel has a part in two neighbours at most, and of three in a row no two are alike modulo 3.
    The first pixel of the other axis has nothing else in it. Beyond the last position both parts
    are of the same, and their weights as computed, with `fused` rounded once instead of twice.
    """
    native, full = kernel.native[axis], kernel.size[axis]
    shape = (1, kernel.classes, native, 1) if axis == 0 else (1, kernel.classes, 1, native)
    part_3F = np.empty((3, full), dtype=np.float32)
    for residue in range(3):
        ones = (torch.arange(native) % 3 == residue).float().view(1, 1, *shape[2:])
        whole = upsample_logits(kernel.laid_out(ones.expand(shape)), kernel.size)
        part_3F[residue] = whole[0, 0].select(1 - axis, 0).numpy()
    source = (np.arange(full) + 0.5) * native / full - 0.5
    near = np.clip(np.rint(source).astype(np.int64), 0, native - 1)
    pixels = np.arange(full)
    before = part_3F[(near - 1) % 3, pixels] > 0
    position = np.where(before & (near > 0), near - 1, near)
    weight = part_3F[(position + 1) % 3, pixels]
    scale, half = np.float32(native) / np.float32(full), np.float32(0.5)
    exact = np.float64(scale) * (pixels + 0.5) - 0.5
    rounded = scale * (pixels.astype(np.float32) + half) - half
    beyond = (exact.astype(np.float32) if fused else rounded) - np.float32(native - 1)
    weight = np.where(position == native - 1, np.clip(beyond, 0, 1), weight).astype(np.float32)
    return Axis(np.searchsorted(position, np.arange(native + 1)), weight)


class _Corners(NamedTuple):
    """The four native positions of pixels, left before right, top before low."""

    rows: list[NDArray[np.intp]]
    columns: list[NDArray[np.intp]]
    down: NDArray[np.float32]
    across: NDArray[np.float32]


def _corners(
    grid: Grid, kernel: _Kernel, row_D: NDArray[np.integer], column_D: NDArray[np.integer]
) -> _Corners:
    top = np.searchsorted(grid.rows.start, row_D, side="right") - 1
    left = np.searchsorted(grid.columns.start, column_D, side="right") - 1
    low = np.minimum(top + 1, kernel.native[0] - 1)
    right = np.minimum(left + 1, kernel.native[1] - 1)
    return _Corners(
        [top, top, low, low],
        [left, right, left, right],
        grid.rows.weight[row_D],
        grid.columns.weight[column_D],
    )


_Values = NDArray[np.float32]

_Order = Callable[[_Values, _Values, list[_Values]], _Values]
"""From weights down and across, shape (D, 1), and the logits of four corners, shape (D, C)."""


def _fused(weight: _Values, value: _Values, rest: _Values) -> _Values:
    """Weight * value + rest, rounded once: the product of two single precisions is exact."""
    return (weight.astype(np.float64) * value + rest).astype(np.float32)


def _separable(down: _Values, across: _Values, corners: list[_Values]) -> _Values:
    """First across, then down."""
    one = np.float32(1)
    top, low = (
        _fused(one - across, left, across * right) for left, right in (corners[:2], corners[2:])
    )
    return _fused(one - down, top, down * low)


def _in_order(order: tuple[int, int, int, int]) -> _Order:
    """The four corners one after the other, each with the product of its weights."""

    def blend(down: _Values, across: _Values, corners: list[_Values]) -> _Values:
        up, back = np.float32(1) - down, np.float32(1) - across
        weights = [up * back, up * across, down * back, down * across]
        value = weights[order[0]] * corners[order[0]]
        for corner in order[1:]:
            value = _fused(weights[corner], corners[corner], value)
        return value

    return blend


_ORDERS: tuple[_Order, ...] = (_separable, _in_order((1, 0, 2, 3)), _in_order((2, 3, 1, 0)))
"""Those that kernels of torch were found to follow."""


def _sums(order: _Order, corners: _Corners, logits_DC: list[_Values]) -> _Values:
    return order(corners.down[:, np.newaxis], corners.across[:, np.newaxis], logits_DC)


def _blend(orders: tuple[int, ...], corners: _Corners, logits_DC: list[_Values]) -> _Values:
    """Logits of pixels, (D, C), each class in its order."""
    out_DC, chosen = np.empty_like(logits_DC[0]), np.array(orders)
    for index in np.unique(chosen):
        classes = chosen == index
        some_DC = [values[:, classes] for values in logits_DC]
        out_DC[:, classes] = _sums(_ORDERS[index], corners, some_DC)
    return out_DC
