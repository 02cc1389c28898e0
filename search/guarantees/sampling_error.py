"""How far mIoU, error and cost on these images are from those on all images like them.

mIoU is a ratio of sums, not a mean over the images. To first order it moves with each image by the
image's *influence*, and those are summed: with hits I and union U of image i and class c, and C'
the classes whose union is not empty,

    psi_i = n / C' * sum over c of (I_ic - IoU_c * U_ic) / U_.c,

whose mean over the images is 0. What two configurations lose to each other is *paired*: both ran on
the same images, so influences are subtracted image by image, and the difference is far more certain
than either mIoU.

Shapes: I images, C classes, G groups, D draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from mess.errors import DataError
from mess.search.guarantees.confidence import require_confidence
from mess.search.guarantees.groups import Groups

_DRAWS_AT_ONCE = 500
"""Bootstrap draws that are held in memory together."""


@dataclass(frozen=True)
class Counts:
    """Pixels by image and class, shape (I, C): hits, and the union of prediction and label."""

    hits_IC: NDArray[np.int64]
    union_IC: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        intersection_IC: NDArray[np.integer],
        predicted_IC: NDArray[np.integer],
        label_IC: NDArray[np.integer],
    ) -> Self:
        """From what a cache holds of one exit, or of each image's answering exit."""
        hits = intersection_IC.astype(np.int64)
        return cls(hits, predicted_IC + label_IC - hits)

    @property
    def present_C(self) -> NDArray[np.bool_]:
        """Classes that count in the mean: those whose union is not empty."""
        return self.union_IC.sum(axis=0) > 0

    @property
    def miou(self) -> float:
        """Mean IoU over the classes whose union is not empty; raises DataError where none is."""
        hits, union = self.hits_IC.sum(axis=0), self.union_IC.sum(axis=0)
        if not union.any():
            raise DataError("no class has a pixel, so mIoU is undefined; check the masks")
        return float((hits[union > 0] / union[union > 0]).mean())

    @property
    def influence_I(self) -> NDArray[np.float64]:
        """By how much mIoU moves with the weight of each image, times their number; mean 0."""
        present = self.present_C
        hits, union = self.hits_IC[:, present], self.union_IC[:, present]
        whole = union.sum(axis=0)
        iou = hits.sum(axis=0) / whole
        return len(hits) * ((hits - iou * union) / whole).mean(axis=1)


class Estimate(NamedTuple):
    """A figure of these images, and how far it may be from that of all images like them.

    groups: number of groups that the standard error rests on.
    """

    value: float
    standard_error: float
    groups: int

    @classmethod
    def of_influence(cls, value: float, influence_I: NDArray[np.float64], groups: Groups) -> Self:
        """From the influence of each image, which is summed in each group first.

        The groups are what was drawn: se = sqrt(G / (G - 1) * sum of squares) / n. Raises DataError
        for a single group, which says nothing about others.
        """
        if len(groups) < 2:
            raise DataError(
                "all images are of one group, which says nothing about others; "
                "memoise images of more groups"
            )
        sums_G = groups.sums(influence_I)
        spread = np.sqrt(len(groups) / (len(groups) - 1) * np.square(sums_G).sum())
        return cls(value, float(spread / groups.images), len(groups))

    def upper(self, confidence: float) -> float:
        """What the figure of all images is below with this probability, by Student's t."""
        return self.value + self._quantile(confidence) * self.standard_error

    def lower(self, confidence: float) -> float:
        """What it is above with this probability."""
        return self.value - self._quantile(confidence) * self.standard_error

    def interval(self, confidence: float) -> tuple[float, float]:
        """Both ends of the interval that holds it with this probability."""
        each_side = (1 + confidence) / 2
        return self.lower(each_side), self.upper(each_side)

    def to_json(self, confidence: float) -> dict[str, float]:
        """The value and both ends of its interval, as results and manifests hold them."""
        low, high = self.interval(confidence)
        return {"value": self.value, "low": low, "high": high}

    def _quantile(self, confidence: float) -> float:
        require_confidence(confidence)
        return float(stdtrit(self.groups - 1, confidence))


def miou_estimate(counts: Counts, groups: Groups) -> Estimate:
    """The mean IoU of one exit, or of each image's answering exit."""
    return Estimate.of_influence(counts.miou, counts.influence_I, groups)


def error_estimate(final: Counts, answer: Counts, groups: Groups) -> Estimate:
    """What the answers lose to the final exit's, mIoU against mIoU, on the same images."""
    influence_I = final.influence_I - answer.influence_I
    return Estimate.of_influence(final.miou - answer.miou, influence_I, groups)


def mean_estimate(values_I: NDArray[np.floating], groups: Groups) -> Estimate:
    """A mean over the images, such as cost or the share that an exit answers."""
    values = values_I.astype(np.float64)
    return Estimate.of_influence(float(values.mean()), values - values.mean(), groups)


def bootstrap_mious(
    configurations: tuple[Counts, ...],
    groups: Groups,
    rng: np.random.Generator,
    draws: int = 10_000,
) -> NDArray[np.float64]:
    """The mIoU, shape (D, configurations), of each on groups drawn with replacement.

    All see the same draws, so that differences between them are paired. A class that no drawn group
    contains is left out of that draw's mean, as it would be with those images.
    """
    sums_GX = np.concatenate(
        [groups.sums(part) for each in configurations for part in (each.hits_IC, each.union_IC)],
        axis=1,
    )
    classes, size = configurations[0].hits_IC.shape[1], len(groups)
    mious = np.empty((draws, len(configurations)))
    for start in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - start)
        # Counting indices is several times faster than drawing multinomial counts.
        drawn = rng.integers(size, size=(count, size)) + np.arange(count)[:, None] * size
        times_DG = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        totals = (times_DG.astype(np.float64) @ sums_GX).reshape(count, -1, 2, classes)
        hits, union = totals[:, :, 0], totals[:, :, 1]
        ious = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)
        mious[start : start + count] = ious.sum(axis=2) / (union > 0).sum(axis=2)
    return mious
