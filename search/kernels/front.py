"""The best candidate and the front while a kernel runs, compiled.

`best` holds objective, tie and code (see `Rank`). A front is the first `size` entries of arrays by
rising cost and strictly rising mIoU, as in `mess.search.problem.front`; `fresh_F` tells what is new
since the kernel started. They are passed one by one: a loop that carries them along as a tuple
counts references to all of them at every step, and takes a quarter longer.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def keep_best(aim, cost, front_cost, miou, code, best):
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
def advances(cost_F, miou_F, code_F, size, cost, miou, code):
    """Whether a candidate belongs on the front."""
    at = np.searchsorted(cost_F[:size], cost, side="right") - 1
    if at < 0 or miou_F[at] < miou:
        return True
    return miou_F[at] == miou and cost_F[at] == cost and code < code_F[at]


@njit(cache=True, nogil=True)
def insert(cost_F, miou_F, code_F, fresh_F, size, cost, miou, code):
    """The front with a candidate that `advances`, without what it dominates; arrays grow."""
    start = np.searchsorted(cost_F[:size], cost, side="left")
    stop = start
    while stop < size and miou_F[stop] <= miou:
        stop += 1
    grown = size + 1 - (stop - start)
    if grown > len(cost_F):
        capacity = 2 * grown + 64
        cost_F, miou_F = _enlarged(cost_F, capacity), _enlarged(miou_F, capacity)
        code_F, fresh_F = _enlarged(code_F, capacity), _enlarged(fresh_F, capacity)
    # Copies, as source and target overlap. numba loops over a tuple of one type only: no `fresh_F`.
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
