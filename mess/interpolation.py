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

from mess.counting import Axis, Grid

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
    return _grid(_Kernel.of(logits_BChw, size))


def classes_at(
    logits_BChw: Tensor, size: tuple[int, int], pixel_D3: NDArray[np.integer]
) -> NDArray[np.intp]:
    """What `upsampled_classes` gives at some pixels, each image, row and column; shape (D,)."""
    kernel = _Kernel.of(logits_BChw, size)
    found_D = np.full(len(pixel_D3), -1, dtype=np.intp)
    orders = _orders(kernel) if len(pixel_D3) < _MANY else None
    if orders is not None:
        image_D, row_D, column_D = pixel_D3.T
        corners = _corners(_grid(kernel), kernel, row_D, column_D)
        logits_DC = [
            logits_BChw[image_D, :, rows, columns].numpy()
            for rows, columns in zip(corners.rows, corners.columns, strict=True)
        ]
        value_DC = _blend(orders, corners, logits_DC)
        found_D = np.where(corners.inner, value_DC.argmax(1), -1)
    for i in np.unique(pixel_D3[found_D < 0, 0]):
        here_D = (pixel_D3[:, 0] == i) & (found_D < 0)
        class_HW = upsampled_classes(logits_BChw[i : i + 1], size)[0].numpy()
        found_D[here_D] = class_HW[pixel_D3[here_D, 1], pixel_D3[here_D, 2]]
    return found_D


@lru_cache(maxsize=128)
def _grid(kernel: _Kernel) -> Grid:
    return Grid(_axis(kernel, 0), _axis(kernel, 1))


def _axis(kernel: _Kernel, axis: int) -> Axis:
    """Positions and weights along an axis: how much of one in every third position a pixel gets.

    A pixel has a part in two neighbours at most, and of three in a row no two are alike modulo 3.
    The first pixel of the other axis has nothing else in it.
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
    return Axis(np.searchsorted(position, np.arange(native + 1)), weight)


class _Corners(NamedTuple):
    """The four native positions of pixels, left before right, top before low.

    inner: whether they are four. At the last row and column two coincide, and how torch divides
    the weight between them cannot be told.
    """

    rows: list[NDArray[np.intp]]
    columns: list[NDArray[np.intp]]
    down: NDArray[np.float32]
    across: NDArray[np.float32]
    inner: NDArray[np.bool_]


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
        (low > top) & (right > left),
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


@lru_cache(maxsize=128)
def _orders(kernel: _Kernel) -> tuple[int, ...] | None:
    """The index into `_ORDERS` that each class follows; None where one follows none.

    Told by random logits of which every pixel must come out the same to the last digit.
    """
    generator = torch.Generator().manual_seed(0)
    logits_1Chw = torch.randn(1, kernel.classes, *kernel.native, generator=generator)
    whole_CHW = upsample_logits(kernel.laid_out(logits_1Chw), kernel.size)[0].numpy()
    pixels = np.indices(kernel.size).reshape(2, -1)
    corners = _corners(_grid(kernel), kernel, *pixels)
    inner = corners.inner
    logits_DC = [
        logits_1Chw[0].numpy()[:, rows, columns].T[inner]
        for rows, columns in zip(corners.rows, corners.columns, strict=True)
    ]
    true_DC = whole_CHW.reshape(kernel.classes, -1).T[inner]
    weights = corners.down[inner, np.newaxis], corners.across[inner, np.newaxis]
    same = [(order(*weights, logits_DC) == true_DC).all(axis=0) for order in _ORDERS]
    known = np.array(same).any(axis=0)
    return tuple(np.argmax(same, axis=0).tolist()) if known.all() and inner.any() else None


def _blend(orders: tuple[int, ...], corners: _Corners, logits_DC: list[_Values]) -> _Values:
    """Logits of pixels, (D, C), each class in its order."""
    out_DC = np.empty_like(logits_DC[0])
    weights = corners.down[:, np.newaxis], corners.across[:, np.newaxis]
    chosen = np.array(orders)
    for index in np.unique(chosen):
        classes = chosen == index
        out_DC[:, classes] = _ORDERS[index](*weights, [values[:, classes] for values in logits_DC])
    return out_DC
