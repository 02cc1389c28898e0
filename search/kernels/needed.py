"""What a column of a row needs to matter, and which of its lanes may have it, compiled.

Common to the pass over groups of columns (`mess.search.kernels.coarse`) and to that over single
ones (`mess.search.kernels.bound`), which has the suffixes of array names.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mess.search.kernels.costs import own_path
from mess.search.kernels.second_order import fixed_part, free_parts, second_order


@njit(cache=True, nogil=True)
def lane_costs(bound, prices, last_L):
    """By how much a slope lowers the score of an image that a last exit answers, shape (L,)."""
    cost_L = np.empty(len(last_L), dtype=np.float32)
    for lane in range(len(last_L)):
        cost_L[lane] = bound.slope * own_path(prices, bound.front, last_L[lane])
    return cost_L


@njit(cache=True, nogil=True)
def need_columns(need, slope, path_3, delay, left_2, images, stay_T, need_T):
    """Fill, by column, the score that is needed.

    With a slope that is more by the price of all that is paid, but for the last exit's own path.
    """
    need_T[:] = np.float32(need)
    if slope != 0.0:
        reach3 = images - left_2[0] - left_2[1]
        fixed = left_2[0] * path_3[0] + left_2[1] * path_3[1] + reach3 * path_3[2]
        for t in range(len(stay_T)):
            cost = fixed + stay_T[t] * (delay - path_3[2])
            need_T[t] = np.float32(need + slope * cost)


@njit(cache=True, nogil=True)
def lanes_by_point(last_L, point_E):
    """Where the lanes of each point begin, and the end: they lie together; shape (points + 1,)."""
    start_P = np.empty(len(last_L) + 1, dtype=np.int64)
    points = 0
    for lane in range(len(last_L)):
        if lane == 0 or point_E[last_L[lane]] != point_E[last_L[lane - 1]]:
            start_P[points] = lane
            points += 1
    start_P[points] = len(last_L)
    return start_P[: points + 1]


# Without "ninf": columns that are not affordable are minus infinity.
@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def mark(norms, last_L, start_P, share, rounding, row, groups, top_GL, reach_GL):
    """Mark the lanes that reach what is needed with the most that the second order can add.

    Mostly what it can add at any last exit of a point (`lanes_by_point`) is too little for all of
    them. Returns whether any lane of the row is marked; marks of `reach_GL` that are set stay.
    """
    fixed_4RL, most_fixed_4RN, free_24GE, most_free_24GN, point_E = norms[:5]
    deeper = norms.deeper
    at_deepest_4 = fixed_part(fixed_4RL, row, norms.exit - deeper)
    some = False
    for group in range(groups):
        for p in range(len(start_P) - 1):
            point = point_E[last_L[start_P[p]]]
            free_24 = free_parts(most_free_24GN, group, point)
            # It rises with every norm, so the largest ones of a point give no less than any of its
            # exits.
            slack = second_order(at_deepest_4, fixed_part(most_fixed_4RN, row, point), free_24)
            most = slack * share + rounding
            if not _any_reaches(top_GL[group, start_P[p] : start_P[p + 1]], most):
                continue
            for lane in range(start_P[p], start_P[p + 1]):
                if top_GL[group, lane] + most < 0:
                    continue
                exit_ = last_L[lane]
                fixed_4 = fixed_part(fixed_4RL, row, exit_ - deeper)
                slack = second_order(at_deepest_4, fixed_4, free_parts(free_24GE, group, exit_))
                reaches = top_GL[group, lane] + slack * share + rounding >= 0
                reach_GL[group, lane] |= reaches
                some |= reaches
    return some


@njit(cache=True, nogil=True)
def _any_reaches(top_L, most):
    # Of a slice from its start and by counting: any other way lanes are looked at one by one, which
    # takes seven times as long.
    reach = 0
    for lane in range(len(top_L)):
        reach += top_L[lane] + most >= 0
    return reach > 0
