"""Every choice of early exits of the anytime setting, depth first, compiled.

A choice is turned back from with all that add deeper exits to it, because adding an exit only takes
away: the exits behind it and the end come later by its own cost, and all totals rise by it. So none
of those choices costs less than this one. And no choice at all delivers more than `bound`: by every
checkpoint at most the best mIoU of an exit that is in time if it is alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.kernels.costs import affordable
from mess.search.kernels.front import advances, insert, keep_best


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
    """Deadlines as totals, least mIoU in steps, and a bound on the sum of the delivered mIoUs.

    last_Q: deadlines of the last exit; below 0 where it does not count.
    """

    deadline_Q: NDArray[np.int64]
    last_Q: NDArray[np.int64]
    least_Q: NDArray[np.int64]
    bound: int


@njit(cache=True, nogil=True)
def scan_anytime(early, last, checkpoints, prices, aim, start, depth, radix, best, front):
    """Every choice of at most `depth` early exits that begins with `start`, depth first.

    A code orders choices by number of exits, then lexicographically. `pruned` counts the choices
    at which the search turned back, not the ones behind them. Returns the fields of `Scan`.
    """
    best = best.copy()
    cost_F, miou_F, code_F = front[0].copy(), front[1].copy(), front[2].copy()
    fresh_F, size = np.zeros(len(cost_F), dtype=np.bool_), len(cost_F)
    evaluated, pruned = 0, 0
    # By level, the number of early exits: what the choice that the search is at has come to.
    delay_DM = np.zeros((depth + 1, len(last.path_M)), dtype=np.int64)
    reached_DQ = np.zeros((depth + 1, len(checkpoints.least_Q)), dtype=np.int64)
    code_D = np.zeros(depth + 1, dtype=np.int64)
    cursor_D = np.full(depth + 1, start, dtype=np.int64)
    level = 0
    while level >= 0:
        e = cursor_D[level]
        # A task is the choices that begin with `start`, so level 0 takes that exit alone.
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
        answered = early.reach_E[e] + delay_DM[level, aim.front]
        _deliver(
            checkpoints.deadline_Q,
            answered,
            early.miou_E[e],
            reached_DQ[level - 1],
            reached_DQ[level],
        )
        code_D[level] = code_D[level - 1] * radix + early.index_E[e]
        code = code_D[level] * radix + last.exit + (level + 1) * radix ** (depth + 1)
        cost, delivered_Q = total_M[aim.front], reached_DQ[level].copy()
        _deliver(checkpoints.last_Q, cost, last.miou, reached_DQ[level], delivered_Q)
        miou = delivered_Q.sum()
        if (delivered_Q >= checkpoints.least_Q).all() and affordable(prices, total_M):
            keep_best(aim, total_M[aim.target], cost, miou, code, best)
        if aim.collect and advances(cost_F, miou_F, code_F, size, cost, miou, code):
            cost_F, miou_F, code_F, fresh_F, size = insert(
                cost_F, miou_F, code_F, fresh_F, size, cost, miou, code
            )
        cursor_D[level] = early.after_E[e]
    new = np.flatnonzero(fresh_F[:size])
    return best, evaluated, 0, pruned, cost_F[new], miou_F[new], code_F[new]


@njit(cache=True, nogil=True)
def _deliver(deadline_Q, cost, miou, before_Q, out_Q):
    """Best mIoU at each checkpoint once an exit has delivered `miou` at `cost`."""
    for q in range(len(out_Q)):
        out_Q[q] = before_Q[q]
        if cost <= deadline_Q[q] and miou > before_Q[q]:
            out_Q[q] = miou


@njit(cache=True, nogil=True)
def _choice_matters(prices, aim, bound, total_M, best, cost_F, miou_F, size):
    """Whether a choice or any that adds exits to it could beat the best or reach the front."""
    if aim.collect:
        at = np.searchsorted(cost_F[:size], total_M[aim.front], side="right") - 1
        # `<=`: with the same mIoU and cost the smaller code goes on the front.
        if at < 0 or miou_F[at] <= bound:
            return True
    objective = -bound if aim.target < 0 else total_M[aim.target]
    if objective > best[0]:
        return False
    return affordable(prices, total_M)
