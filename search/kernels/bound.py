"""The bound on mIoU that rules out most configurations without evaluating them, compiled.

mIoU is a mean of ratios, which no sum over the images gives. Around a reference with hits0, union0
and iou0 = hits0 / union0 of a class it is nearly one: with z = hits - iou0 * union and
y = union - union0,

    iou = iou0 + z / union                                    (as hits = iou0 * union + z)
        = iou0 + z / union0 - z * y / (union * union0)        (as 1 / union - 1 / union0 is
                                                               -y / (union * union0))

exactly. Therefore mIoU is at most share * (first order + second order), where share is one over
the least number of classes that count in any configuration.

First order: iou0 + z / union0 is linear in the pixel counts, and these are sums over the images. So
it is a constant (`offset`) and a sum of one number an image and exit, its score. It is exact.

Second order: -z * y / (union * union0), bounded in `mess.search.kernels.second_order`. The closer a
configuration is to the reference, the smaller it is: hence a reference of every band of the front
(`mess.search.exact.bound_reference`).

The early exits but the deepest, with their thresholds, are a row; the thresholds of the deepest are
its columns, every exit behind that a lane of each. A column's images leave one after another, so
scores are running sums over the columns: neither the number of classes nor a loop over the images
for every threshold enters. What is ruled out, or not, is a group of columns in a lane: that is
where the largest score of any affordable column, with the second order of the group, reaches
`need`.

Rounding: scores are summed in single precision. `Bound.rounding` is more than those sums can lose
(see `mess.search.exact.bound_reference`), and limits on cost are rounded up, so what is ruled out
is worse than needed whatever was rounded.

Suffixes of array names as in `mess.search.kernels.rows`; T columns, G groups of them, Q kept rows.
L are the exits from `Rows.deeper` on in what belongs to a row, and in a scan the lanes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.kernels.coarse import lanes_that_may
from mess.search.kernels.costs import lanes_behind, limit_columns, own_path, paths, total
from mess.search.kernels.needed import lane_costs, lanes_by_point, mark, need_columns
from mess.search.kernels.rows import (
    Deepest,
    Rows,
    early_exits,
    early_scores,
    rest_scores,
    sort_by_row,
)
from mess.search.kernels.second_order import (
    GROUPS,
    fixed_norms,
    fixed_part,
    free_parts,
    group_width,
    largest_by_point,
    norms_of,
    second_order,
)
from mess.search.problem.goal import MIOU_STEPS

MARGIN = 1e-9
"""In mIoU: larger than the rounding of a score's constant parts, far smaller than any effect."""


class Sums(NamedTuple):
    """Running sums of a scan over rows and columns, and the limits of the row it is at.

    step_IL: score that is gained if the lane's exit answers an image, not the deepest early one.
    new_TL, entered_T: by column, scores and number of the images that stay from it on, of the
        threshold of the first exit that the scan is at.
    sum_RTL, stay_RT: by threshold of the second exit, sums over all rows and columns up to here;
        where the first exit has a single row, there are none before, and scores are not kept.
    run_L, top_GL: sum up to a column, and by group the largest affordable less what it needs.
    limit_2T, need_T: by column, the dearest own path of a last exit, and the score it needs.
    """

    step_IL: NDArray[np.float32]
    new_TL: NDArray[np.float32]
    entered_T: NDArray[np.int64]
    sum_RTL: NDArray[np.float32]
    stay_RT: NDArray[np.int64]
    run_L: NDArray[np.float32]
    top_GL: NDArray[np.float32]
    limit_2T: NDArray[np.float32]
    need_T: NDArray[np.float32]


@njit(cache=True, nogil=True)
def scores(slots, gain_C, loss_C):
    """The score of every exit on every image, shape (I, E), in double precision."""
    start_I, class_S, hits_SE, extra_SE = (
        slots.start_I,
        slots.class_S,
        slots.hits_SE,
        slots.extra_SE,
    )
    score_IE = np.zeros((len(start_I) - 1, hits_SE.shape[1]))
    for i in range(len(score_IE)):
        for s in range(start_I[i], start_I[i + 1]):
            c = class_S[s]
            # Classes without labels come last.
            if c >= slots.labelled:
                break
            for exit_ in range(hits_SE.shape[1]):
                score_IE[i, exit_] += gain_C[c] * hits_SE[s, exit_] - loss_C[c] * extra_SE[s, exit_]
    return score_IE


