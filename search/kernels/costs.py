"""What configurations with up to three early exits cost, and which last exits a row can afford.

Costs are totals over the images in whole steps. `left_2` are the images that the first two early
exits answer, `stay` those that reach the last exit; the deepest early exit answers the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.kernels.arrays import EPSILON, MEAN, NOBODY, STORED
from mess.search.problem.findings import NOTHING

UNLIMITED = np.float32(np.finfo(np.float32).max)
"""Where there is no limit; less than infinity, as what may never answer costs."""


@njit(cache=True, nogil=True)
def affordable(prices, total_M):
    """Whether the totals respect every limit."""
    affordable = True
    for m in range(len(total_M)):
        affordable &= total_M[m] <= prices.limit_M[m]
    return affordable


@njit(cache=True, nogil=True)
def total(kind, path_3, path_last, left_2, stay, images):
    """Cost over all images of a configuration, of which `stay` reach the last exit."""
    if kind == STORED:
        return path_last * images
    if kind == MEAN:
        reach3 = images - left_2[0] - left_2[1] - stay
        early = left_2[0] * path_3[0] + left_2[1] * path_3[1] + reach3 * path_3[2]
        return early + stay * path_last
    # In whole numbers, as the plain definition: 0.9 times the images would be rounded.
    if 10 * left_2[0] >= 9 * images:
        return path_3[0] * images
    if 10 * (left_2[0] + left_2[1]) >= 9 * images:
        return path_3[1] * images
    if 10 * (images - stay) >= 9 * images:
        return path_3[2] * images
    return path_last * images


@njit(cache=True, nogil=True)
def paths(prices, exit_3, signal_3):
    """Cost at which each early exit answers, shape (M, 3), and the delay of what comes behind."""
    metrics = len(prices.kind_M)
    path_M3 = np.zeros((metrics, 3), dtype=np.int64)
    delay_M = np.zeros(metrics, dtype=np.int64)
    for position in range(3):
        exit_, signal = exit_3[position], signal_3[position]
        if exit_ == NOBODY:
            continue
        for m in range(metrics):
            delay_M[m] += prices.exit_ME[m, exit_] + prices.signal_MEK[m, exit_, signal]
            path = prices.backbone_ME[m, exit_] + delay_M[m] + prices.answer_ME[m, exit_]
            path_M3[m, position] = path
            delay_M[m] += prices.resume_ME[m, exit_]
    return path_M3, delay_M


@njit(cache=True, nogil=True)
def own_path(prices, m, exit_):
    """Cost at which an exit answers that none comes before."""
    return prices.backbone_ME[m, exit_] + prices.exit_ME[m, exit_] + prices.answer_ME[m, exit_]


class Lanes(NamedTuple):
    """Costs of all last exits (L, the lanes) behind the same early ones.

    kind_M, limit_M: as in `Prices`; path_M3, delay_M: as `paths` gives them.
    slot_M: which of the two limits of a column a metric uses: at most two metrics depend on who
        answers, the mean or p90 latency and MACs. -1: no limit by column.
    own_2L: by slot, the path of a last exit alone, never too large; inf where it is stored too
        dear.
    least_2: the least of them.
    rising: whether a deeper exit always costs more, in all metrics, which is the rule.
    """

    kind_M: NDArray[np.int64]
    limit_M: NDArray[np.int64]
    path_M3: NDArray[np.int64]
    delay_M: NDArray[np.int64]
    slot_M: NDArray[np.int64]
    own_2L: NDArray[np.float32]
    least_2: tuple[float, float]
    rising: bool


@njit(cache=True, nogil=True)
def lanes_behind(prices, exit_3, signal_3, last_L, images):
    """`Lanes` of the exits `last_L`."""
    path_M3, delay_M = paths(prices, exit_3, signal_3)
    lanes = len(last_L)
    own_2L = np.full((2, lanes), -np.inf, dtype=np.float32)
    slot_M = _slots(prices)
    rising = True
    for m in range(len(prices.kind_M)):
        rising &= path_M3[m, 0] <= path_M3[m, 1] or exit_3[0] == NOBODY
        rising &= path_M3[m, 1] <= path_M3[m, 2] or exit_3[1] == NOBODY
        for lane in range(lanes):
            own = own_path(prices, m, last_L[lane])
            path = delay_M[m] + own
            rising &= path_M3[m, 2] <= path
            if slot_M[m] >= 0:
                # Rounded down, as limits are rounded up: single precision may admit too much, never
                # too little.
                own_2L[slot_M[m], lane] = max(own_2L[slot_M[m], lane], own * (1 - 4 * EPSILON))
            elif prices.kind_M[m] == STORED and path * images > prices.limit_M[m]:
                own_2L[0, lane] = np.inf
    least_2 = (own_2L[0].min(), own_2L[1].min())
    kind_M, limit_M = prices.kind_M, prices.limit_M
    return Lanes(kind_M, limit_M, path_M3, delay_M, slot_M, own_2L, least_2, rising)


@njit(cache=True, nogil=True)
def _slots(prices):
    slot_M = np.full(len(prices.kind_M), -1, dtype=np.int64)
    used = 0
    for m in range(len(slot_M)):
        if prices.kind_M[m] != STORED and prices.limit_M[m] < NOTHING:
            slot_M[m] = used
            used += 1
    return slot_M


@njit(cache=True, nogil=True)
def limit_columns(lanes, left_2, images, stay_T, limit_2T):
    """Fill, by column, the largest own path of a last exit that is affordable; never too small.

    Returns the first column behind which nothing is affordable. Raising any threshold leaves more
    images to deeper exits: where those cost more (`rising`) and not even the cheapest last exit is
    affordable at a column, none is at later ones, nor at any of them on later rows. So sums over
    the images are kept up before that column only.

    What a column's configurations cost is linear in the path of the last exit where a metric is a
    mean: its limit is solved for that path. The 90% path is that of one exit: of an early one,
    which is affordable or not, or of the last.
    """
    limit_2T[:] = UNLIMITED
    for m in range(len(lanes.slot_M)):
        if lanes.slot_M[m] < 0:
            continue
        limit, path_3, delay = lanes.limit_M[m], lanes.path_M3[m], lanes.delay_M[m]
        limit_T = limit_2T[lanes.slot_M[m]]
        if lanes.kind_M[m] == MEAN:
            _limit_mean(limit, path_3, delay, left_2, images, stay_T, limit_T)
        else:
            _limit_p90(limit // images, path_3, delay, left_2, images, stay_T, limit_T)
    if lanes.rising:
        least0, least1 = lanes.least_2
        for t in range(len(stay_T)):
            if least0 > limit_2T[0, t] or least1 > limit_2T[1, t]:
                return t
    return len(stay_T)


@njit(cache=True, nogil=True, error_model="numpy")
def _limit_mean(limit, path_3, delay, left_2, images, stay_T, limit_T):
    reach3 = images - left_2[0] - left_2[1]
    # Cost is what is paid if the deepest early exit answers all that reach it, and for each that
    # stays (delay + own - path_3[2]) more. At most the limit, solved for the last exit's own path.
    room = limit - left_2[0] * path_3[0] - left_2[1] * path_3[1] - reach3 * path_3[2]
    for t in range(len(stay_T)):
        if stay_T[t]:
            limit_T[t] = _rounded_up((room + stay_T[t] * (path_3[2] - delay)) / stay_T[t])
        # Nobody stays, so the last exit costs nothing: all lanes are affordable, or none.
        elif room < 0:
            limit_T[t] = -np.inf


@njit(cache=True, nogil=True)
def _limit_p90(path, path_3, delay, left_2, images, stay_T, limit_T):
    for t in range(len(stay_T)):
        if 10 * left_2[0] >= 9 * images:
            fits = path_3[0] <= path
        elif 10 * (left_2[0] + left_2[1]) >= 9 * images:
            fits = path_3[1] <= path
        elif 10 * (images - stay_T[t]) >= 9 * images:
            fits = path_3[2] <= path
        else:
            limit_T[t] = _rounded_up(np.float64(path - delay))
            continue
        limit_T[t] = UNLIMITED if fits else -np.inf


# More than the rounding to single precision takes away, which is half of EPSILON at most.
@njit(cache=True, nogil=True)
def _rounded_up(value):
    return value + abs(value) * 4 * EPSILON
