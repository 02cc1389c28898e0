"""The exact inner loops of the searches, compiled; no Python object is touched inside.

Suffixes of array names: E exits, I images, C classes, K signals, M metrics, Q rows (a choice of
exits and of all thresholds but the deepest early exit's), T columns: those thresholds.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mess.search.kernels.arrays import NOBODY
from mess.search.kernels.costs import paths, total
from mess.search.kernels.front import advances, insert, keep_best
from mess.search.problem.goal import MIOU_STEPS


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
                keep_best(aim, total_MT[aim.target, t], cost, miou, mine, best)
            if aim.collect and advances(cost_F, miou_F, code_F, size, cost, miou, mine):
                cost_F, miou_F, code_F, fresh_F, size = insert(
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