@njit(cache=True, nogil=True)
def rows_that_matter(slots, bound, prices, exits, first, signal, seconds, front):
    """Rows that may hold a configuration that matters, with `first` and each of `seconds` early.

    `front` are its costs and mIoUs in steps: a configuration then only matters if it is not behind
    it. Where there is none, both are empty.
    Returns shape (Q, 11), each (first, signal, threshold, second, signal, threshold, deepest early
    exit, signal, its first threshold and the one to stop before, last exit), and the number of
    configurations that were ruled out.
    """
    kept_Q = np.empty((64, 11), dtype=np.int64)
    # A plain 0 is a type of its own, for which `_keep` would be compiled once more.
    size, ruled_out = np.int64(0), 0
    for second in seconds:
        for signal2 in range(exits.number_EK.shape[1]):
            early = early_exits(exits, first, signal, second, signal2)
            # A signal that is alike on all images has no threshold, so nobody could be told apart
            # by it.
            if early.rows1 * early.rows2 == 0:
                continue
            # Rows do not depend on the deepest exit: made once for all that may follow.
            rows = rows_of(slots, bound, exits, early)
            for third in range(rows.deeper, len(exits.point_E)):
                first_last = exits.after_E[third]
                lanes = len(exits.point_E) - first_last
                for signal3 in range(exits.number_EK.shape[1] if lanes else 0):
                    columns = exits.number_EK[third, signal3]
                    if columns == 0:
                        continue
                    bin_I = exits.bins_EKI[third, signal3]
                    deepest = Deepest(third, signal3, bin_I, columns, first_last)
                    ruled_out += len(rows.score_R) * lanes * columns
                    last_L, some_R = lanes_that_may(bound, prices, exits, rows, deepest)
                    if len(last_L) == 0:
                        continue
                    reach_RGL, some = scan(bound, prices, exits, rows, deepest, last_L, some_R)
                    if some:
                        kept_Q, size, kept = _keep(
                            kept_Q, size, bound, prices, rows, deepest, last_L, reach_RGL, front
                        )
                        ruled_out -= kept
    return kept_Q[:size], ruled_out


@njit(cache=True, nogil=True)
def rows_of(slots, bound, exits, early):
    """`Rows` of these early exits."""
    deeper = exits.after_E[early.second]
    order_I, start_R = sort_by_row(early)
    score_R, left_R2 = early_scores(bound, early)
    fixed_4RL = fixed_norms(slots, bound, early, deeper)
    points = bound.most_free_EK24GN.shape[5]
    most_4RN = largest_by_point(fixed_4RL, exits.point_E[deeper:], points)
    return Rows(early, deeper, order_I, start_R, score_R, left_R2, fixed_4RL, most_4RN)


@njit(cache=True, nogil=True)
def _keep(kept_Q, size, bound, prices, rows, deepest, last_L, reach_RGL, front):
    """Append the groups that reach what is needed, those before the front only; arrays grow.

    Returns the array, its size, and how many configurations were appended.
    """
    early, width, kept, m = rows.early, group_width(deepest.columns), 0, bound.front
    exit_3 = (early.first, early.second, deepest.exit)
    path_M3, delay_M = paths(prices, exit_3, (early.signal1, early.signal2, deepest.signal))
    for row, group, lane in np.argwhere(reach_RGL):
        start, stop = group * width, min((group + 1) * width, deepest.columns)
        last = last_L[lane]
        if len(front[0]):
            path_last = delay_M[m] + own_path(prices, m, last)
            price = (prices.kind_M[m], path_M3[m], path_last)
            start, stop = _before_front(bound, rows, deepest, row, group, last, price, front)
        if start == stop:
            continue
        kept += stop - start
        if size == len(kept_Q):
            kept_Q = np.concatenate((kept_Q, np.empty_like(kept_Q)))
        out = kept_Q[size]
        out[0], out[1], out[2] = early.first, early.signal1, row // early.rows2
        out[3], out[4], out[5] = early.second, early.signal2, row % early.rows2
        out[6], out[7], out[8], out[9] = deepest.exit, deepest.signal, start, stop
        out[10] = last
        size += 1
    return kept_Q, size, kept


