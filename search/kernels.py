"""The inner loops of the searches, compiled; no Python object is touched inside.

Suffixes of array names: E exits, I images, C classes, K signals, M metrics, R thresholds of the
first early exit (rows), T thresholds of the second (columns).

A configuration of two early exits divides the images into cells (thresholds of the first exit they
reach, thresholds of the second). What a pair of thresholds leaves to the last exit is then a corner
of that table, and pixel counts over it are two-dimensional prefix sums: their cost does not depend
on the number of images. One early exit is the same with a single row in which nobody leaves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.goal import MIOU_STEPS

MEAN, P90, STORED = 0, 1, 2
"""How a metric sums over the images: by rates, by the 90% path, or as parameters."""

NOBODY = -1
"""Index of the first exit where there is a single early one."""


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
    """Metric indices of target (-1: accuracy), MACs and front; whether to collect the front; least
    mIoU in steps.
    """

    target: int
    macs: int
    front: int
    collect: bool
    miou: int


@njit(cache=True, nogil=True, error_model="numpy")
def scan_exits(pixels, prices, aim, bins_EKI, number_EK, first, second, lasts, best, front):
    """Every signal and threshold of the early exits `first` and `second`, before each of `lasts`.

    `best` and `front` are what is known already; a configuration's code orders configurations
    lexicographically by (exit, signal, threshold). Returns the fields of `Scan`.
    """
    exits, signals, images = bins_EKI.shape
    radix = np.int64(max(1, number_EK.max()))
    best = best.copy()
    cost_F, miou_F, code_F = front[0].copy(), front[1].copy(), front[2].copy()
    fresh_F = np.zeros(len(cost_F), dtype=np.bool_)
    size, evaluated, pruned = len(cost_F), 0, 0
    nowhere_I = np.zeros(images, dtype=np.int32)

    for s1 in range(signals if first != NOBODY else 1):
        rows = number_EK[first, s1] if first != NOBODY else 1
        bin1_I = bins_EKI[first, s1] if first != NOBODY else nowhere_I
        if rows == 0:
            continue
        prefix1 = (first * signals + s1) * radix if first != NOBODY else np.int64(0)
        hits_CR, extra_CR = _settled(pixels, first, second, bin1_I, rows)
        bound_LR = _bounds(pixels, first, second, lasts, bin1_I, rows)
        for s2 in range(signals):
            columns = number_EK[second, s2]
            if columns == 0:
                continue
            bin2_I = bins_EKI[second, s2]
            stay_RT = _count(bin1_I, rows, bin2_I, columns)
            left1_R = _leave(bin1_I, rows)
            for position in range(len(lasts)):
                last = lasts[position]
                total_MRT = _totals(prices, first, s1, second, s2, last, left1_R, stay_RT, images)
                wanted_R = np.zeros(rows, dtype=np.bool_)
                for r in range(rows):
                    wanted_R[r] = _row_matters(
                        prices, aim, total_MRT, r, bound_LR[position, r], best, cost_F, miou_F, size
                    )
                kept = wanted_R.sum() * columns
                evaluated += kept
                pruned += rows * columns - kept
                if kept == 0:
                    continue
                hits_RCT = _corner(pixels.hits_EIC, second, last, bin1_I, rows, bin2_I, columns)
                extra_RCT = _corner(pixels.extra_EIC, second, last, bin1_I, rows, bin2_I, columns)
                for r in range(rows):
                    if not wanted_R[r]:
                        continue
                    score_T = _score(
                        pixels, hits_CR[:, r], hits_RCT[r], extra_CR[:, r], extra_RCT[r]
                    )
                    for t in range(columns):
                        code = (prefix1 + r) * exits + second if first != NOBODY else second
                        code = ((code * signals + s2) * radix + t) * exits + last
                        miou = np.int64(np.rint(score_T[t] * MIOU_STEPS))
                        _keep_best(prices, aim, total_MRT[:, r, t], miou, code, best)
                        if not aim.collect:
                            continue
                        cost = total_MRT[aim.front, r, t]
                        if _advances(cost_F, miou_F, code_F, size, cost, miou, code):
                            cost_F, miou_F, code_F, fresh_F, size = _insert(
                                cost_F, miou_F, code_F, fresh_F, size, cost, miou, code
                            )
    new = np.flatnonzero(fresh_F[:size])
    return best, evaluated, pruned, cost_F[new], miou_F[new], code_F[new]


@njit(cache=True, nogil=True, error_model="numpy")
def _corner(counts_EIC, base, exit_, bin1_I, rows, bin2_I, columns):
    """Counts of `exit_` minus those of `base` over the images that no early exit answers.

    Returns shape (R, C, T): image i stays at (r, t) when bin1 <= r and bin2 <= t. `base` -1 is 0.
    """
    classes = counts_EIC.shape[2]
    out_RCT = np.zeros((rows, classes, columns))
    for i in range(len(bin1_I)):
        r, t = bin1_I[i], bin2_I[i]
        if r >= rows or t >= columns:
            continue
        for c in range(classes):
            value = counts_EIC[exit_, i, c]
            if base >= 0:
                value -= counts_EIC[base, i, c]
            out_RCT[r, c, t] += value
    for r in range(rows):
        for c in range(classes):
            running = 0.0
            for t in range(columns):
                running += out_RCT[r, c, t]
                out_RCT[r, c, t] = running
            if r > 0:
                for t in range(columns):
                    out_RCT[r, c, t] += out_RCT[r - 1, c, t]
    return out_RCT


@njit(cache=True, nogil=True, error_model="numpy")
def _settled(pixels, first, second, bin1_I, rows):
    """Hits and extras, shape (C, R), if `second` answered all that `first` does not."""
    nowhere_I = np.zeros(len(bin1_I), dtype=np.int32)
    hits_CR = _corner(pixels.hits_EIC, first, second, nowhere_I, 1, bin1_I, rows)[0]
    extra_CR = _corner(pixels.extra_EIC, first, second, nowhere_I, 1, bin1_I, rows)[0]
    if first >= 0:
        for c in range(hits_CR.shape[0]):
            hits_CR[c] += pixels.hits_EIC[first, :, c].sum()
            extra_CR[c] += pixels.extra_EIC[first, :, c].sum()
    return hits_CR, extra_CR


@njit(cache=True, nogil=True, error_model="numpy")
def _bounds(pixels, first, second, lasts, bin1_I, rows):
    """Upper bound in steps, shape (L, R), on the mIoU for each of `lasts` and each row.

    Images that `first` does not answer get, class by class, the more hits and the fewer extras of
    `second` and the last exit: no threshold of `second` can do better.
    """
    images, classes = pixels.hits_EIC.shape[1:]
    bound_LR = np.zeros((len(lasts), rows), dtype=np.int64)
    zero_CR = np.zeros((classes, rows))
    best_EIC = np.zeros((2, images, classes), dtype=np.int32)
    least_EIC = np.zeros((2, images, classes), dtype=np.int32)
    if first >= 0:
        best_EIC[0] = pixels.hits_EIC[first]
        least_EIC[0] = pixels.extra_EIC[first]
    for position in range(len(lasts)):
        last = lasts[position]
        for i in range(images):
            for c in range(classes):
                best_EIC[1, i, c] = max(pixels.hits_EIC[second, i, c], pixels.hits_EIC[last, i, c])
                least_EIC[1, i, c] = min(
                    pixels.extra_EIC[second, i, c], pixels.extra_EIC[last, i, c]
                )
        optimist = Pixels(best_EIC, least_EIC, pixels.label_C, pixels.labelled)
        hits_CR, extra_CR = _settled(optimist, 0, 1, bin1_I, rows)
        score_R = _score(pixels, zero_CR[:, 0], hits_CR, zero_CR[:, 0], extra_CR)
        for r in range(rows):
            bound_LR[position, r] = np.int64(np.rint(score_R[r] * MIOU_STEPS)) + 1
    return bound_LR


@njit(cache=True, nogil=True, error_model="numpy")
def _score(pixels, hits_C, hits_CT, extra_C, extra_CT):
    """mIoU, shape (T,), of the summed counts `hits_C + hits_CT` and `extra_C + extra_CT`."""
    classes, columns = hits_CT.shape
    score_T = np.zeros(columns)
    present_T = np.full(columns, np.float64(pixels.labelled))
    for c in range(pixels.labelled):
        for t in range(columns):
            union = pixels.label_C[c] + extra_C[c] + extra_CT[c, t]
            score_T[t] += (hits_C[c] + hits_CT[c, t]) / union
    for c in range(pixels.labelled, classes):
        for t in range(columns):
            if extra_C[c] + extra_CT[c, t] > 0:
                present_T[t] += 1.0
    for t in range(columns):
        score_T[t] /= present_T[t]
    return score_T


@njit(cache=True, nogil=True)
def _leave(bin_I, rows):
    """Number of images that leave at each threshold, shape (R,)."""
    left_R = np.zeros(rows, dtype=np.int64)
    for b in bin_I:
        left_R[:b] += 1
    return left_R


@njit(cache=True, nogil=True)
def _count(bin1_I, rows, bin2_I, columns):
    """Number of images that no early exit answers, shape (R, T)."""
    ones_EIC = np.ones((1, len(bin1_I), 1), dtype=np.int32)
    return _corner(ones_EIC, -1, 0, bin1_I, rows, bin2_I, columns)[:, 0, :].astype(np.int64)


@njit(cache=True, nogil=True)
def _totals(prices, first, s1, second, s2, last, left1_R, stay_RT, images):
    """Cost of every pair of thresholds, summed over the images, shape (M, R, T)."""
    metrics = len(prices.kind_M)
    rows, columns = stay_RT.shape
    total_MRT = np.empty((metrics, rows, columns), dtype=np.int64)
    for m in range(metrics):
        delay, path1 = np.int64(0), np.int64(0)
        if first != NOBODY:
            delay = prices.exit_ME[m, first] + prices.signal_MEK[m, first, s1]
            path1 = prices.backbone_ME[m, first] + delay + prices.answer_ME[m, first]
            delay += prices.resume_ME[m, first]
        delay += prices.exit_ME[m, second] + prices.signal_MEK[m, second, s2]
        path2 = prices.backbone_ME[m, second] + delay + prices.answer_ME[m, second]
        delay += prices.resume_ME[m, second]
        path3 = (
            prices.backbone_ME[m, last]
            + delay
            + prices.exit_ME[m, last]
            + prices.answer_ME[m, last]
        )
        if prices.kind_M[m] == MEAN:
            for r in range(rows):
                reach2 = images - left1_R[r]
                base = left1_R[r] * path1 + reach2 * path2
                for t in range(columns):
                    total_MRT[m, r, t] = base + stay_RT[r, t] * (path3 - path2)
        elif prices.kind_M[m] == STORED:
            total_MRT[m] = path3 * images
        else:
            for r in range(rows):
                for t in range(columns):
                    path = path3
                    if 10 * left1_R[r] >= 9 * images:
                        path = path1
                    elif 10 * (images - stay_RT[r, t]) >= 9 * images:
                        path = path2
                    total_MRT[m, r, t] = path * images
    return total_MRT


@njit(cache=True, nogil=True)
def _affordable(prices, total_M):
    affordable = True
    for m in range(len(total_M)):
        affordable &= total_M[m] <= prices.limit_M[m]
    return affordable


@njit(cache=True, nogil=True)
def _row_matters(prices, aim, total_MRT, r, bound, best, cost_F, miou_F, size):
    """Whether some cell of a row could beat the best or reach the front, given its mIoU's bound."""
    columns = total_MRT.shape[2]
    if aim.collect:
        cheapest = total_MRT[aim.front, r].min()
        at = np.searchsorted(cost_F[:size], cheapest, side="right")
        if at == 0 or miou_F[at - 1] <= bound:
            return True
    if bound < aim.miou or (aim.target < 0 and -bound > best[0]):
        return False
    for t in range(columns):
        if aim.target >= 0 and total_MRT[aim.target, r, t] > best[0]:
            continue
        if _affordable(prices, total_MRT[:, r, t]):
            return True
    return False


@njit(cache=True, nogil=True)
def _keep_best(prices, aim, total_M, miou, code, best):
    """Update `best` in place if the candidate meets the constraints and ranks before it."""
    if miou < aim.miou:
        return
    objective, tie = -miou, total_M[aim.macs]
    if aim.target >= 0:
        objective, tie = total_M[aim.target], -miou
    if objective > best[0] or (objective == best[0] and tie > best[1]):
        return
    if objective == best[0] and tie == best[1] and code >= best[2]:
        return
    if _affordable(prices, total_M):
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
        if (delivered_Q >= checkpoints.least_Q).all():
            _keep_best(prices, aim, total_M, miou, code, best)
        cost = total_M[aim.front]
        if aim.collect and _advances(cost_F, miou_F, code_F, size, cost, miou, code):
            cost_F, miou_F, code_F, fresh_F, size = _insert(
                cost_F, miou_F, code_F, fresh_F, size, cost, miou, code
            )
        cursor_D[level] = early.after_E[e]
    new = np.flatnonzero(fresh_F[:size])
    return best, evaluated, pruned, cost_F[new], miou_F[new], code_F[new]


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
