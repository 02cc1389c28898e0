"""Upper bounds on the mean of losses in [0, 1] that hold for every number of images.

Nothing is assumed but that losses are independent and alike: no normal limit, as for mIoU, which is
no mean. Both bounds are tests turned round: the largest mean that is not rejected.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, xlogy

from mess.errors import DataError
from mess.search.guarantees.confidence import require_confidence

_LARGEST_BET = 0.9
"""Of what may be bet at all: an image that loses everything must not end the game."""

_MOST_NEEDED = 2**18

_STEPS = 60
"""Halvings of an interval: beyond them means differ by less than rounding."""


def betting_bound(losses_N: NDArray[np.floating], confidence: float) -> float:
    """What the mean loss is below with this probability (Waudby-Smith and Ramdas, 2023).

    Against every mean m a fortune of 1 is bet on losses that are smaller: it is multiplied with
    1 + bet * (m - loss). If the mean is m or more, the fortune is a supermartingale, and ever to
    have 1 / (1 - confidence) is no likelier than 1 - confidence (Ville). Bets depend on the losses
    before alone. They do not depend on m here, so a larger mean makes a larger fortune at every
    step: what is rejected is an interval, and its end is found by halving.

    losses: shape (N,), in [0, 1], in an order that has nothing to do with them.
    """
    return _largest(_betting_test(_checked(losses_N, confidence), confidence))


def losses_needed(losses_N: NDArray[np.floating], limit: float, confidence: float) -> float:
    """About how many losses like these bring the betting bound to `limit`; infinite if none do.

    As if the same came again and again, to 1% of their number. More than a quarter of a million
    are none.
    """
    losses = _checked(losses_N, confidence)

    def enough(count: int) -> bool:
        return _betting_test(np.resize(losses, count), confidence)(limit)

    if losses.mean() >= limit:
        return np.inf
    low = high = len(losses)
    while not enough(high):
        low, high = high, 2 * high
        if high > _MOST_NEEDED:
            return np.inf
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(high)


def _betting_test(losses: NDArray[np.float64], confidence: float) -> Callable[[float], bool]:
    """Whether a mean is rejected."""
    log_limit = -np.log1p(-confidence)
    bets = _bets(losses, log_limit)

    def rejected(mean: float) -> bool:
        return bool(np.log1p(bets * (mean - losses)).cumsum().max() >= log_limit)

    return rejected


def _bets(losses: NDArray[np.float64], log_limit: float) -> NDArray[np.float64]:
    """Bets that grow the fortune fastest if losses go on to vary as they did."""
    seen = np.arange(1, len(losses) + 1)
    # A quarter and a half stand for a loss that was seen before the first.
    means = (0.5 + losses.cumsum()) / (seen + 1)
    variances = (0.25 + np.square(losses - means).cumsum()) / (seen + 1)
    before = np.concatenate(([0.25], variances[:-1]))
    return np.minimum(np.sqrt(2 * log_limit / (len(losses) * before)), _LARGEST_BET)


def hoeffding_bentkus_bound(losses_N: NDArray[np.floating], confidence: float) -> float:
    """What the mean loss is below with this probability (Bates et al., 2021).

    The smaller of two p-values: Hoeffding's with the divergence of two coins, and Bentkus', e times
    the binomial one. It knows the mean of the losses alone, so small deviations do not help it.
    """
    losses = _checked(losses_N, confidence)
    count, found = len(losses), float(losses.mean())
    # Rounding must not push a sum of whole losses over the next whole number.
    whole = np.ceil(round(found * count, 9))

    def rejected(mean: float) -> bool:
        low = min(found, mean)
        divergence = xlogy(low, low / mean) + xlogy(1 - low, (1 - low) / (1 - mean))
        return min(np.exp(-count * divergence), np.e * bdtr(whole, count, mean)) <= 1 - confidence

    return _largest(rejected)


def _largest(rejected: Callable[[float], bool]) -> float:
    """The least mean of which it and all above are rejected; 1 where none is."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        # The limits stay what they are called, so that the answer is never too small.
        if rejected(middle):
            high = middle
        else:
            low = middle
    return high


def _checked(losses_N: NDArray[np.floating], confidence: float) -> NDArray[np.float64]:
    require_confidence(confidence)
    losses = np.asarray(losses_N, dtype=np.float64)
    if losses.ndim != 1 or not losses.size:
        raise DataError(f"losses must have shape (N,) with N >= 1, got {losses.shape}")
    wrong = losses[~((losses >= 0) & (losses <= 1))]
    if wrong.size:
        raise DataError(f"losses must lie in [0, 1], got {wrong[0]:g}")
    return losses
