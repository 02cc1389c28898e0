"""Which last exits, and which rows, may matter at all: the bound by groups of columns, compiled.

A first look, which spares most lanes the one at every column (`mess.search.kernels.bound`, which
explains scores, rows, columns and lanes). A column's score is that of its row and a running sum of
steps, what an image gains if the lane's exit answers it and not the deepest early one. From the
first column of a group on, that sum rises by no more than the positive ones of its images' steps.
So the largest score of a group is at most the sum before it and these, added up together.

What a column needs is linear in how many images stay, what it can afford a constant and another
over that number, or a step. Ever more images stay from column to column, so that either rises or
falls throughout: over a group both are largest and least at its *edges*, its first and last column.

Suffixes of array names as in `mess.search.kernels.bound`; X edges, two a group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.kernels.costs import lanes_behind, limit_columns
from mess.search.kernels.needed import lane_costs, lanes_by_point, mark, need_columns
from mess.search.kernels.rows import rest_scores
from mess.search.kernels.second_order import group_width, norms_of


class _Steps(NamedTuple):
    """Sums of steps by group, and of the positive ones alone.

    new_2GL, entered_X: of the images that are new at the threshold of the first exit that the pass
        is at. sum_R2GL, stay_RX: as in `mess.search.kernels.bound.Sums`.
    """

    new_2GL: NDArray[np.float32]
    entered_X: NDArray[np.int64]
    sum_R2GL: NDArray[np.float32]
    stay_RX: NDArray[np.int64]


@njit(cache=True, nogil=True)
def lanes_that_may(bound, prices, exits, rows, deepest):
    """Last exits with an affordable configuration that may reach what is needed.

    Returns them by rising point, and shape (R,) on which rows any may.
    """
    images, rows2, first_last = len(bound.score_IE), rows.early.rows2, deepest.first_last
    exit_3 = (rows.early.first, rows.early.second, deepest.exit)
    signal_3 = (rows.early.signal1, rows.early.signal2, deepest.signal)
    last_L = np.arange(first_last, len(exits.point_E))
    lanes = lanes_behind(prices, exit_3, signal_3, last_L, images)
    norms = norms_of(bound, exits, rows, deepest)
    width = group_width(deepest.columns)
    steps = _no_steps((deepest.columns + width - 1) // width, len(last_L), rows.early)
    base_R = rows.score_R + rest_scores(bound, rows, deepest.exit)
    cost_L = lane_costs(bound, prices, last_L)
    edge_I = _edges(deepest, width)
    start_P = lanes_by_point(last_L, exits.point_E)
    several = rows.early.rows1 > 1
    # Fields are read before the loop: to read one counts references to its array.
    order_I, start_R, left_R2, score_IE = rows.order_I, rows.start_R, rows.left_R2, bound.score_IE
    third = deepest.exit
    new_2GL, entered_X, sum_R2GL, stay_RX = steps
    new_GL, gain_GL, own_2L = new_2GL[0], new_2GL[1], lanes.own_2L
    top_GL, run_L = np.empty_like(new_GL), np.empty(len(last_L), dtype=np.float32)
    limit_2X = np.empty((2, len(entered_X)), dtype=np.float32)
    need_X = np.empty(len(entered_X), dtype=np.float32)
    path_3, delay = lanes.path_M3[bound.front], lanes.delay_M[bound.front]
    share, rounding = np.float32(bound.share), np.float32(bound.rounding)
    reach_GL = np.zeros(new_GL.shape, dtype=np.bool_)
    some_R = np.zeros(len(base_R), dtype=np.bool_)
    for row in range(len(base_R)):
        r2, left_2 = row % rows2, (left_R2[row, 0], left_R2[row, 1])
        if r2 == 0:
            new_2GL[:] = 0
            entered_X[:] = 0
        for i in order_I[start_R[row] : start_R[row + 1]]:
            edge = edge_I[i]
            if edge < len(entered_X):
                entered_X[edge] += 1
                new_L, gain_L = new_GL[edge // 2], gain_GL[edge // 2]
                _add_step(score_IE[i, first_last:], score_IE[i, third], cost_L, new_L, gain_L)
        stay_X, stay = stay_RX[r2], 0
        for edge in range(len(entered_X)):
            stay += entered_X[edge]
            stay_X[edge] += stay
        stop = limit_columns(lanes, left_2, images, stay_X, limit_2X)
        if stop == 0:
            continue
        need = bound.need - base_R[row]
        need_columns(need, bound.slope, path_3, delay, left_2, images, stay_X, need_X)
        groups = (stop + 1) // 2
        if several:
            sum_2GL = sum_R2GL[r2]
            for group in range(groups):
                _add(new_GL[group], sum_2GL[0, group])
                _add(gain_GL[group], sum_2GL[1, group])
        else:
            sum_2GL = new_2GL
        _fill_tops(sum_2GL, groups, own_2L, limit_2X, need_X, run_L, top_GL)
        some_R[row] = mark(norms, last_L, start_P, share, rounding, row, groups, top_GL, reach_GL)
    return last_L[_any_group(reach_GL)], some_R


@njit(cache=True, nogil=True)
def _no_steps(groups, lanes, early):
    summed = groups if early.rows1 > 1 else 0
    return _Steps(
        np.zeros((2, groups, lanes), dtype=np.float32),
        np.zeros(2 * groups, dtype=np.int64),
        np.zeros((early.rows2, 2, summed, lanes), dtype=np.float32),
        np.zeros((early.rows2, 2 * groups), dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def _edges(deepest, width):
    """The first edge from which on an image stays; behind all where it stays at no column."""
    edge_I = np.empty(len(deepest.bin_I), dtype=np.int64)
    for i in range(len(edge_I)):
        t = deepest.bin_I[i]
        edge_I[i] = 2 * (t // width) + (t % width > 0)
        if t >= deepest.columns:
            edge_I[i] = 2 * deepest.columns
    return edge_I


@njit(cache=True, nogil=True)
def _add_step(score_L, base, cost_L, new_L, gain_L):
    zero = np.float32(0)
    # All of arrays from their starts: otherwise lanes are looked at one by one.
    for lane in range(len(cost_L)):
        step = score_L[lane] - base - cost_L[lane]
        new_L[lane] += step
        gain_L[lane] += max(step, zero)


@njit(cache=True, nogil=True)
def _add(new_L, sum_L):
    for lane in range(len(sum_L)):
        sum_L[lane] += new_L[lane]


@njit(cache=True, nogil=True)
def _fill_tops(sum_2GL, groups, own_2L, limit_2X, need_X, run_L, top_GL):
    """The most that a row's groups of columns may have, less what they need at least."""
    run_L[:] = 0
    for group in range(groups):
        a, b = 2 * group, 2 * group + 1
        limit_2 = (max(limit_2X[0, a], limit_2X[0, b]), max(limit_2X[1, a], limit_2X[1, b]))
        need = min(need_X[a], need_X[b])
        _top(sum_2GL[0, group], sum_2GL[1, group], own_2L, limit_2, need, run_L, top_GL[group])


@njit(cache=True, nogil=True)
def _top(new_L, gain_L, own_2L, limit_2, need, run_L, top_L):
    limit0, limit1 = limit_2
    for lane in range(len(run_L)):
        value = run_L[lane] + gain_L[lane] - need
        run_L[lane] += new_L[lane]
        fits = (own_2L[0, lane] <= limit0) & (own_2L[1, lane] <= limit1)
        top_L[lane] = value if fits else np.float32(-np.inf)


@njit(cache=True, nogil=True)
def _any_group(reach_GL):
    any_L = np.zeros(reach_GL.shape[1], dtype=np.bool_)
    for group in range(len(reach_GL)):
        any_L |= reach_GL[group]
    return any_L
