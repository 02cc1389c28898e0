"""Intervals of what is measured on some images, for all images like them.

Three kinds of figures, and one method for each:

- Ratios of sums (the IoU of a class, what it loses, mIoU): the groups are drawn with replacement
  and every figure is computed anew (bootstrap, paired: all configurations see the same draws). What
  counts is how far draws lie from their own mean, put around the figure: draws lose classes that
  few groups have, so their mean is off. The percentiles are those of Student's t (Hesterberg, What
  Teachers Should Know About the Bootstrap, 2015): plain ones are too narrow for few groups.
- What one mIoU loses to another: the jackknife with its skewness, as certificates have it. Most
  images lose nothing and a few lose much: a sample that lacks some of these has draws that lack
  them, too, and intervals of the bootstrap held 92% of the time with 50 to 500 images (95% asked).
- Means over the images (cost, the share that an exit answers): in closed form, by group. Shares
  have Korn and Graubard's interval (1998), which does not end where none was seen.

A class that too few groups have is rare: nothing is said about its IoU, nor about a mean that holds
it. mIoU and error are therefore those of the other classes.

Of mIoU both methods hold about as often; for the IoU of a class that few groups have the jackknife
lost (benchmarks/intervals.py).

Shapes: I images, C classes, G groups, K configurations, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, stdtrit

from mess.search.guarantees.confidence import require_confidence
from mess.search.guarantees.groups import LEAST, Groups
from mess.search.guarantees.sampling_error import Counts, Estimate, error_estimate, mean_estimate

LEAST_OF_CLASS = LEAST
"""Groups with a labelled pixel of a class, for anything to be said about it."""

DRAWS = 10_000
"""Of the bootstrap: percentiles then vary by a hundredth of the interval."""

FEWER_DRAWS = 2_000
"""For what is told beside a search, which must not wait for it."""

_DRAWS_AT_ONCE = 500
"""Draws that are held in memory together."""


@dataclass(frozen=True)
class Interval:
    """A figure of these images, and both ends of its interval for all images like them."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """As JSON files hold it."""
        return {"value": self.value, "low": self.low, "high": self.high}


def groups_of_classes(label_IC: NDArray[np.integer], groups: Groups) -> NDArray[np.intp]:
    """How many groups have a labelled pixel of each class, shape (C,)."""
    return (groups.sums(label_IC) > 0).sum(axis=0)


def rare_classes(label_IC: NDArray[np.integer], groups: Groups) -> NDArray[np.bool_]:
    """Which classes too few groups have to say anything about them, shape (C,)."""
    return groups_of_classes(label_IC, groups) < LEAST_OF_CLASS


def mean_interval(values_I: NDArray[np.floating], groups: Groups, confidence: float) -> Interval:
    """Of a mean over the images such as cost, by Student's t over groups, widened by skewness."""
    found = mean_estimate(values_I, groups)
    return Interval(found.value, *found.interval(confidence))


def share_interval(is_in_I: NDArray[np.bool_], groups: Groups, confidence: float) -> Interval:
    """Of the share of the images for which something holds (Korn and Graubard, 1998).

    Clopper and Pearson's, for so many independent images as tell as much as these: fewer where
    images of a group are alike. Where it holds for all or for none of them, each group counts once.
    """
    found = mean_estimate(is_in_I, groups)
    share = found.value
    if share in (0.0, 1.0):
        return Interval(share, *clopper_pearson(share * len(groups), len(groups), confidence))
    each_side = (1 + confidence) / 2
    count = float(groups.images)
    if found.standard_error > 0:
        widened = stdtrit(count - 1, each_side) / stdtrit(len(groups) - 1, each_side)
        alike = share * (1 - share) / found.standard_error**2 * widened**2
        # Groups that balance each other out by chance do not tell more than single images.
        count = min(count, float(alike))
    return Interval(share, *clopper_pearson(share * count, count, confidence))


