"""The accuracy bound that rules out most configurations, compiled.

mIoU is a mean of ratios, so it is bounded from above by a linear function of the pixel counts
around a reference: with z = hits - iou0 * union and y = union - union0 of a class, exactly

    iou = iou0 + z / union0 - z * y / (union * union0).

The second term is a sum over the images, one number an image and exit (its score). The last term is
of second order; it is bounded by Cauchy-Schwarz over the classes, the parts of z and y that a row
fixes taken as they are and the deepest early exit's as if it could choose its images.

A row is a choice of early exits but the deepest, with their thresholds; what they answer is fixed.
The deepest early exit with all its thresholds (columns) and every last exit (lanes) are scanned at
once: neither the number of classes nor a third loop over the images enters.

Suffixes of array names as in `mess.search.kernels.evaluate`; R rows, T columns, L exits deeper than
those of the row by rising point (the lanes of a column end that list), C classes that have labels.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mess.search.kernels.arrays import EPSILON, GROUPS, MARGIN, MEAN, NOBODY, STORED
from mess.search.kernels.costs import paths, total
from mess.search.kernels.second_order import (
    group_width,
    largest_by_point,
    row_spreads,
    second_order,
)
from mess.search.problem.goal import MIOU_STEPS
from mess.search.problem.progress import NOTHING


@njit(cache=True, nogil=True, error_model="numpy")
def screen(
    counts, window, prices, bins_EKI, number_EK, point_E, after_E, first, s1, seconds, front
):  # fmt: skip
    """Rows that may hold a configuration that matters, with `first` and each of `seconds` early.

    Exits are numbered by rising point: `point_E` from 0, `after_E` the first exit behind it.
    With a `front` (costs and mIoUs in steps, possibly empty) a configuration only matters if it is
    not behind it.
    Returns shape (Q, 11), each (first, signal, threshold, second, signal, threshold, deepest early
    exit, signal, its first threshold and the one to stop before, last exit), and the number of
    configurations that were ruled out.
    """
    exits, signals, images = bins_EKI.shape
    rows1 = number_EK[first, s1] if first != NOBODY else 1
    bin1_I = bins_EKI[first, s1] if first != NOBODY else np.zeros(images, dtype=np.int32)
    kept_Q = np.empty((64, 11), dtype=np.int64)
    size, ruled_out = 0, 0
    for second in seconds:
        deeper = after_E[second]
        for s2 in range(signals):
            rows2 = number_EK[second, s2]
            if rows1 * rows2 == 0:
                continue
            bin2_I = bins_EKI[second, s2]
            order_I, start_R = _sort_by_row(bin1_I, rows1, bin2_I, rows2)
            spread_4RL = row_spreads(
                counts, window, first, second, deeper, bin1_I, rows1, bin2_I, rows2
            )
            most_4RN = largest_by_point(spread_4RL, point_E[deeper:], window.most_EK24GN.shape[5])
            score_R, left_R2 = _early_scores(window, first, second, bin1_I, rows1, bin2_I, rows2)
            for third in range(deeper, exits):
                lanes = exits - after_E[third]
                for s3 in range(signals if lanes else 0):
                    columns = number_EK[third, s3]
                    if columns == 0:
                        continue
                    early = (first, s1, second, s2, third, s3)
                    kept_RGL, kept = _scan_lanes(
                        window, prices, early, deeper, after_E[third], bins_EKI[third, s3],
                        columns, order_I, start_R, score_R, left_R2, rows1, rows2, spread_4RL,
                        most_4RN, point_E, after_E,
                    )  # fmt: skip
                    ruled_out += rows1 * rows2 * lanes * columns
                    width = group_width(columns)
                    for row, group, lane in np.argwhere(kept_RGL if kept else kept_RGL[:0]):
                        start, stop = group * width, min((group + 1) * width, columns)
                        if len(front[0]):
                            start, stop = _before_front(
                                window, prices, early, order_I, start_R, row, rows1, rows2, bin1_I,
                                bin2_I, bins_EKI[third, s3], start, stop, score_R[row],
                                left_R2[row], after_E[third] + lane, deeper, spread_4RL, group,
                                front,
                            )  # fmt: skip
                        ruled_out -= stop - start
                        if start == stop:
                            continue
                        if size == len(kept_Q):
                            kept_Q = np.concatenate((kept_Q, np.empty_like(kept_Q)))
                        kept_Q[size, 0], kept_Q[size, 1] = first, s1
                        kept_Q[size, 2] = row // rows2
                        kept_Q[size, 3], kept_Q[size, 4] = second, s2
                        kept_Q[size, 5] = row % rows2
                        kept_Q[size, 6], kept_Q[size, 7] = third, s3
                        kept_Q[size, 8], kept_Q[size, 9] = start, stop
                        kept_Q[size, 10] = after_E[third] + lane
                        size += 1
    return kept_Q[:size], ruled_out


@njit(cache=True, nogil=True)
def _sort_by_row(bin1_I, rows1, bin2_I, rows2):
    """Images that reach the deepest early exit on some row, by row, and where each row starts."""
    start_R = np.zeros(rows1 * rows2 + 1, dtype=np.int64)
    for i in range(len(bin1_I)):
        if bin1_I[i] < rows1 and bin2_I[i] < rows2:
            start_R[bin1_I[i] * rows2 + bin2_I[i] + 1] += 1
    start_R = start_R.cumsum()
    free_R = start_R.copy()
    order_I = np.empty(start_R[-1], dtype=np.int64)
    for i in range(len(bin1_I)):
        if bin1_I[i] < rows1 and bin2_I[i] < rows2:
            row = bin1_I[i] * rows2 + bin2_I[i]
            order_I[free_R[row]] = i
            free_R[row] += 1
    return order_I, start_R


@njit(cache=True, nogil=True, error_model="numpy")
def _scan_lanes(
    window, prices, early, deeper, first_last, bin3_I, columns, order_I, start_R, score_R, left_R2,
    rows1, rows2, spread_4RL, most_4RN, point_E, after_E,
):  # fmt: skip
    """Where affordable configurations may reach what is needed, (R, GROUPS, L), and if any."""
    first, s1, second, s2, third, s3 = early
    images, exits = window.score_IE.shape
    lanes, metrics = exits - first_last, len(prices.kind_M)
    width = group_width(columns)
    path_M3, delay_M = paths(prices, first, s1, second, s2, third, s3)
    own_ML = prices.backbone_ME[:, first_last:] + prices.exit_ME[:, first_last:]
    own_ML += prices.answer_ME[:, first_last:]
    price = window.slope if prices.kind_M[window.front] == MEAN else 0.0

    own_2L = np.full((2, lanes), -np.inf, dtype=np.float32)
    slot_M = _slots(prices)
    rising = True
    for m in range(metrics):
        rising &= path_M3[m, 0] <= path_M3[m, 1] or first == NOBODY
        rising &= path_M3[m, 1] <= path_M3[m, 2] or second == NOBODY
        for lane in range(lanes):
            path = delay_M[m] + own_ML[m, lane]
            rising &= path_M3[m, 2] <= path
            if slot_M[m] >= 0:
                own_2L[slot_M[m], lane] = max(
                    own_2L[slot_M[m], lane], own_ML[m, lane] * (1 - 4 * EPSILON)
                )
            elif prices.kind_M[m] == STORED and path * images > prices.limit_M[m]:
                own_2L[0, lane] = np.inf

    step_IL = np.empty((images, lanes), dtype=np.float32)
    for i in order_I:
        if bin3_I[i] < columns:
            base = window.score_IE[i, third]
            for lane in range(lanes):
                step_IL[i, lane] = window.score_IE[i, first_last + lane] - base
    if price != 0.0:
        for lane in range(lanes):
            cost = np.float32(price * own_ML[window.front, lane])
            for i in order_I:
                step_IL[i, lane] -= cost

    kept_RGL = np.zeros((rows1 * rows2, GROUPS, lanes), dtype=np.bool_)
    kept = False
    top_L = np.empty(lanes, dtype=np.float32)
    sum_RTL = np.zeros((rows2 if rows1 > 1 else 0, columns, lanes), dtype=np.float32)
    stay_RT = np.zeros((rows2, columns), dtype=np.int64)
    new_TL = np.zeros((columns, lanes), dtype=np.float32)
    stay_T = np.zeros(columns, dtype=np.int64)
    run_L = np.zeros(lanes, dtype=np.float32)
    lim_2T = np.empty((2, columns), dtype=np.float32)
    need_T = np.empty(columns, dtype=np.float32)
    least_2 = np.array([own_2L[0].min(), own_2L[1].min()])
    base_R = score_R + _rest_scores(window, third, order_I, start_R, rows2)

    for row in range(rows1 * rows2):
        r2 = row % rows2
        if r2 == 0:
            new_TL[:] = 0
            stay_T[:] = 0
        for q in range(start_R[row], start_R[row + 1]):
            i = order_I[q]
            t = bin3_I[i]
            if t < columns:
                stay_T[t] += 1
                for lane in range(lanes):
                    new_TL[t, lane] += step_IL[i, lane]
        stay = 0
        for t in range(columns):
            stay += stay_T[t]
            stay_RT[r2, t] += stay
        _limits(
            window, prices, slot_M, path_M3, delay_M, left_R2[row], base_R[row], images,
            stay_RT[r2], lim_2T, need_T,
        )  # fmt: skip
        run_L[:] = 0
        for t in range(columns):
            lim0, lim1, need = lim_2T[0, t], lim_2T[1, t], need_T[t]
            if t % width == 0:
                top_L[:] = -np.inf
            # Later columns and rows leave more to deeper exits: nothing there can be affordable.
            over = rising and (least_2[0] > lim0 or least_2[1] > lim1)
            if over and t % width == 0:
                break
            if rows1 == 1:
                _advance(new_TL, t, run_L, own_2L, lim0, lim1, need, top_L)
            else:
                _advance_sum(new_TL, t, run_L, sum_RTL, r2, own_2L, lim0, lim1, need, top_L)
            if over or t % width == width - 1 or t == columns - 1:
                kept |= _mark(
                    window, spread_4RL, most_4RN, point_E, after_E, row, third, s3, t // width,
                    deeper, first_last, top_L, kept_RGL,
                )  # fmt: skip
            if over:
                break
    return kept_RGL, kept


@njit(cache=True, nogil=True)
def _before_front(
    window, prices, early, order_I, start_R, row, rows1, rows2, bin1_I, bin2_I, bin3_I, start, stop,
    score, left_2, last, deeper, spread_4RL, group, front,
):  # fmt: skip
    """First and past the last column from `start` to `stop` that may not be behind the front."""
    first, s1, second, s2, third, s3 = early
    cost_F, miou_F = front
    images = window.score_IE.shape[0]
    score_T = np.zeros(stop - start)
    stay_T = np.zeros(stop - start, dtype=np.int64)
    r1, r2 = row // rows2, row % rows2
    # With one row of the first exit, the images that reach the third are the first in the order.
    for i in order_I[: start_R[row + 1]]:
        if rows1 > 1 and (bin1_I[i] > r1 or bin2_I[i] > r2):
            continue
        score += window.score_IE[i, third]
        t = max(bin3_I[i] - start, 0)
        if t < stop - start:
            score_T[t] += window.score_IE[i, last] - window.score_IE[i, third]
            stay_T[t] += 1
    slack = window.offset + window.rounding + window.share * second_order(
        spread_4RL, row, third - deeper, spread_4RL, last - deeper, window.spread_EK24GE, third, s3,
        group, last,
    )  # fmt: skip
    path_M3, delay_M = paths(prices, first, s1, second, s2, third, s3)
    m = window.front
    path_last = delay_M[m] + prices.backbone_ME[m, last] + prices.exit_ME[m, last]
    path_last += prices.answer_ME[m, last]
    stay = 0
    begin, end = stop, stop
    for t in range(stop - start):
        score += score_T[t]
        stay += stay_T[t]
        cost = total(prices.kind_M[m], path_M3[m], path_last, left_2, stay, images)
        at = np.searchsorted(cost_F, cost, side="right") - 1
        if at < 0 or (score + slack + MARGIN) * MIOU_STEPS >= miou_F[at]:
            begin = min(begin, start + t)
            end = start + t + 1
    return begin, end


@njit(cache=True, nogil=True)
def _advance(new_TL, t, run_L, own_2L, lim0, lim1, need, top_L):
    """Add a column to the running sums, and keep the largest affordable one less what it needs."""
    for lane in range(len(run_L)):
        value = run_L[lane] + new_TL[t, lane]
        run_L[lane] = value
        fits = (own_2L[0, lane] <= lim0) & (own_2L[1, lane] <= lim1)
        value = value - need if fits else np.float32(-np.inf)
        top_L[lane] = max(top_L[lane], value)


@njit(cache=True, nogil=True)
def _advance_sum(new_TL, t, run_L, sum_RTL, r2, own_2L, lim0, lim1, need, top_L):
    """The same where the sums of earlier rows are added."""
    for lane in range(len(run_L)):
        value = run_L[lane] + new_TL[t, lane]
        run_L[lane] = value
        value += sum_RTL[r2, t, lane]
        sum_RTL[r2, t, lane] = value
        fits = (own_2L[0, lane] <= lim0) & (own_2L[1, lane] <= lim1)
        value = value - need if fits else np.float32(-np.inf)
        top_L[lane] = max(top_L[lane], value)


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _mark(
    window, spread_4RL, most_4RN, point_E, after_E, row, third, s3, group, deeper, first_last,
    top_L, kept_RGL,
):  # fmt: skip
    """Mark the lanes that reach what is needed with the most that the second order can add.

    Mostly what it can add at any last exit of a point is not enough for the best of them. Returns
    whether any lane is marked.
    """
    share, rounding = np.float32(window.share), np.float32(window.rounding)
    some, last = False, first_last
    while last < len(point_E):
        start, last, point = last - first_last, after_E[last], point_E[last]
        best = np.float32(-np.inf)
        for lane in range(start, last - first_last):
            best = max(best, top_L[lane])
        slack = second_order(
            spread_4RL, row, third - deeper, most_4RN, point, window.most_EK24GN, third, s3, group,
            point,
        )  # fmt: skip
        if best + slack * share + rounding < 0:
            continue
        for lane in range(start, last - first_last):
            slack = second_order(
                spread_4RL, row, third - deeper, spread_4RL, first_last - deeper + lane,
                window.spread_EK24GE, third, s3, group, first_last + lane,
            )  # fmt: skip
            kept_RGL[row, group, lane] = top_L[lane] + slack * share + rounding >= 0
            some |= kept_RGL[row, group, lane]
    return some


@njit(cache=True, nogil=True)
def _slots(prices):
    """Which of the two limits of a column a metric uses; -1: none, no limit by column."""
    slot_M = np.full(len(prices.kind_M), -1, dtype=np.int64)
    used = 0
    for m in range(len(slot_M)):
        if prices.kind_M[m] != STORED and prices.limit_M[m] < NOTHING:
            slot_M[m] = used
            used += 1
    return slot_M


@njit(cache=True, nogil=True)
def _early_scores(window, first, second, bin1_I, rows1, bin2_I, rows2):
    """By row: score of what `first` and `second` answer, and how many images each answers."""
    score_R = np.zeros(rows1 * rows2)
    left_R2 = np.zeros((rows1 * rows2, 2), dtype=np.int64)
    for i in range(len(bin1_I)):
        for r1 in range(min(bin1_I[i], rows1)):
            for row in range(r1 * rows2, (r1 + 1) * rows2):
                score_R[row] += window.score_IE[i, first]
                left_R2[row, 0] += 1
        for r1 in range(bin1_I[i], rows1):
            for row in range(r1 * rows2, r1 * rows2 + min(bin2_I[i], rows2)):
                score_R[row] += window.score_IE[i, second]
                left_R2[row, 1] += 1
    return score_R, left_R2


@njit(cache=True, nogil=True)
def _rest_scores(window, third, order_I, start_R, rows2):
    """Score, shape (R,), of all images that reach `third` if it answered them."""
    score_R = np.zeros(len(start_R) - 1)
    for row in range(len(score_R)):
        for q in range(start_R[row], start_R[row + 1]):
            score_R[row] += window.score_IE[order_I[q], third]
    for row in range(len(score_R)):
        if row % rows2:
            score_R[row] += score_R[row - 1]
    for row in range(rows2, len(score_R)):
        score_R[row] += score_R[row - rows2]
    return score_R


@njit(cache=True, nogil=True)
def _limits(
    window, prices, slot_M, path_M3, delay_M, left_2, base, images, stay_T, lim_2T, need_T
):  # fmt: skip
    """Fill, by column, the largest affordable cost of a last exit alone, and what is needed."""
    reach3 = images - left_2[0] - left_2[1]
    need_T[:] = np.float32(window.need - base)
    if window.slope != 0.0:
        m = window.front
        fixed = left_2[0] * path_M3[m, 0] + left_2[1] * path_M3[m, 1] + reach3 * path_M3[m, 2]
        for t in range(len(stay_T)):
            cost = fixed + stay_T[t] * (delay_M[m] - path_M3[m, 2])
            need_T[t] = np.float32(window.need - base + window.slope * cost)
    lim_2T[:] = np.inf
    for m in range(len(slot_M)):
        if slot_M[m] < 0:
            continue
        lim_T, limit, path_3 = lim_2T[slot_M[m]], prices.limit_M[m], path_M3[m]
        if prices.kind_M[m] == MEAN:
            room = limit - left_2[0] * path_3[0] - left_2[1] * path_3[1] - reach3 * path_3[2]
            for t in range(len(stay_T)):
                if stay_T[t]:
                    left = (room + stay_T[t] * (path_3[2] - delay_M[m])) / stay_T[t]
                    lim_T[t] = left + abs(left) * 4 * EPSILON
                elif room < 0:
                    lim_T[t] = -np.inf
        else:
            path = limit // images
            for t in range(len(stay_T)):
                if 10 * left_2[0] >= 9 * images:
                    fits = path_3[0] <= path
                elif 10 * (left_2[0] + left_2[1]) >= 9 * images:
                    fits = path_3[1] <= path
                elif 10 * (images - stay_T[t]) >= 9 * images:
                    fits = path_3[2] <= path
                else:
                    left = np.float64(path - delay_M[m])
                    lim_T[t] = left + abs(left) * 4 * EPSILON
                    continue
                lim_T[t] = np.inf if fits else -np.inf
