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

Suffixes of array names as in `mess.search.kernels.scan`; R rows, T columns, L exits deeper than
those of the row by rising point (the lanes of a column end that list), C classes that have labels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.problem.goal import MIOU_STEPS
from mess.search.problem.progress import NOTHING

NOBODY = -1
"""Index of an early exit that a configuration does not have."""

MEAN, P90, STORED = 0, 1, 2
"""How a metric sums over the images: by rates, by the 90% path, or as parameters."""

EPSILON = 2.0**-23

GROUPS = 8
"""Most pieces of the deepest early exit's thresholds; the second order is bounded in each."""

MARGIN = 1e-9
"""In mIoU: larger than the rounding of a score's constant parts, far smaller than any effect."""

SAFE = np.float32(1.001)
"""Covers the rounding of sums of squares in single precision."""


class Counts(NamedTuple):
    """Pixels of the labelled classes: `hits_EIC` correct, `extra_EIC` wrongly predicted as it."""

    hits_EIC: NDArray[np.float32]
    extra_EIC: NDArray[np.float32]


class Window(NamedTuple):
    """Which configurations matter, and the reference of the bound.

    A configuration matters if its cost is within the limits of the prices and
    mIoU - slope * cost >= need; cost is the total in the front's metric, `front` its index.

    score_IE: shape (I, E), score of an exit on an image in mIoU; exits by rising point.
    gain_C, loss_C: z / union0 of counts is gain * hits - loss * extra.
    above_C, below_C: y / union0 where the union grew, and y / (least union) where it shrank, are
        those times the change of `extra`.
    offset: mIoU of a configuration in first order, less its score.
    hits0_C, extra0_C: counts of the reference.
    share: 1 / number of classes in the mean.
    spread_EK24GE: bound of the part that the deepest early exit (axis 0) with a signal (axis 1) and
        a last one (axis 5) have, in each group of thresholds: norms over the classes of z below,
        y above, z above, y below 0. On axis 2: what the early exit can change if the last one
        answered all, and the other way round.
    most_EK24GN: the largest of them over the last exits of each point.
    rounding: what float32 sums may lose, in mIoU.
    """

    score_IE: NDArray[np.float32]
    gain_C: NDArray[np.float32]
    loss_C: NDArray[np.float32]
    above_C: NDArray[np.float32]
    below_C: NDArray[np.float32]
    hits0_C: NDArray[np.float64]
    extra0_C: NDArray[np.float64]
    share: float
    spread_EK24GE: NDArray[np.float32]
    most_EK24GN: NDArray[np.float32]
    offset: float
    need: float
    slope: float
    front: int
    rounding: float


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
            spread_4RL = _row_spreads(
                counts, window, first, second, deeper, bin1_I, rows1, bin2_I, rows2
            )
            most_4RN = _most(spread_4RL, point_E[deeper:], window.most_EK24GN.shape[5])
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
                    width = _width(columns)
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
def _width(columns):
    """Thresholds of a group: at least four, as each group is looked at by itself."""
    return max(4, (columns + GROUPS - 1) // GROUPS)


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


@njit(cache=True, nogil=True, fastmath=True)
def _row_spreads(counts, window, first, second, deeper, bin1_I, rows1, bin2_I, rows2):
    """Norms of the part that a row fixes, if each of the `deeper` exits answered all the rest.

    Returns shape (4, R, L), in the order of axis 3 of `Window.spread_EK24GE`.
    """
    exits, images, classes = counts.hits_EIC.shape
    hits_RC = np.zeros((rows1 * rows2, classes))
    extra_RC = np.zeros((rows1 * rows2, classes))
    nowhere_I = np.zeros(images, dtype=np.int32)
    for fixed_RC, counts_EIC in ((hits_RC, counts.hits_EIC), (extra_RC, counts.extra_EIC)):
        reach2_RC = _corner(counts_EIC[second], bin1_I, rows1, nowhere_I, 1)
        pass2_RC = _corner(counts_EIC[second], bin1_I, rows1, bin2_I, rows2)
        for row in range(rows1 * rows2):
            fixed_RC[row] += reach2_RC[row // rows2] - pass2_RC[row]
        if first != NOBODY:
            pass1_RC = _corner(counts_EIC[first], bin1_I, rows1, nowhere_I, 1)
            all1_C = _corner(counts_EIC[first], nowhere_I, 1, nowhere_I, 1)[0]
            for row in range(rows1 * rows2):
                fixed_RC[row] += all1_C - pass1_RC[row // rows2]
    out_4RL = np.empty((4, rows1 * rows2, exits - deeper), dtype=np.float32)
    for last in range(deeper, exits):
        last_hits_RC = _corner(counts.hits_EIC[last], bin1_I, rows1, bin2_I, rows2)
        last_extra_RC = _corner(counts.extra_EIC[last], bin1_I, rows1, bin2_I, rows2)
        for row in range(rows1 * rows2):
            z_below = y_above = z_above = y_below = 0.0
            for c in range(classes):
                extra = extra_RC[row, c] + last_extra_RC[row, c] - window.extra0_C[c]
                hits = hits_RC[row, c] + last_hits_RC[row, c] - window.hits0_C[c]
                z = window.gain_C[c] * hits - window.loss_C[c] * extra
                z_below += min(z, 0.0) ** 2
                z_above += max(z, 0.0) ** 2
                y_above += (window.above_C[c] * max(extra, 0.0)) ** 2
                y_below += (window.below_C[c] * min(extra, 0.0)) ** 2
            out_4RL[0, row, last - deeper] = SAFE * np.sqrt(z_below)
            out_4RL[1, row, last - deeper] = SAFE * np.sqrt(y_above)
            out_4RL[2, row, last - deeper] = SAFE * np.sqrt(z_above)
            out_4RL[3, row, last - deeper] = SAFE * np.sqrt(y_below)
    return out_4RL


@njit(cache=True, nogil=True)
def _corner(counts_IC, bin1_I, rows1, bin2_I, rows2):
    """Sums, shape (R, C), over the images that neither of two exits answers on each row."""
    classes = counts_IC.shape[1]
    out_RC = np.zeros((rows1 * rows2, classes))
    for i in range(len(bin1_I)):
        if bin1_I[i] < rows1 and bin2_I[i] < rows2:
            row = bin1_I[i] * rows2 + bin2_I[i]
            for c in range(classes):
                out_RC[row, c] += counts_IC[i, c]
    for row in range(rows1 * rows2):
        if row % rows2:
            for c in range(classes):
                out_RC[row, c] += out_RC[row - 1, c]
    for row in range(rows2, rows1 * rows2):
        for c in range(classes):
            out_RC[row, c] += out_RC[row - rows2, c]
    return out_RC


@njit(cache=True, nogil=True, error_model="numpy")
def _scan_lanes(
    window, prices, early, deeper, first_last, bin3_I, columns, order_I, start_R, score_R, left_R2,
    rows1, rows2, spread_4RL, most_4RN, point_E, after_E,
):  # fmt: skip
    """Where affordable configurations may reach what is needed, (R, GROUPS, L), and if any."""
    first, s1, second, s2, third, s3 = early
    images, exits = window.score_IE.shape
    lanes, metrics = exits - first_last, len(prices.kind_M)
    width = _width(columns)
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
    slack = window.offset + window.rounding + window.share * _second_order(
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
def total(kind, path_3, path_last, left_2, stay, images):
    """Cost over all images of a configuration, of which `stay` reach the last exit."""
    if kind == STORED:
        return path_last * images
    if kind == MEAN:
        reach3 = images - left_2[0] - left_2[1] - stay
        early = left_2[0] * path_3[0] + left_2[1] * path_3[1] + reach3 * path_3[2]
        return early + stay * path_last
    if 10 * left_2[0] >= 9 * images:
        return path_3[0] * images
    if 10 * (left_2[0] + left_2[1]) >= 9 * images:
        return path_3[1] * images
    if 10 * (images - stay) >= 9 * images:
        return path_3[2] * images
    return path_last * images


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


@njit(cache=True, nogil=True)
def _most(spread_4RL, point_L, points):
    """The largest norms over the exits of each point, shape (4, R, N)."""
    most_4RN = np.zeros((4, spread_4RL.shape[1], points), dtype=np.float32)
    for k in range(4):
        for row in range(spread_4RL.shape[1]):
            for lane, point in enumerate(point_L):
                most_4RN[k, row, point] = max(most_4RN[k, row, point], spread_4RL[k, row, lane])
    return most_4RN


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
        slack = _second_order(
            spread_4RL, row, third - deeper, most_4RN, point, window.most_EK24GN, third, s3, group,
            point,
        )  # fmt: skip
        if best + slack * share + rounding < 0:
            continue
        for lane in range(start, last - first_last):
            slack = _second_order(
                spread_4RL, row, third - deeper, spread_4RL, first_last - deeper + lane,
                window.spread_EK24GE, third, s3, group, first_last + lane,
            )  # fmt: skip
            kept_RGL[row, group, lane] = top_L[lane] + slack * share + rounding >= 0
            some |= kept_RGL[row, group, lane]
    return some


@njit(cache=True, nogil=True)
def _second_order(spread_4RL, row, at_third, fixed_4RX, x, free_EK24GY, third, s3, group, y):
    """The second order by Cauchy-Schwarz, from whichever side bounds it better."""
    early = late = np.float32(0)
    for k in range(0, 4, 2):
        early += (fixed_4RX[k, row, x] + free_EK24GY[third, s3, 0, k, group, y]) * (
            fixed_4RX[k + 1, row, x] + free_EK24GY[third, s3, 0, k + 1, group, y]
        )
        late += (spread_4RL[k, row, at_third] + free_EK24GY[third, s3, 1, k, group, y]) * (
            spread_4RL[k + 1, row, at_third] + free_EK24GY[third, s3, 1, k + 1, group, y]
        )
    return min(early, late)


@njit(cache=True, nogil=True)
def paths(prices, first, s1, second, s2, third, s3):
    """Cost at which each early exit answers, shape (M, 3), and the delay of what comes behind."""
    metrics = len(prices.kind_M)
    path_M3 = np.zeros((metrics, 3), dtype=np.int64)
    delay_M = np.zeros(metrics, dtype=np.int64)
    for position, (exit_, signal) in enumerate(((first, s1), (second, s2), (third, s3))):
        if exit_ == NOBODY:
            continue
        for m in range(metrics):
            delay_M[m] += prices.exit_ME[m, exit_] + prices.signal_MEK[m, exit_, signal]
            path = prices.backbone_ME[m, exit_] + delay_M[m] + prices.answer_ME[m, exit_]
            path_M3[m, position] = path
            delay_M[m] += prices.resume_ME[m, exit_]
    return path_M3, delay_M


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


@njit(cache=True, nogil=True, fastmath=True)
def spreads(
    counts, gain_C, loss_C, above_C, below_C, bins_EKI, number_EK, point_E, first_last, third, out,
    most,
):  # fmt: skip
    """Fill a window's spreads, and the `most` of them, of `third` before every deeper last exit."""
    exits, images, classes = counts.hits_EIC.shape
    sums_G4C = np.empty((GROUPS + 1, 4, classes), dtype=np.float32)
    for signal in range(bins_EKI.shape[1]):
        columns = number_EK[third, signal]
        if columns == 0:
            continue
        width = _width(columns)
        for last in range(first_last, exits):
            # Piece g: who leaves at the first threshold of group g but not of the next.
            sums_G4C[:] = 0
            for i in range(images):
                piece_4C = sums_G4C[(bins_EKI[third, signal, i] + width - 1) // width]
                third_hits_C, last_hits_C = counts.hits_EIC[third, i], counts.hits_EIC[last, i]
                third_extra_C, last_extra_C = counts.extra_EIC[third, i], counts.extra_EIC[last, i]
                for c in range(classes):
                    y = third_extra_C[c] - last_extra_C[c]
                    z = gain_C[c] * (third_hits_C[c] - last_hits_C[c]) - loss_C[c] * y
                    piece_4C[0, c] -= min(z, np.float32(0))
                    piece_4C[1, c] += max(y, np.float32(0))
                    piece_4C[2, c] += max(z, np.float32(0))
                    piece_4C[3, c] -= min(y, np.float32(0))
            for g in range(GROUPS + 1):
                for c in range(classes):
                    sums_G4C[g, 1, c] *= above_C[c]
                    sums_G4C[g, 3, c] *= below_C[c]
            norms_24G = out[third, signal, :, :, :, last]
            _norms(sums_G4C, above_C, below_C, norms_24G)
            most_24G = most[third, signal, :, :, :, point_E[last]]
            most_24G[:] = np.maximum(most_24G, norms_24G)


@njit(cache=True, nogil=True, fastmath=True)
def _norms(sums_G4C, above_C, below_C, out_24G):
    """Norms of the sums over the pieces that may leave, and over those that may stay, by group."""
    classes = sums_G4C.shape[2]
    early_4C = np.zeros((4, classes), dtype=np.float32)
    for group in range(GROUPS - 1, -1, -1):
        early_4C += sums_G4C[group + 1]
        for k in range(4):
            out_24G[0, k, group] = SAFE * np.sqrt((early_4C[k] ** 2).sum())
    late_4C = sums_G4C[0].copy()
    for group in range(GROUPS):
        late_4C += sums_G4C[group + 1]
        for k in range(4):
            # Seen from the early exit, what one side gains the other loses.
            scale_C = np.ones(classes, dtype=np.float32)
            if k == 1:
                scale_C = below_C / above_C
            elif k == 3:
                scale_C = above_C / below_C
            out_24G[1, (k + 2) % 4, group] = SAFE * np.sqrt(((late_4C[k] * scale_C) ** 2).sum())