@njit(cache=True, nogil=True)
def scan(bound, prices, exits, rows, deepest, last_L, some_R):
    """Where affordable configurations may reach what is needed, (R, GROUPS, L), and if any.

    Only before the exits `last_L`, and on the rows of which that is not ruled out yet.
    """
    images, rows2 = len(bound.score_IE), rows.early.rows2
    exit_3 = (rows.early.first, rows.early.second, deepest.exit)
    signal_3 = (rows.early.signal1, rows.early.signal2, deepest.signal)
    lanes = lanes_behind(prices, exit_3, signal_3, last_L, images)
    norms = norms_of(bound, exits, rows, deepest)
    sums = _no_sums(bound, prices, rows, deepest, last_L)
    base_R = rows.score_R + rest_scores(bound, rows, deepest.exit)
    reach_RGL = np.zeros((len(base_R), *sums.top_GL.shape), dtype=np.bool_)
    # One factor in double precision would turn the sums of `mark` into double precision.
    some, share, rounding = False, np.float32(bound.share), np.float32(bound.rounding)
    # Fields are read before the loop: to read one counts references to its array.
    start_P = lanes_by_point(last_L, exits.point_E)
    order_I, start_R, left_R2, bin_I = rows.order_I, rows.start_R, rows.left_R2, deepest.bin_I
    new_TL, entered_T, step_IL, run_L = sums.new_TL, sums.entered_T, sums.step_IL, sums.run_L
    sum_RTL, stay_RT, top_GL = sums.sum_RTL, sums.stay_RT, sums.top_GL
    limit_2T, need_T, own_2L = sums.limit_2T, sums.need_T, lanes.own_2L
    path_3, delay = lanes.path_M3[bound.front], lanes.delay_M[bound.front]
    for row in range(len(base_R)):
        r2, left_2 = row % rows2, (left_R2[row, 0], left_R2[row, 1])
        # A prefix sum over two thresholds: `new_TL` runs along the second one, `sum_RTL` along the
        # first.
        if r2 == 0:
            new_TL[:] = 0
            entered_T[:] = 0
        stay_T, sum_TL = stay_RT[r2], sum_RTL[r2]
        # Also on rows that are left at once below: who stays is counted on, and later rows read it.
        _enter(order_I[start_R[row] : start_R[row + 1]], bin_I, step_IL, new_TL, entered_T, stay_T)
        # Sums over rows of the first exit are kept up on all of them.
        if not some_R[row] and rows.early.rows1 == 1:
            continue
        stop = limit_columns(lanes, left_2, images, stay_T, limit_2T)
        if stop == 0:
            continue
        # What a row has in common is summed in double precision and taken off before single begins.
        need = bound.need - base_R[row]
        need_columns(need, bound.slope, path_3, delay, left_2, images, stay_T, need_T)
        groups = _scan_columns(new_TL, sum_TL, run_L, own_2L, limit_2T, need_T, stop, top_GL)
        if some_R[row]:
            some |= mark(
                norms, last_L, start_P, share, rounding, row, groups, top_GL, reach_RGL[row]
            )
    return reach_RGL, some


@njit(cache=True, nogil=True)
def _no_sums(bound, prices, rows, deepest, last_L):
    """`Sums` at the start. A slope is a price of a step: that of the last exit's own path."""
    score_IE, bin_I, cost_L = bound.score_IE, deepest.bin_I, lane_costs(bound, prices, last_L)
    images, lanes, columns, rows2 = len(score_IE), len(last_L), deepest.columns, rows.early.rows2
    step_IL = np.empty((images, lanes), dtype=np.float32)
    for i in rows.order_I:
        # Who leaves at every column is never added up, so what is not filled in is never read.
        if bin_I[i] < columns:
            base = score_IE[i, deepest.exit]
            for lane in range(lanes):
                step_IL[i, lane] = score_IE[i, last_L[lane]] - base - cost_L[lane]
    return Sums(
        step_IL,
        np.zeros((columns, lanes), dtype=np.float32),
        np.zeros(columns, dtype=np.int64),
        np.zeros((rows2, columns if rows.early.rows1 > 1 else 0, lanes), dtype=np.float32),
        np.zeros((rows2, columns), dtype=np.int64),
        np.zeros(lanes, dtype=np.float32),
        np.empty((GROUPS, lanes), dtype=np.float32),
        np.empty((2, columns), dtype=np.float32),
        np.empty(columns, dtype=np.float32),
    )


@njit(cache=True, nogil=True)
def _enter(new_I, bin_I, step_IL, new_TL, entered_T, stay_T):
    """Add the images that are new on a row, also to how many stay for the last exit, by column."""
    columns, lanes = new_TL.shape
    for i in new_I:
        t = bin_I[i]
        if t < columns:
            entered_T[t] += 1
            for lane in range(lanes):
                new_TL[t, lane] += step_IL[i, lane]
    stay = 0
    for t in range(columns):
        stay += entered_T[t]
        stay_T[t] += stay


