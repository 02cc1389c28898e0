"""Accuracy of per-pixel early exits from stored maps: Deep Layer Cascade (MESS paper, §6.2).

A pixel is a native output position. It leaves at the first exit whose confidence there reaches that
exit's threshold; the last exit takes the rest. Shapes: I images, h×w native pixels, H×W pixels of
the input, C classes, L confidence levels, N early exits. No torch.

Logits are not stored, so a native map is brought to the size of the input by nearest neighbour,
not by the bilinear interpolation of logits that networks are otherwise judged by (row r of H shows
row r*h//H). Edges of objects come out in steps of the output stride, and mIoU is lower than the
bilinear one. Only what is measured in the same way may be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mess.common.metrics import mean_iou
from mess.common.resizing import nearest, nearest_positions
from mess.prediction.counting import cell_counts

LEVELS = 256
"""Of stored confidences, top-1 probability in 255ths. Threshold LEVELS lets no pixel leave."""

_DIGITS = 12
"""To which mIoU is compared: rounding in a sum decides nothing."""


def shown_counts(
    label_IHW: NDArray[np.integer], native: tuple[int, int], classes: int
) -> NDArray[np.int32]:
    """Labelled pixels of each class that `nearest` shows a native pixel at, (I, h, w, C).

    Void pixels are in none.
    """
    rows, columns = (
        np.searchsorted(nearest_positions(native[i], label_IHW.shape[1 + i]), range(native[i] + 1))
        for i in (0, 1)
    )
    return cell_counts(rows, columns, label_IHW, classes).classes_BhwC


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What exits e1 ... en predicted, at the common native size, and what is true there.

    label_maps: n of (I, h, w). confidences: N = n - 1 of (I, h, w), whole numbers below `levels`.
    cells: (I, h, w, C), from `shown_counts`.
    """

    label_maps: tuple[NDArray[np.integer], ...]
    confidences: tuple[NDArray[np.integer], ...]
    cells: NDArray[np.int32]
    levels: int = LEVELS

    @classmethod
    def of(
        cls,
        label_maps: Sequence[NDArray[np.integer]],
        confidences: Sequence[NDArray[np.integer]],
        label_IHW: NDArray[np.integer],
        classes: int,
        levels: int = LEVELS,
    ) -> Maps:
        """Bring the maps of exits with different strides to the size of the largest."""
        native = (max(m.shape[1] for m in label_maps), max(m.shape[2] for m in label_maps))
        return cls(
            label_maps=tuple(nearest(labels, native) for labels in label_maps),
            confidences=tuple(nearest(values, native) for values in confidences),
            cells=shown_counts(label_IHW, native, classes),
            levels=levels,
        )

    @property
    def label(self) -> NDArray[np.int64]:
        """Labelled pixels of each class, (I, C)."""
        return self.cells.sum((1, 2), dtype=np.int64)

    def counts(self, label_Ihw: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pixels of each class that a label map shares with the labels, and has, each (I, C)."""
        intersection, predicted = self._weights(label_Ihw)
        images, _, _, classes = self.cells.shape
        index = np.arange(images)[:, None, None] * classes + label_Ihw
        return (
            _histogram(index, intersection, (images, classes)),
            _histogram(index, predicted, (images, classes)),
        )

    def miou(self, label_Ihw: NDArray[np.integer]) -> float:
        """MIoU of a label map at the common native size."""
        intersection, predicted = self.counts(label_Ihw)
        return float(mean_iou(intersection.sum(0), predicted.sum(0), self.label.sum(0)))

    def answering(self, thresholds: Sequence[int]) -> NDArray[np.intp]:
        """Position of the exit at which each pixel leaves, (I, h, w)."""
        answer = np.full(self.label_maps[0].shape, len(thresholds))
        for position, threshold in reversed(list(enumerate(thresholds))):
            answer[self.confidences[position] >= threshold] = position
        return answer

    def composite(self, thresholds: Sequence[int]) -> NDArray[np.integer]:
        """The label map that is put together from what every pixel's exit says, (I, h, w)."""
        return np.choose(self.answering(thresholds), self.label_maps)

    def mious(self) -> NDArray[np.float64]:
        """MIoU under every choice of thresholds, shape (L + 1,) * N; index t is threshold t.

        Memory is C·(L + 1)^N: one or two early exits.
        """
        classes, early = self.cells.shape[3], len(self.confidences)
        totals = [np.zeros((self.levels + 1,) * early + (classes,), np.int64) for _ in range(2)]
        for position, labels in enumerate(self.label_maps):
            some = self.confidences[: position + 1]
            shape = (self.levels,) * len(some) + (classes,)
            index = np.ravel_multi_index((*some, labels), shape)
            for total, weights in zip(totals, self._weights(labels), strict=True):
                left = _histogram(index, weights, shape)
                for axis in range(len(some)):
                    left = _accumulated(left, axis, reaches=axis == position)
                # What later exits think makes no difference.
                total += left.reshape(*left.shape[:-1], *(1,) * (early - len(some)), classes)
        return np.asarray(mean_iou(totals[0], totals[1], self.label.sum(0)))

    def active(
        self, thresholds: Sequence[int], natives: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.bool_]]:
        """For e2 ... en, which pixels of their own native sizes are still active, (I, h, w).

        One is where any pixel of the common size is that shows it.
        """
        answer = self.answering(thresholds)
        return [_shrunk(answer > position, native) for position, native in enumerate(natives)]

    def _weights(
        self, label_Ihw: NDArray[np.integer]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """What a pixel adds to the intersection and to the predicted pixels of its class."""
        index = label_Ihw[..., None].astype(np.int64)
        hit = np.take_along_axis(self.cells, index, axis=3)[..., 0]
        return hit, self.cells.sum(3, dtype=np.int64)


def cheapest(mious: NDArray[np.float64], least: float) -> list[tuple[int, ...]]:
    """Choices of thresholds one of which has the fewest MACs among those with mIoU >= `least`.

    MACs never fall when a threshold rises, so a choice is left out where another one that is
    nowhere higher reaches `least` too. With one early exit one is left.
    """
    feasible = np.round(mious, _DIGITS) >= np.round(least, _DIGITS)
    reached = feasible.copy()
    for axis in range(feasible.ndim):
        reached = np.logical_or.accumulate(reached, axis=axis)
    minimal = feasible
    for axis in range(feasible.ndim):
        before = np.roll(reached, 1, axis)
        before[(slice(None),) * axis + (0,)] = False
        minimal = minimal & ~before
    return [tuple(int(i) for i in index) for index in np.argwhere(minimal)]


def _histogram(
    index: NDArray[np.integer], weights: NDArray[np.integer], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Sums of whole numbers; they are exact, in floating point too, below 2^53."""
    sums = np.bincount(index.ravel(), weights.ravel(), minlength=int(np.prod(shape)))
    return sums.astype(np.int64).reshape(shape)


def _accumulated(counts: NDArray[np.int64], axis: int, *, reaches: bool) -> NDArray[np.int64]:
    """From counts by level to counts by threshold t = 0..L: of levels >= t, or of those below."""
    none = np.zeros_like(counts.take([0], axis))
    below = np.concatenate([none, counts.cumsum(axis)], axis)
    return below.take([-1], axis) - below if reaches else below


def _shrunk(mask_Ihw: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where any pixel is set among those that `nearest` shows a pixel of the smaller map at."""
    index = nearest(np.arange(size[0] * size[1]).reshape(1, *size), mask_Ihw.shape[1:])[0]
    out = np.zeros((len(mask_Ihw), size[0] * size[1]), np.bool_)
    image, row, column = np.nonzero(mask_Ihw)
    out[image, index[row, column]] = True
    return out.reshape(-1, *size)
