"""Segmentation accuracy from sufficient statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

VOID = 255
"""Label of pixels that belong to no class: they never train and never count."""

MASKS = "masks"
"""What accuracy is measured against, where it is not an exit's label maps in their place."""


def iou(intersection: ArrayLike, predicted: ArrayLike, label: ArrayLike) -> NDArray[np.float64]:
    """Per-class IoU from dataset-level pixel counts, each shape (..., C), void left out.

    A class with an empty union is NaN.
    """
    # float64 holds counts exactly up to 2^53 pixels.
    hits = np.asarray(intersection, dtype=np.float64)
    union = np.asarray(predicted, dtype=np.float64) + np.asarray(label, dtype=np.float64) - hits
    return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def mean_iou(
    intersection: ArrayLike, predicted: ArrayLike, label: ArrayLike
) -> NDArray[np.float64] | np.float64:
    """Mean IoU over the classes with a non-zero union; NaN where no class has one.

    Counts are summed over the images first: mIoU is a ratio of sums and is not additive.
    """
    per_class = iou(intersection, predicted, label)
    present = ~np.isnan(per_class)
    count = present.sum(axis=-1)
    # Not nanmean, which warns where no class is present, and tests take warnings for errors.
    total = np.where(present, per_class, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)[()]


def chance_miou(label: ArrayLike) -> float:
    """The mIoU of an answer that knows nothing of the images, from label counts of shape (C,).

    The larger of 1 / C and what the most frequent class everywhere gives.
    """
    counts = np.asarray(label)
    most = np.arange(len(counts)) == counts.argmax()
    everywhere = mean_iou(counts * most, counts.sum() * most, counts)
    return max(1.0 / len(counts), float(everywhere))


def label_counts(label_HW: NDArray[np.uint8], num_classes: int) -> NDArray[np.int32]:
    """Pixels of each class, (C,), void left out."""
    # Counted as far as void, so that there are always `num_classes` counts; then cut off.
    return np.bincount(label_HW.ravel(), minlength=VOID + 1)[:num_classes].astype(np.int32)
