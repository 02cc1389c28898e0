"""How far mIoU, error and cost on these images are from those on all images like them.

mIoU is a ratio of sums, not a mean over the images. How far it may be off is found by leaving out
each group in turn (the jackknife): by how much it moves is what that group tells of others. What
two configurations lose to each other is *paired*: both ran on the same images, so what moves is the
difference, which is far more certain than either mIoU.

Linear influences (mIoU's derivative by the weight of an image) are the same to first order, and
lost: a class that one group alone contains has an influence of exactly 0, since its IoU fits that
group, while leaving the group out moves the mIoU by all that the class is worth. With 60 classes
such bounds missed 18% of the time, where 5% were allowed.

Shapes: I images, C classes, G groups, R divisions into folds.
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

_USUAL, _SKEWED = 0.95, 0.15
"""At a confidence of 0.95 a bound that is widened by more than this share counts as uncertain.

Of configurations that nothing chose, bounds missed 8% of the time with 120 images, whose widening
is a fifth, and 6% with 240, whose is a seventh (5% allowed).
"""


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

    def of_classes(self, some_C: NDArray[np.bool_]) -> Self:
        """Of some classes alone."""
        return type(self)(self.hits_IC[:, some_C], self.union_IC[:, some_C])

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

    def without_G(self, groups: Groups) -> NDArray[np.float64]:
        """The mIoU without each group in turn, shape (G,).

        A class that no other group contains is left out of the mean then. Raises DataError where
        one group has all pixels.
        """
        hits_GC, union_GC = groups.sums(self.hits_IC), groups.sums(self.union_IC)
        hits, union = hits_GC.sum(axis=0) - hits_GC, union_GC.sum(axis=0) - union_GC
        present_GC = union > 0
        if not present_GC.any(axis=1).all():
            raise DataError("one group has all pixels, which says nothing about others")
        ious = np.divide(hits, union, out=np.zeros_like(hits), where=present_GC)
        return ious.sum(axis=1) / present_GC.sum(axis=1)


class Estimate(NamedTuple):
    """A figure of these images, and how far it may be from that of all images like them.

    groups: number of groups that the standard error rests on.
    skewness: of the groups' moves. Where few groups lose much and most lose nothing it is positive;
        most samples then lack some of the few, and show too small a figure and too small an error.
    """

    value: float
    standard_error: float
    groups: int
    skewness: float = 0.0

    @classmethod
    def of_moves(cls, value: float, moves_RG: NDArray[np.float64]) -> Self:
        """From by how much each group moves the figure: with it, less without it.

        moves_RG: in each of R divisions into folds, of which `value` is the mean. Variances are
            averaged over them, not moves: their mean varies less than the value does about what is
            true of the folds' picks.

        se = sqrt((G - 1) / G * sum of squares about their mean), the jackknife's. Raises DataError
        for a single group, which says nothing about others.
        """
        groups = moves_RG.shape[1]
        if groups < 2:
            raise DataError(
                "all images are of one group, which says nothing about others; "
                "memoise images of more groups"
            )
        about = moves_RG - moves_RG.mean(axis=1, keepdims=True)
        mean_G = about.mean(axis=0)
        spread = float(np.square(mean_G).mean())
        skewness = float((mean_G**3).mean() / spread**1.5) if spread > 0 else 0.0
        error = np.sqrt((groups - 1) * np.square(about).mean())
        return cls(value, float(error), groups, skewness)

    def negative(self) -> Self:
        """Of minus the figure, whose skewness is turned round with it."""
        return self._replace(value=-self.value, skewness=-self.skewness)

    def upper(self, confidence: float) -> float:
        """What the figure of all images is below with this probability."""
        return self.value + self._reach(confidence, self.skewness) * self.standard_error

    def lower(self, confidence: float) -> float:
        """What it is above with this probability."""
        return self.value - self._reach(confidence, -self.skewness) * self.standard_error

    def interval(self, confidence: float) -> tuple[float, float]:
        """Both ends of the interval that holds it with this probability."""
        each_side = (1 + confidence) / 2
        return self.lower(each_side), self.upper(each_side)

    def to_json(self, confidence: float) -> dict[str, float]:
        """The value and both ends of its interval, as results and manifests hold them."""
        low, high = self.interval(confidence)
        return {"value": self.value, "low": low, "high": high}

    @property
    def is_skewed(self) -> bool:
        """Whether so much hangs on few groups that a bound may hold less often than it says."""
        widened = self._widening(_USUAL, abs(self.skewness)) / self._quantile(_USUAL)
        return bool(widened > _SKEWED)

    def _reach(self, confidence: float, skewness: float) -> float:
        """In standard errors: Student's quantile, widened where samples mislead.

        The second term of Cornish and Fisher's expansion for a mean over its standard error (Hall,
        1992, section 3.3), which needs no draws. What it would narrow is left as it is.
        """
        return self._quantile(confidence) + self._widening(confidence, max(skewness, 0.0))

    def _quantile(self, confidence: float) -> float:
        require_confidence(confidence)
        return float(stdtrit(self.groups - 1, confidence))

    def _widening(self, confidence: float, skewness: float) -> float:
        quantile = self._quantile(confidence)
        return skewness * (2 * quantile**2 + 1) / (6 * np.sqrt(self.groups))


def miou_estimate(counts: Counts, groups: Groups) -> Estimate:
    """The mean IoU of one exit, or of each image's answering exit."""
    return Estimate.of_moves(counts.miou, (counts.miou - counts.without_G(groups))[None])


def error_estimate(final: Counts, answer: Counts, groups: Groups) -> Estimate:
    """What the answers lose to the final exit's, mIoU against mIoU, on the same images."""
    error = final.miou - answer.miou
    without_G = final.without_G(groups) - answer.without_G(groups)
    return Estimate.of_moves(error, (error - without_G)[None])


def mean_estimate(values_I: NDArray[np.number | np.bool_], groups: Groups) -> Estimate:
    """A mean over the images, such as cost or the share that an exit answers."""
    values = values_I.astype(np.float64)
    return Estimate.of_moves(float(values.mean()), mean_moves_G(values, groups)[None])


def mean_moves_G(values_I: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
    """By how much each group moves the mean over the images, shape (G,)."""
    # About the mean: of large figures that hardly differ, such as MACs, digits would be lost.
    sums_G = groups.sums(values_I - values_I.mean())
    others_G = groups.images - np.bincount(groups.of_image, minlength=len(groups))
    return np.divide(sums_G, others_G, out=np.zeros(len(groups)), where=others_G > 0)
