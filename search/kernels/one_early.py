"""Every configuration with one early exit, compiled: all last exits behind it at a time.

As the early exit's threshold rises its images stay one after another for the last exit. So counts
are running sums, to which an image adds in the classes that are predicted on it alone, and only
these have another IoU afterwards.

The sums are whole numbers in double precision, hence exact. IoUs are rounded down to whole parts of
`ONE`, so that their sum over the classes, however often it changes, is less than the true one by no
more than `LOST` parts a class. What is neither on the front nor the best even with as many more is
ruled out; the mIoU of all else is that of the exact sums in double precision.

Suffixes of array names as in `mess.search.kernels.arrays`; T thresholds, L lanes, F front.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.kernels.arrays import NOBODY
from mess.search.kernels.costs import own_path, paths, total
from mess.search.kernels.evaluate import mean_in_steps
from mess.search.kernels.front import advances, insert, keep_best
from mess.search.problem.goal import MIOU_STEPS

ONE = 2**23
"""Parts of an IoU of 1."""

LOST = 3
"""Two counts and their ratio are rounded to single precision, each by a share of 2^-24 at most:
that is 1.5 parts and a little, and rounding down loses less than one more.
"""

_BUCKETS = 4096
"""Pieces of the front's costs in which the least mIoU that matters is looked up."""


class Lanes(NamedTuple):
    """Last exits behind an early one, the lanes, and what is counted with each of them.

    path_M3: what the early exit costs, as `paths` gives it; path_ML: what each last exit does.
    hits_CL, union_CL: pixels of the threshold that the scan is at.
    part_CL: IoU of the labelled classes in parts of `ONE`; parts_L: the sum over them.
    total_ML: cost over the images; fits_L: whether that is within all limits; look_L: whether the
        mIoU has to be looked at.
    """

    path_M3: NDArray[np.int64]
    path_ML: NDArray[np.int64]
    hits_CL: NDArray[np.float64]
    union_CL: NDArray[np.float64]
    part_CL: NDArray[np.int32]
    parts_L: NDArray[np.int64]
    total_ML: NDArray[np.int64]
    fits_L: NDArray[np.bool_]
    look_L: NDArray[np.bool_]


class Least(NamedTuple):
    """The least sum of parts that may be on a front, by cost.

    Costs that share `(cost - base) >> shift` share a bucket. It asks for what the front has at the
    first of them, or below: whatever costs as much or more has to be at least as accurate.
    """

    base: np.int64
    shift: np.int64
    parts_B: NDArray[np.int64]


@njit(cache=True, nogil=True)
def scan_one_early(slots, share, prices, aim, exits, order_E, early, best, front):
    """Every signal and threshold of `early` before every deeper last exit.

    share: 1 / least number of classes that count in a mIoU. Exits are by rising point; `order_E`
    has the index of each in the tables, by which codes number them. `best` and `front` are what is
    known already. Returns the fields of `Scan`.
    """
    best = best.copy()
    cost_F, miou_F, code_F = front[0].copy(), front[1].copy(), front[2].copy()
    fresh_F, size = np.zeros(len(cost_F), dtype=np.bool_), len(cost_F)
    least = _least_by_cost(cost_F, miou_F, share, slots.labelled)
    first_last, radix = exits.after_E[early], np.int64(max(1, exits.number_EK.max()))
    evaluated, pruned, bounded = 0, 0, 0
    for signal in range(exits.number_EK.shape[1]):
        columns = exits.number_EK[early, signal]
        if columns == 0 or first_last == len(order_E):
            continue
        lanes = _all_leave(slots, prices, early, signal, first_last)
        first_code = (order_E[early] * exits.number_EK.shape[1] + signal) * radix
        order_I, start_T = _by_bin(exits.bins_EKI[early, signal], columns)
        for t in range(columns):
            _stay(slots, lanes, early, first_last, order_I[start_T[t] : start_T[t + 1]])
            within = _within(prices, aim, lanes, start_T[t + 1], len(order_I), best)
            asked = _parts(_asked(aim, best), share, slots.labelled)
            some = _look(lanes, within, least, aim, asked)
            evaluated += some
            pruned += 0 if aim.collect else len(lanes.parts_L) - within
            bounded += (len(lanes.parts_L) if aim.collect else within) - some
            if not some:
                continue
            for lane in np.flatnonzero(lanes.look_L):
                miou, cost = _miou(slots, lanes, lane), lanes.total_ML[aim.front, lane]
                code = (first_code + t) * len(order_E) + order_E[first_last + lane]
                if lanes.fits_L[lane]:
                    keep_best(aim, lanes.total_ML[aim.target, lane], cost, miou, code, best)
                if aim.collect and advances(cost_F, miou_F, code_F, size, cost, miou, code):
                    cost_F, miou_F, code_F, fresh_F, size = insert(
                        cost_F, miou_F, code_F, fresh_F, size, cost, miou, code
                    )
                    _ask_more(least, cost, _parts(miou, share, slots.labelled))
    new = np.flatnonzero(fresh_F[:size])
    return best, evaluated, pruned, bounded, cost_F[new], miou_F[new], code_F[new]


