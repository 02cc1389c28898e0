"""The exact inner loops of the searches, compiled; no Python object is touched inside.

Suffixes of array names: E exits, I images, C classes, K signals, M metrics, Q rows (a choice of
exits and of all thresholds but the deepest early exit's), T columns: those thresholds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.kernels.screen import NOBODY, paths, total
from mess.search.problem.goal import MIOU_STEPS


class Pixels(NamedTuple):
    """Pixel counts, labelled classes first: classes without labels only count if predicted."""

    hits_EIC: NDArray[np.int32]
    extra_EIC: NDArray[np.int32]
    label_C: NDArray[np.float64]
    labelled: int


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


@njit(cache=True, nogil=True, error_model="numpy")
def scan_rows(pixels, prices, aim, bins_EKI, number_EK, rows_Q, best, front):
    """Every threshold of the deepest early exit of each of `rows_Q`, as `screen` returns them.

    `best` and `front` are what is known already; a configuration's code orders configurations
    lexicographically by (exit, signal, threshold). Returns the fields of `Scan`; `pruned` counts
    configurations whose cost alone ruled them out.
    """
    exits, signals, images = bins_EKI.shape
    classes = pixels.hits_EIC.shape[2]
    radix = np.int64(max(1, number_EK.max()))
    best = best.copy()
    cost_F, miou_F, code_F = front[0].copy(), front[1].copy(), front[2].copy()
    fresh_F = np.zeros(len(cost_F), dtype=np.bool_)
    size, evaluated, pruned = len(cost_F), 0, 0

    for q in range(len(rows_Q)):
        first, s1, r1 = rows_Q[q, 0], rows_Q[q, 1], rows_Q[q, 2]
        second, s2, r2 = rows_Q[q, 3], rows_Q[q, 4], rows_Q[q, 5]
        third, s3, last = rows_Q[q, 6], rows_Q[q, 7], rows_Q[q, 10]
        start, columns = rows_Q[q, 8], rows_Q[q, 9] - rows_Q[q, 8]
        answer_I = np.full(images, last)
        stay_T = np.zeros(columns, dtype=np.int64)
        left1, left2 = 0, 0
        for i in range(images):
            t = bins_EKI[third, s3, i] - start
            if first != NOBODY and bins_EKI[first, s1, i] > r1:
                answer_I[i] = first
                left1 += 1
            elif second != NOBODY and bins_EKI[second, s2, i] > r2:
                answer_I[i] = second
                left2 += 1
            elif t <= 0:
                stay_T[0] += 1
            else:
                answer_I[i] = third
                if t < columns:
                    stay_T[t] += 1
        stay_T = stay_T.cumsum()
        early = (first, s1, second, s2, third, s3)
        total_MT = _totals(prices, early, last, left1, left2, stay_T, images)
        fits_T, wanted_T = _wanted(prices, aim, total_MT, best)
        wanted = wanted_T.sum()
        evaluated += wanted
        pruned += columns - wanted
        if not wanted:
            continue

        hits_TC, extra_TC = np.zeros((columns, classes)), np.zeros((columns, classes))
        for i in range(images):
            exit_ = answer_I[i]
            for c in range(classes):
                hits_TC[0, c] += pixels.hits_EIC[exit_, i, c]
                extra_TC[0, c] += pixels.extra_EIC[exit_, i, c]
            t = bins_EKI[third, s3, i] - start
            if exit_ == third and t < columns:
                for c in range(classes):
                    hits_TC[t, c] += pixels.hits_EIC[last, i, c] - pixels.hits_EIC[third, i, c]
                    extra_TC[t, c] += pixels.extra_EIC[last, i, c] - pixels.extra_EIC[third, i, c]
        miou_T = _mious(pixels, hits_TC, extra_TC, wanted_T)
        code = np.int64(0)
        for exit_, signal, row in ((first, s1, r1), (second, s2, r2)):
            if exit_ != NOBODY:
                code = ((code * exits + exit_) * signals + signal) * radix + row
        code = (code * exits + third) * signals + s3
        for t in range(columns):
            if not wanted_T[t]:
                continue
            mine = (code * radix + start + t) * exits + last
            miou, cost = miou_T[t], total_MT[aim.front, t]
            if fits_T[t]:
                _keep_best(aim, total_MT[aim.target, t], cost, miou, mine, best)
            if aim.collect and _advances(cost_F, miou_F, code_F, size, cost, miou, mine):
                cost_F, miou_F, code_F, fresh_F, size = _insert(
                    cost_F, miou_F, code_F, fresh_F, size, cost, miou, mine
                )
    new = np.flatnonzero(fresh_F[:size])
    return best, evaluated, pruned, 0, cost_F[new], miou_F[new], code_F[new]


@njit(cache=True, nogil=True)
def _wanted(prices, aim, total_MT, best):
    """Which columns are within all limits, and whose mIoU is worth knowing."""
    metrics, columns = total_MT.shape
    fits_T = np.ones(columns, dtype=np.bool_)
    for m in range(metrics):
        for t in range(columns):
            fits_T[t] &= total_MT[m, t] <= prices.limit_M[m]
    wanted_T = fits_T.copy()
    for t in range(columns):
        if aim.target >= 0:
            wanted_T[t] &= total_MT[aim.target, t] <= best[0]
        wanted_T[t] |= aim.collect
    return fits_T, wanted_T


@njit(cache=True, nogil=True, error_model="numpy")
def _mious(pixels, hits_TC, extra_TC, wanted_T):
    """MIoU in steps of the running sums over the columns, shape (T,), where it is wanted."""
    columns, classes = hits_TC.shape
    miou_T = np.zeros(columns, dtype=np.int64)
    iou_C = np.zeros((pixels.labelled + 3) // 4 * 4)
    for t in range(columns):
        if t:
            for c in range(classes):
                hits_TC[t, c] += hits_TC[t - 1, c]
                extra_TC[t, c] += extra_TC[t - 1, c]
        if not wanted_T[t]:
            continue
        for c in range(pixels.labelled):
            iou_C[c] = hits_TC[t, c] / (pixels.label_C[c] + extra_TC[t, c])
        # Four sums at a time: one would wait for each addition.
        a = b = c_ = d = 0.0
        for c in range(0, len(iou_C), 4):
            a, b = a + iou_C[c], b + iou_C[c + 1]
            c_, d = c_ + iou_C[c + 2], d + iou_C[c + 3]
        present = pixels.labelled
        for c in range(pixels.labelled, classes):
            present += extra_TC[t, c] > 0
        miou_T[t] = np.int64(np.rint((a + b + c_ + d) / present * MIOU_STEPS))
    return miou_T


@njit(cache=True, nogil=True)
def _totals(prices, early, last, left1, left2, stay_T, images):
    """Cost over the images, shape (M, T), at every threshold of the deepest early exit."""
    total_MT = np.empty((len(prices.kind_M), len(stay_T)), dtype=np.int64)
    path_M3, delay_M = paths(prices, *early)
    for m in range(len(prices.kind_M)):
        path = delay_M[m] + prices.backbone_ME[m, last] + prices.exit_ME[m, last]
        path += prices.answer_ME[m, last]
        for t in range(len(stay_T)):
            total_MT[m, t] = total(
                prices.kind_M[m], path_M3[m], path, (left1, left2), stay_T[t], images
            )
    return total_MT


@njit(cache=True, nogil=True)
def _affordable(prices, total_M):
    affordable = True
    for m in range(len(total_M)):
        affordable &= total_M[m] <= prices.limit_M[m]
    return affordable


@njit(cache=True, nogil=True)
def _keep_best(aim, cost, front_cost, miou, code, best):
    """Update `best` in place if a candidate within the limits is accurate and ranks before it."""
    if miou < aim.miou:
        return
    objective, tie = -miou, front_cost
    if aim.target >= 0:
        objective, tie = cost, -miou
    if objective > best[0] or (objective == best[0] and tie > best[1]):
        return
    if objective == best[0] and tie == best[1] and code >= best[2]:
        return
    best[0], best[1], best[2] = objective, tie, code


@njit(cache=True, nogil=True)
def _advances(cost_F, miou_F, code_F, size, cost, miou, code):
    """Whether a candidate belongs on the front."""
    at = np.searchsorted(cost_F[:size], cost, side="right") - 1
    if at < 0 or miou_F[at] < miou:
        return True
    return miou_F[at] == miou and cost_F[at] == cost and code < code_F[at]


@njit(cache=True, nogil=True)
def _insert(cost_F, miou_F, code_F, fresh_F, size, cost, miou, code):
    """The front with a candidate that `_advances`, without what it dominates; arrays grow."""
    start = np.searchsorted(cost_F[:size], cost, side="left")
    stop = start
    while stop < size and miou_F[stop] <= miou:
        stop += 1
    grown = size + 1 - (stop - start)
    if grown > len(cost_F):
        capacity = 2 * grown + 64
        cost_F, miou_F = _enlarged(cost_F, capacity), _enlarged(miou_F, capacity)
        code_F, fresh_F = _enlarged(code_F, capacity), _enlarged(fresh_F, capacity)
    for array in (cost_F, miou_F, code_F):
        array[start + 1 : grown] = array[stop:size].copy()
    fresh_F[start + 1 : grown] = fresh_F[stop:size].copy()
    cost_F[start], miou_F[start], code_F[start], fresh_F[start] = cost, miou, code, True
    return cost_F, miou_F, code_F, fresh_F, grown


@njit(cache=True, nogil=True)
def _enlarged(array, capacity):
    larger = np.zeros(capacity, dtype=array.dtype)
    larger[: len(array)] = array
    return larger


class Early(NamedTuple):
    """Early exits of the anytime setting, by rising point; costs are totals over the images.

    own_ME: the exit alone; reach_E: backbone and answer in the front's metric; miou_E: in steps;
    after_E: the next exit at a deeper point; index_E: the exit's index in the tables.
    """

    own_ME: NDArray[np.int64]
    reach_E: NDArray[np.int64]
    miou_E: NDArray[np.int64]
    after_E: NDArray[np.int64]
    index_E: NDArray[np.int64]


class Last(NamedTuple):
    """The exit that ends every choice: its path as a total, mIoU in steps, and its index."""

    path_M: NDArray[np.int64]
    miou: int
    exit: int


class Checkpoints(NamedTuple):
    """Deadlines as totals, least mIoU in steps, and a bound on the sum of the delivered mIoUs."""

    deadline_Q: NDArray[np.int64]
    least_Q: NDArray[np.int64]
    bound: int


@njit(cache=True, nogil=True)
def scan_anytime(early, last, checkpoints, prices, aim, start, depth, radix, best, front):
    """Every choice of at most `depth` early exits that begins with `start`, depth first.

    A code orders choices by number of exits, then lexicographically. `pruned` counts the choices
    at which the search turned back, not the ones behind them. Returns the fields of `Scan`.
    """
    metrics = len(last.path_M)
    best = best.copy()
    cost_F, miou_F, code_F = front[0].copy(), front[1].copy(), front[2].copy()
    fresh_F = np.zeros(len(cost_F), dtype=np.bool_)
    size, evaluated, pruned = len(cost_F), 0, 0
    delay_DM = np.zeros((depth + 1, metrics), dtype=np.int64)
    reached_DQ = np.zeros((depth + 1, len(checkpoints.least_Q)), dtype=np.int64)
    code_D = np.zeros(depth + 1, dtype=np.int64)
    cursor_D = np.full(depth + 1, start, dtype=np.int64)
    level = 0
    while level >= 0:
        e = cursor_D[level]
        if level == depth or e == len(early.miou_E) or (level == 0 and e > start):
            level -= 1
            continue
        cursor_D[level] += 1
        level += 1
        delay_DM[level] = delay_DM[level - 1] + early.own_ME[:, e]
        total_M = last.path_M + delay_DM[level]
        if not _choice_matters(prices, aim, checkpoints.bound, total_M, best, cost_F, miou_F, size):
            pruned += 1
            level -= 1
            continue
        evaluated += 1
        delay = delay_DM[level, aim.front]
        _deliver(
            checkpoints,
            early.reach_E[e] + delay,
            early.miou_E[e],
            reached_DQ[level - 1],
            reached_DQ[level],
        )
        code_D[level] = code_D[level - 1] * radix + early.index_E[e]
        code = code_D[level] * radix + last.exit + (level + 1) * radix ** (depth + 1)
        delivered_Q = reached_DQ[level].copy()
        _deliver(checkpoints, total_M[aim.front], last.miou, reached_DQ[level], delivered_Q)
        miou = delivered_Q.sum()
        cost = total_M[aim.front]
        if (delivered_Q >= checkpoints.least_Q).all() and _affordable(prices, total_M):
            _keep_best(aim, total_M[aim.target], cost, miou, code, best)
        if aim.collect and _advances(cost_F, miou_F, code_F, size, cost, miou, code):
            cost_F, miou_F, code_F, fresh_F, size = _insert(
                cost_F, miou_F, code_F, fresh_F, size, cost, miou, code
            )
        cursor_D[level] = early.after_E[e]
    new = np.flatnonzero(fresh_F[:size])
    return best, evaluated, 0, pruned, cost_F[new], miou_F[new], code_F[new]


@njit(cache=True, nogil=True)
def _deliver(checkpoints, cost, miou, before_Q, out_Q):
    """Best mIoU at each checkpoint once an exit has delivered `miou` at `cost`."""
    for q in range(len(out_Q)):
        out_Q[q] = before_Q[q]
        if cost <= checkpoints.deadline_Q[q] and miou > before_Q[q]:
            out_Q[q] = miou


@njit(cache=True, nogil=True)
def _choice_matters(prices, aim, bound, total_M, best, cost_F, miou_F, size):
    """Whether a choice or any that adds exits to it could beat the best or reach the front."""
    if aim.collect:
        at = np.searchsorted(cost_F[:size], total_M[aim.front], side="right") - 1
        if at < 0 or miou_F[at] <= bound:
            return True
    objective = -bound if aim.target < 0 else total_M[aim.target]
    if objective > best[0]:
        return False
    return _affordable(prices, total_M)