@njit(cache=True, nogil=True)
def _scan_columns(new_TL, sum_TL, run_L, own_2L, limit_2T, need_T, stop, top_GL):
    """Sum up a row's columns before `stop` and fill `top_GL`; returns how many groups that are."""
    width = group_width(len(need_T))
    groups = (stop + width - 1) // width
    run_L[:] = 0
    for group in range(groups):
        top_L = top_GL[group]
        top_L[:] = -np.inf
        for t in range(group * width, min((group + 1) * width, stop)):
            limit_2 = (limit_2T[0, t], limit_2T[1, t])
            if len(sum_TL):
                _advance_sum(new_TL, t, run_L, sum_TL, own_2L, limit_2, need_T[t], top_L)
            else:
                _advance(new_TL, t, run_L, own_2L, limit_2, need_T[t], top_L)
    return groups


@njit(cache=True, nogil=True)
def _advance(new_TL, t, run_L, own_2L, limit_2, need, top_L):
    """Add a column to the running sums, and keep the largest affordable one less what it needs."""
    limit0, limit1 = limit_2
    for lane in range(len(run_L)):
        value = run_L[lane] + new_TL[t, lane]
        run_L[lane] = value
        # `&` looks at both sides, so that the loop over the lanes has no branch.
        fits = (own_2L[0, lane] <= limit0) & (own_2L[1, lane] <= limit1)
        value = value - need if fits else np.float32(-np.inf)
        top_L[lane] = max(top_L[lane], value)


@njit(cache=True, nogil=True)
def _advance_sum(new_TL, t, run_L, sum_TL, own_2L, limit_2, need, top_L):
    """The same where the sums of earlier rows are added."""
    limit0, limit1 = limit_2
    for lane in range(len(run_L)):
        value = run_L[lane] + new_TL[t, lane]
        run_L[lane] = value
        value += sum_TL[t, lane]
        sum_TL[t, lane] = value
        fits = (own_2L[0, lane] <= limit0) & (own_2L[1, lane] <= limit1)
        value = value - need if fits else np.float32(-np.inf)
        top_L[lane] = max(top_L[lane], value)


@njit(cache=True, nogil=True)
def _before_front(bound, rows, deepest, row, group, last, price, front):
    """First and past the last column of a group that may not be behind the front.

    Every column is held against the front at its own cost, with the same bound. `price` is the kind
    of the front's metric, the paths of the early exits and that of the last one.
    """
    (kind, path_3, path_last), (cost_F, miou_F) = price, front
    width = group_width(deepest.columns)
    start, stop = group * width, min((group + 1) * width, deepest.columns)
    left_2 = (rows.left_R2[row, 0], rows.left_R2[row, 1])
    score, score_T, stay_T = _column_scores(bound, rows, deepest, row, start, stop, last)
    slack = bound.offset + bound.rounding + bound.share * second_order(
        fixed_part(rows.fixed_4RL, row, deepest.exit - rows.deeper),
        fixed_part(rows.fixed_4RL, row, last - rows.deeper),
        free_parts(bound.free_EK24GE[deepest.exit, deepest.signal], group, last),
    )  # fmt: skip
    images, stay = len(bound.score_IE), 0
    begin, end = stop, stop
    for t in range(stop - start):
        score += score_T[t]
        stay += stay_T[t]
        cost = total(kind, path_3, path_last, left_2, stay, images)
        # The dearest of the front that costs no more. `>=`: of two that are equal the code decides.
        at = np.searchsorted(cost_F, cost, side="right") - 1
        if at < 0 or (score + slack + MARGIN) * MIOU_STEPS >= miou_F[at]:
            # A kept row is one range: what lies between two columns that matter is evaluated too.
            begin = min(begin, start + t)
            end = start + t + 1
    return begin, end


@njit(cache=True, nogil=True)
def _column_scores(bound, rows, deepest, row, start, stop, last):
    """Score of a row if the deepest early exit answers all the rest, what is gained from each
    column of a group on, and how many images stay from it on.
    """
    early, score, score_IE = rows.early, rows.score_R[row], bound.score_IE
    bin1_I, bin2_I, bin_I, third = early.bin1_I, early.bin2_I, deepest.bin_I, deepest.exit
    several, r1, r2 = early.rows1 > 1, row // early.rows2, row % early.rows2
    score_T = np.zeros(stop - start)
    stay_T = np.zeros(stop - start, dtype=np.int64)
    # With a single row of the first exit, those that reach the deepest are the first in the order.
    for i in rows.order_I[: rows.start_R[row + 1]]:
        if several and (bin1_I[i] > r1 or bin2_I[i] > r2):
            continue
        score += score_IE[i, third]
        t = max(bin_I[i] - start, 0)
        if t < stop - start:
            score_T[t] += score_IE[i, last] - score_IE[i, third]
            stay_T[t] += 1
    return score, score_T, stay_T
