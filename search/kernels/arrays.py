"""What the compiled loops read.

Suffixes of array names: E exits, I images, C classes, K signals, M metrics, N points, S slots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOBODY = -1
"""Index of an early exit that a configuration does not have."""

MEAN, P90, STORED = 0, 1, 2
"""How a metric sums over the images: by rates, by the 90% path, or as parameters."""

EPSILON = 2.0**-23
"""Distance from 1 to the next number in single precision: twice what one rounding may lose."""


class Slots(NamedTuple):
    """Pixel counts where there are any: most classes are not on most images.

    A slot is an image with a class that some exit predicts there. Classes that have labels come
    first: those without only count if predicted. Exits by rising point, and innermost, so that what
    is deeper than an exit lies together.

    start_I: shape (I + 1,), where the slots of each image begin; class_S: the class of each,
        rising.
    hits_SE, extra_SE: pixels that are correct, and wrongly predicted as the class. Whole numbers,
        exact in single precision: `Tables` holds fewer than 2^24 of a class and image.
    label_C: labelled pixels of each class; labelled: how many classes have some; column_C: the
        index of each in the tables.
    """

    start_I: NDArray[np.int64]
    class_S: NDArray[np.int64]
    hits_SE: NDArray[np.float32]
    extra_SE: NDArray[np.float32]
    label_C: NDArray[np.float64]
    labelled: int
    column_C: NDArray[np.int64]


class Prices(NamedTuple):
    """`Ticks` of all metrics that matter, with their kind and their limit on the total."""

    backbone_ME: NDArray[np.int64]
    exit_ME: NDArray[np.int64]
    signal_MEK: NDArray[np.int64]
    answer_ME: NDArray[np.int64]
    resume_ME: NDArray[np.int64]
    kind_M: NDArray[np.int64]
    limit_M: NDArray[np.int64]


class Aim(NamedTuple):
    """Metric indices of target (-1: accuracy) and front; whether to collect the front; least mIoU
    in steps.
    """

    target: int
    front: int
    collect: bool
    miou: int


class Exits(NamedTuple):
    """Exits numbered by rising point, with their thresholds as in `Thresholds`.

    point_E: the exit's point, from 0; after_E: the first exit behind that point.
    """

    bins_EKI: NDArray[np.int32]
    number_EK: NDArray[np.int64]
    point_E: NDArray[np.int64]
    after_E: NDArray[np.int64]


class Bound(NamedTuple):
    """The bound of `mess.search.kernels.bound` around a reference, and what matters under it.

    A configuration matters if its cost is within the limits of the prices and
    mIoU - slope * cost >= need; cost is the total in the front's metric, `front` its index.

    score_IE: shape (I, E), score of an exit on an image in mIoU; exits by rising point.
    gain_C, loss_C: z / union0 of counts is gain * hits - loss * extra.
    above_C, below_C: y / union0 where the union grew, and y / (least union) where it shrank, are
        those times the change of `extra`.
    offset: mIoU of a configuration in first order, less its score.
    hits0_C, extra0_C: counts of the reference.
    share: 1 / number of classes in the mean.
    free_EK24GE: norms of the part that the deepest early exit (axis 0) with a signal (axis 1) is
        free to choose before a last exit (axis 5), in each group of thresholds (axis 4): see
        `mess.search.kernels.second_order`. On axis 2 what the early exit can change if the last one
        answered all, and the other way round.
    most_free_EK24GN: the largest of them over the last exits of each point.
    rounding: what float32 sums may lose, in mIoU.
    """

    score_IE: NDArray[np.float32]
    gain_C: NDArray[np.float64]
    loss_C: NDArray[np.float64]
    above_C: NDArray[np.float64]
    below_C: NDArray[np.float64]
    hits0_C: NDArray[np.float64]
    extra0_C: NDArray[np.float64]
    share: float
    free_EK24GE: NDArray[np.float32]
    most_free_EK24GN: NDArray[np.float32]
    offset: float
    need: float
    slope: float
    front: int
    rounding: float
