"""The exit decision, written once for the plain definition (tables) and the runtime (scalars).

The compiled search compares places among the thresholds instead, and is tested against these.

Signals are float32 and oriented so that larger means leave; thresholds and the comparison are
float64, so that a threshold midway between two observed signals separates them on any runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def leaves(signal: NDArray[np.float32] | float, threshold: float) -> NDArray[np.bool_] | np.bool_:
    """Whether an image leaves at an exit: signal >= threshold, in float64 (MESS paper, §5.2)."""
    return np.asarray(signal, dtype=np.float64) >= np.float64(threshold)


def answering_exit(
    signals: Sequence[NDArray[np.float32] | None],
    thresholds: Sequence[float | None],
    images: int,
) -> NDArray[np.intp]:
    """Index of the exit that answers each image, in order of depth.

    `signals[i]`, shape (images,), and `thresholds[i]` belong to the i-th exit; both are None where
    nobody leaves, as at the first exit of a policy that compares exits. The exit after the last
    threshold answers whatever reaches it. Returns shape (images,), values 0..len(thresholds).
    """
    answer = np.full(images, len(thresholds), dtype=np.intp)
    # From the deepest on, so that the shallowest exit that an image leaves at has the last word.
    for index in reversed(range(len(thresholds))):
        signal, threshold = signals[index], thresholds[index]
        if signal is not None and threshold is not None:
            answer[leaves(signal, threshold)] = index
    return answer


def threshold_between(lower: float, upper: float) -> float:
    """A threshold midway between two neighbouring observed signals; `upper` leaves, `lower` not."""
    return (float(lower) + float(upper)) / 2.0
