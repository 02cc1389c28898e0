"""mIoU and cost of every configuration of given rows, compiled; no Python object is touched inside.

Pixels are read where the tables have them: one exit's counts on an image, which lie side by side.

Suffixes of array names: E exits, I images, C classes, K signals, M metrics, F front, Q rows (a
choice of exits and of all thresholds but the deepest early exit's), T columns: those thresholds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from mess.search.kernels.arrays import NOBODY
from mess.search.kernels.costs import own_path, paths, total
from mess.search.kernels.front import advances, insert, keep_best
from mess.search.problem.goal import MIOU_STEPS


class Row(NamedTuple):
    """A row with its last exit: exits, signals and thresholds, and the columns to evaluate.

    exit_3, signal_3: of the three early exits, of which the first two may be `NOBODY`.
    """

    exit_3: tuple[int, int, int]
    signal_3: tuple[int, int, int]
    threshold1: int
    threshold2: int
    start: int
    stop: int
    last: int


@njit(cache=True, nogil=True)
def evaluate_rows(
    slots, hits_EIC, predicted_EIC, prices, aim, bins_EKI, number_EK, rows_Q, best, front
):
    """Every threshold of the deepest early exit of each of `rows_Q`, as `rows_that_matter` gives.

    Exits and classes of the counts `hits_EIC` and `predicted_EIC` are as the tables number them.
    `best` and `front` are what is known already; a configuration's code orders configurations
    lexicographically by (exit, signal, threshold). Returns the fields of `Scan`; `pruned` counts
    configurations whose cost alone ruled them out.
    """
    best = best.copy()
    cost_F, miou_F, code_F = front[0].copy(), front[1].copy(), front[2].copy()
    fresh_F, size = np.zeros(len(cost_F), dtype=np.bool_), len(cost_F)
    bases = (number_EK.shape[0], number_EK.shape[1], np.int64(max(1, number_EK.max())))
    evaluated, pruned = 0, 0
    for q in range(len(rows_Q)):
        row = _row(rows_Q[q])
        answer_I, left_2, stay_T = _answers(row, bins_EKI)
        total_MT = _totals(prices, row, left_2, stay_T, len(answer_I))
        fits_T, wanted_T = _wanted(prices, aim, total_MT, best)
        wanted = wanted_T.sum()
        evaluated += wanted
        pruned += len(wanted_T) - wanted
        if not wanted:
            continue
        hits_TC, extra_TC = _changes(
            hits_EIC, predicted_EIC, slots.column_C, row, bins_EKI, answer_I
        )
        miou_T = _mious(slots, hits_TC, extra_TC, wanted_T)
        for t in range(len(wanted_T)):
            if not wanted_T[t]:
                continue
            code = _code(row, t, bases)
            miou, cost = miou_T[t], total_MT[aim.front, t]
            if fits_T[t]:
                keep_best(aim, total_MT[aim.target, t], cost, miou, code, best)
            if aim.collect and advances(cost_F, miou_F, code_F, size, cost, miou, code):
                cost_F, miou_F, code_F, fresh_F, size = insert(
                    cost_F, miou_F, code_F, fresh_F, size, cost, miou, code
                )
    new = np.flatnonzero(fresh_F[:size])
    return best, evaluated, pruned, 0, cost_F[new], miou_F[new], code_F[new]


@njit(cache=True, nogil=True)
def _row(row):
    exit_3, signal_3 = (row[0], row[3], row[6]), (row[1], row[4], row[7])
    return Row(exit_3, signal_3, row[2], row[5], row[8], row[9], row[10])


@njit(cache=True, nogil=True)
def _answers(row, bins_EKI):
    """Who answers each image at the first column, how many the first two exits do, and how many
    stay for the last one at every column.
    """
    first, second, third = row.exit_3
    images = bins_EKI.shape[2]
    answer_I = np.full(images, row.last)
    stay_T = np.zeros(row.stop - row.start, dtype=np.int64)
    left1, left2 = 0, 0
    for i in range(images):
        t = bins_EKI[third, row.signal_3[2], i] - row.start
        if first != NOBODY and bins_EKI[first, row.signal_3[0], i] > row.threshold1:
            answer_I[i] = first
            left1 += 1
        elif second != NOBODY and bins_EKI[second, row.signal_3[1], i] > row.threshold2:
            answer_I[i] = second
            left2 += 1
        elif t <= 0:
            stay_T[0] += 1
        else:
            answer_I[i] = third
            if t < len(stay_T):
                stay_T[t] += 1
    return answer_I, (left1, left2), stay_T.cumsum()


@njit(cache=True, nogil=True)
def _totals(prices, row, left_2, stay_T, images):
    """Cost over the images, shape (M, T), at every threshold of the deepest early exit."""
    total_MT = np.empty((len(prices.kind_M), len(stay_T)), dtype=np.int64)
    path_M3, delay_M = paths(prices, row.exit_3, row.signal_3)
    for m in range(len(prices.kind_M)):
        path = delay_M[m] + own_path(prices, m, row.last)
        for t in range(len(stay_T)):
            total_MT[m, t] = total(prices.kind_M[m], path_M3[m], path, left_2, stay_T[t], images)
    return total_MT


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
            # `<=`: what costs the same may still win by its mIoU or its code.
            wanted_T[t] &= total_MT[aim.target, t] <= best[0]
        # The front is that of all configurations, whatever the limits.
        wanted_T[t] |= aim.collect
    return fits_T, wanted_T


@njit(cache=True, nogil=True)
def _changes(hits_EIC, predicted_EIC, column_C, row, bins_EKI, answer_I):
    """Counts at the first column, and what each later column changes; shapes (T, C)."""
    third, last, columns, classes = row.exit_3[2], row.last, row.stop - row.start, len(column_C)
    # Whole numbers in double precision: differences and running sums are exact.
    hits_TC, predicted_TC = np.zeros((columns, classes)), np.zeros((columns, classes))
    for i in range(len(answer_I)):
        exit_ = answer_I[i]
        for c in range(classes):
            hits_TC[0, c] += hits_EIC[exit_, i, c]
            predicted_TC[0, c] += predicted_EIC[exit_, i, c]
        t = bins_EKI[third, row.signal_3[2], i] - row.start
        if exit_ == third and t < columns:
            for c in range(classes):
                hits_TC[t, c] += hits_EIC[last, i, c] - hits_EIC[third, i, c]
                predicted_TC[t, c] += predicted_EIC[last, i, c] - predicted_EIC[third, i, c]
    # Only now in the order of the slots' classes: side by side they are summed several at a time.
    ordered_TC, extra_TC = np.empty_like(hits_TC), np.empty_like(hits_TC)
    for t in range(columns):
        for c, column in enumerate(column_C):
            ordered_TC[t, c] = hits_TC[t, column]
            extra_TC[t, c] = predicted_TC[t, column] - hits_TC[t, column]
    return ordered_TC, extra_TC


# Without Python's check for division by 0, which cannot be: labelled classes have slots.
@njit(cache=True, nogil=True, error_model="numpy")
def _mious(slots, hits_TC, extra_TC, wanted_T):
    """MIoU in steps of the running sums over the columns, shape (T,), where it is wanted."""
    columns, classes = hits_TC.shape
    miou_T = np.zeros(columns, dtype=np.int64)
    # Filled up with zeros, so that four sums at a time come out even.
    iou_C = np.zeros((slots.labelled + 3) // 4 * 4)
    for t in range(columns):
        if t:
            for c in range(classes):
                hits_TC[t, c] += hits_TC[t - 1, c]
                extra_TC[t, c] += extra_TC[t - 1, c]
        if not wanted_T[t]:
            continue
        for c in range(slots.labelled):
            iou_C[c] = hits_TC[t, c] / (slots.label_C[c] + extra_TC[t, c])
        # A class without labels that is predicted somewhere has IoU 0 and counts in the mean.
        present = slots.labelled
        for c in range(slots.labelled, classes):
            present += extra_TC[t, c] > 0
        miou_T[t] = mean_in_steps(iou_C, present)
    return miou_T


@njit(cache=True, nogil=True, error_model="numpy")
def mean_in_steps(iou_C, present):
    """The mIoU in steps, of IoUs filled up to a multiple of four, if so many classes count."""
    # Four sums at a time: one would wait for each addition.
    a = b = c_ = d = 0.0
    for c in range(0, len(iou_C), 4):
        a, b = a + iou_C[c], b + iou_C[c + 1]
        c_, d = c_ + iou_C[c + 2], d + iou_C[c + 3]
    # Half to even, as `miou_steps` rounds.
    return np.int64(np.rint((a + b + c_ + d) / present * MIOU_STEPS))


@njit(cache=True, nogil=True)
def _code(row, t, bases):
    """The number of a configuration, from which `decode_steps` reads it again.

    `bases` are the numbers of exits, of signals, and the most thresholds of any.
    """
    exits, signals, radix = bases
    code = np.int64(0)
    for position, threshold in enumerate((row.threshold1, row.threshold2, row.start + t)):
        exit_, signal = row.exit_3[position], row.signal_3[position]
        if exit_ != NOBODY:
            code = ((code * exits + exit_) * signals + signal) * radix + threshold
    return code * exits + row.last