def clopper_pearson(hits: float, count: float, confidence: float) -> tuple[float, float]:
    """Ends of the interval of the share of hits in `count` trials; neither need be whole."""
    require_confidence(confidence)
    tail = (1 - confidence) / 2
    low = betaincinv(hits, count - hits + 1, tail) if hits > 0 else 0.0
    high = betaincinv(hits + 1, count - hits, 1 - tail) if hits < count else 1.0
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """What configurations reach on the same images, and on draws of their groups.

    iou_KC: NaN for a class without a pixel in the union.
    drawn_DKC: NaN where no drawn group has a labelled pixel of the class.
    groups_C: how many groups have one.
    counts: of each configuration, of all classes.
    """

    iou_KC: NDArray[np.float64]
    drawn_DKC: NDArray[np.float64]
    groups_C: NDArray[np.intp]
    counts: tuple[Counts, ...]
    groups: Groups
    confidence: float

    @classmethod
    def of(
        cls,
        configurations: Sequence[Counts],
        label_IC: NDArray[np.integer],
        groups: Groups,
        confidence: float,
        rng: np.random.Generator,
        draws: int = DRAWS,
    ) -> Self:
        """Draw; raises ConfigError for what is no confidence."""
        require_confidence(confidence)
        whole_KC = np.array(
            [
                _ratios(counts.hits_IC.sum(axis=0), counts.union_IC.sum(axis=0))
                for counts in configurations
            ]
        )
        return cls(
            iou_KC=whole_KC,
            drawn_DKC=drawn_ious(configurations, label_IC, groups, rng, draws),
            groups_C=groups_of_classes(label_IC, groups),
            counts=tuple(configurations),
            groups=groups,
            confidence=confidence,
        )

    @property
    def rare_C(self) -> NDArray[np.bool_]:
        """Classes that nothing is said about."""
        return self.groups_C < LEAST_OF_CLASS

    def miou(self, configuration: int) -> Interval | None:
        """Of the mean IoU over the classes that are not rare; None where all are."""
        found = self._mean(self.iou_KC[configuration], self.drawn_DKC[:, configuration])
        return None if found is None else _within(found, 0.0, 1.0)

    def error(self, configuration: int, against: int) -> Estimate | None:
        """What a configuration loses to another one, in that mIoU; None where all are rare."""
        if self.rare_C.all():
            return None
        of, other = (self.counts[n].of_classes(~self.rare_C) for n in (against, configuration))
        return error_estimate(of, other, self.groups)

    def iou(self, configuration: int, class_: int) -> Interval | None:
        """Of the IoU of a class; None for a rare one."""
        if self.rare_C[class_]:
            return None
        value = float(self.iou_KC[configuration, class_])
        if value in (0.0, 1.0):
            # No draw shows anything else. That no group did bounds how many of all would.
            count = int(self.groups_C[class_])
            return Interval(value, *clopper_pearson(value * count, count, self.confidence))
        drawn_D = self.drawn_DKC[:, configuration, class_]
        return _within(self._around(value, drawn_D, self.groups_C[class_]), 0.0, 1.0)

    def lost_iou(self, configuration: int, class_: int, against: int) -> Interval | None:
        """Of what a configuration loses to another one in the IoU of a class."""
        if self.rare_C[class_]:
            return None
        drawn_DKC = self.drawn_DKC[:, :, class_]
        return self._around(
            float(self.iou_KC[against, class_] - self.iou_KC[configuration, class_]),
            drawn_DKC[:, against] - drawn_DKC[:, configuration],
            self.groups_C[class_],
        )

    def _mean(self, value_C: NDArray[np.float64], drawn_DC: NDArray[np.float64]) -> Interval | None:
        """Of the mean over the classes that are not rare."""
        common_C = ~self.rare_C
        if not common_C.any():
            return None
        drawn_DC = drawn_DC[:, common_C]
        there_DC = ~np.isnan(drawn_DC)
        count_D = there_DC.sum(axis=1)
        # A draw without any of these classes tells nothing.
        sums_D = np.where(there_DC, drawn_DC, 0.0).sum(axis=1)[count_D > 0]
        means_D = sums_D / count_D[count_D > 0]
        return self._around(float(value_C[common_C].mean()), means_D, len(self.groups))

    def _around(self, value: float, drawn_D: NDArray[np.float64], groups: int) -> Interval:
        """The interval around a figure that so many groups tell about."""
        known_D = drawn_D[~np.isnan(drawn_D)]
        quantile = stdtrit(groups - 1, (1 + self.confidence) / 2)
        tail = float(ndtr(-quantile * np.sqrt(groups / (groups - 1))))
        low, high = np.quantile(known_D - known_D.mean(), [tail, 1 - tail])
        return Interval(value, value + float(low), value + float(high))


def drawn_ious(
    configurations: Sequence[Counts],
    label_IC: NDArray[np.integer],
    groups: Groups,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """The IoU of each class, shape (D, K, C), on groups drawn with replacement.

    All configurations see the same draws, so that differences between them are paired. NaN where no
    drawn group has a labelled pixel of a class: what it is mistaken for would stand for all of it.
    """
    parts = [part for each in configurations for part in (each.hits_IC, each.union_IC)]
    sums_GX = np.concatenate([groups.sums(part) for part in (*parts, label_IC)], axis=1)
    classes, size = label_IC.shape[1], len(groups)
    ious = np.empty((draws, len(configurations), classes))
    for start in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - start)
        # Counting indices is several times faster than drawing multinomial counts.
        drawn = rng.integers(size, size=(count, size)) + np.arange(count)[:, None] * size
        times_DG = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        totals = (times_DG.astype(np.float64) @ sums_GX).reshape(count, -1, classes)
        hits, union, label = totals[:, 0:-1:2], totals[:, 1:-1:2], totals[:, -1:]
        ious[start : start + count] = np.where(label > 0, _ratios(hits, union), np.nan)
    return ious


def _ratios(hits: NDArray[np.number], union: NDArray[np.number]) -> NDArray[np.float64]:
    return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def _within(interval: Interval, least: float, most: float) -> Interval:
    """No IoU lies beyond these, whatever percentiles say."""
    return Interval(interval.value, max(least, interval.low), min(most, interval.high))