@njit(cache=True, nogil=True)
def _all_leave(slots, prices, early, signal, first_last):
    """The lanes before any image stays."""
    exits, nobody = slots.hits_SE.shape[1], np.int64(NOBODY)
    lanes, metrics, classes = exits - first_last, len(prices.kind_M), len(slots.label_C)
    path_M3, delay_M = paths(prices, (nobody, nobody, early), (0, 0, signal))
    path_ML = np.empty((metrics, lanes), dtype=np.int64)
    for m in range(metrics):
        for lane in range(lanes):
            path_ML[m, lane] = delay_M[m] + own_path(prices, m, first_last + lane)
    hits_C, union_C = np.zeros(classes), slots.label_C.copy()
    for s in range(len(slots.class_S)):
        hits_C[slots.class_S[s]] += slots.hits_SE[s, early]
        union_C[slots.class_S[s]] += slots.extra_SE[s, early]
    hits_CL, union_CL = np.empty((classes, lanes)), np.empty((classes, lanes))
    part_CL = np.zeros((slots.labelled, lanes), dtype=np.int32)
    parts_L = np.zeros(lanes, dtype=np.int64)
    for c in range(classes):
        hits_CL[c], union_CL[c] = hits_C[c], union_C[c]
        if c < slots.labelled:
            _count_parts(hits_CL[c], union_CL[c], part_CL[c], parts_L)
    look_L = np.zeros(lanes, dtype=np.bool_)
    return Lanes(
        path_M3, path_ML, hits_CL, union_CL, part_CL, parts_L, np.empty_like(path_ML),
        np.empty_like(look_L), look_L,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _by_bin(bin_I, columns):
    """Images by rising bin, and where those that stay from each threshold on begin."""
    order_I = np.argsort(bin_I, kind="mergesort")
    start_T = np.searchsorted(bin_I[order_I], np.arange(columns + 1))
    return order_I, start_T


@njit(cache=True, nogil=True)
def _stay(slots, lanes, early, first_last, images_I):
    """Let the last exits answer these images, too."""
    changed_C = np.zeros(len(slots.label_C), dtype=np.bool_)
    _add(slots.start_I, slots.class_S, slots.hits_SE, early, first_last, images_I, lanes.hits_CL)
    _add(slots.start_I, slots.class_S, slots.extra_SE, early, first_last, images_I, lanes.union_CL)
    for i in images_I:
        changed_C[slots.class_S[slots.start_I[i] : slots.start_I[i + 1]]] = True
    for c in range(slots.labelled):
        if changed_C[c]:
            _count_parts(lanes.hits_CL[c], lanes.union_CL[c], lanes.part_CL[c], lanes.parts_L)


@njit(cache=True, nogil=True)
def _add(start_I, class_S, count_SE, early, first_last, images_I, sum_CL):
    for i in images_I:
        for s in range(start_I[i], start_I[i + 1]):
            # An array from its start: lanes behind an offset would be looked at one by one.
            sum_L, count_L, instead_of = (
                sum_CL[class_S[s]],
                count_SE[s, first_last:],
                count_SE[s, early],
            )
            for lane in range(len(sum_L)):
                # Whole numbers below 2^24 each, so that their difference is exact, too.
                sum_L[lane] += count_L[lane] - instead_of


# Without Python's check for division by 0, which cannot be: labelled classes have pixels.
@njit(cache=True, nogil=True, error_model="numpy")
def _count_parts(hits_L, union_L, part_L, parts_L):
    """Fill the parts of a class and bring their sum up to date."""
    for lane in range(len(part_L)):
        iou = np.float32(hits_L[lane]) / np.float32(union_L[lane])
        part = np.int32(iou * np.float32(ONE))
        parts_L[lane] += part - part_L[lane]
        part_L[lane] = part


@njit(cache=True, nogil=True)
def _within(prices, aim, lanes, stay, images, best):
    """Fill the totals, and whether they are within all limits and none is dearer than the best.

    Returns how many are.
    """
    lanes.fits_L[:] = True
    for m in range(len(prices.kind_M)):
        # `<=`: what costs the same may still win by its mIoU or its code.
        limit = min(prices.limit_M[m], best[0]) if m == aim.target else prices.limit_M[m]
        _totals(
            prices.kind_M[m], lanes.path_M3[m], lanes.path_ML[m], stay, images, limit,
            lanes.total_ML[m], lanes.fits_L,
        )  # fmt: skip
    return lanes.fits_L.sum()


@njit(cache=True, nogil=True)
def _totals(kind, path_3, path_L, stay, images, limit, total_L, fits_L):
    for lane in range(len(path_L)):
        total_L[lane] = total(kind, path_3, path_L[lane], (0, 0), stay, images)
        fits_L[lane] &= total_L[lane] <= limit


@njit(cache=True, nogil=True)
def _look(lanes, within, least, aim, asked):
    """Fill which lanes may be the best, or on the front; returns how many.

    The front is that of all configurations, whatever the limits.
    """
    look_L, parts_L = lanes.look_L, lanes.parts_L
    look_L[:] = False
    if within:
        _may_rank(parts_L, lanes.fits_L, asked, look_L)
    if aim.collect:
        cost_L = lanes.total_ML[aim.front]
        _may_advance(parts_L, cost_L, least.base, least.shift, least.parts_B, look_L)
    return look_L.sum()


@njit(cache=True, nogil=True)
def _may_rank(parts_L, fits_L, asked, look_L):
    for lane in range(len(parts_L)):
        look_L[lane] = fits_L[lane] & (parts_L[lane] >= asked)


@njit(cache=True, nogil=True)
def _may_advance(parts_L, cost_L, base, shift, parts_B, look_L):
    for lane in range(len(parts_L)):
        bucket = min(max((cost_L[lane] - base) >> shift, -1), len(parts_B) - 2)
        # Before the first bucket, as cheap as nothing on the front: the last element asks nothing.
        look_L[lane] |= parts_L[lane] >= parts_B[bucket]


@njit(cache=True, nogil=True)
def _asked(aim, best):
    """The mIoU in steps that the best has to reach."""
    # Where nothing was found `best` is NOTHING, and minus that asks for nothing.
    return aim.miou if aim.target >= 0 else max(aim.miou, -best[0])


@njit(cache=True, nogil=True)
def _parts(miou, share, labelled):
    """The least sum of parts of a configuration that reaches `miou` steps.

    Its mIoU is at most `share` times the sum of the IoUs. One step covers what that is rounded by,
    one part what is rounded here.
    """
    return np.int64((miou - 1) / (share * MIOU_STEPS) * ONE) - LOST * labelled - 1


@njit(cache=True, nogil=True)
def _miou(slots, lanes, lane):
    """MIoU in steps, of the exact sums."""
    # Filled up with zeros, so that four sums at a time come out even.
    iou_C = np.zeros((slots.labelled + 3) // 4 * 4)
    for c in range(slots.labelled):
        iou_C[c] = lanes.hits_CL[c, lane] / lanes.union_CL[c, lane]
    present = slots.labelled
    for c in range(slots.labelled, len(slots.label_C)):
        present += lanes.union_CL[c, lane] > 0
    return mean_in_steps(iou_C, present)


@njit(cache=True, nogil=True)
def _least_by_cost(cost_F, miou_F, share, labelled):
    """What a front asks for; without points it asks for nothing."""
    parts_B = np.full(_BUCKETS + 1, -(2**62), dtype=np.int64)
    base, shift = np.int64(0), np.int64(0)
    if len(cost_F):
        base = np.int64(cost_F[0])
        while (cost_F[-1] - base) >> shift >= _BUCKETS - 1:
            shift += 1
    least = Least(base, shift, parts_B)
    for f in range(len(cost_F)):
        _ask_more(least, cost_F[f], _parts(miou_F[f], share, labelled))
    return least


@njit(cache=True, nogil=True)
def _ask_more(least, cost, parts):
    """Whatever costs `cost` or more has to have so many parts."""
    # Rounded up: the bucket that `cost` is in the middle of begins before it.
    bucket = max(0, -((least.base - cost) >> least.shift))
    while bucket < _BUCKETS and least.parts_B[bucket] < parts:
        least.parts_B[bucket] = parts
        bucket += 1
