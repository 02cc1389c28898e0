"""What a search has found so far: the best candidate, the front and the counts.

Kernels know no configurations: they see the best and the front as whole numbers, and give back what
they found as such, which is decoded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.problem.definition import Configuration
from mess.search.problem.front import Front, FrontPoint
from mess.search.problem.goal import Rank

NOTHING = 2**62
"""Larger than any rank: what a kernel is told when nothing has been found."""

Arrays = NDArray[np.int64]


class Scan(NamedTuple):
    """What a kernel returns: its best rank, counts, and the points that are new to the front.

    evaluated: configurations whose mIoU was computed; pruned: ruled out by their cost alone;
    bounded: ruled out by a bound on the mIoU of many at once.
    """

    best: NDArray[np.int64]
    evaluated: int
    pruned: int
    bounded: int
    cost: NDArray[np.int64]
    miou: NDArray[np.int64]
    code: NDArray[np.int64]


class Findings:
    """The best candidate and the front, in Python; kernels see both as arrays.

    evaluated, pruned, bounded: configurations, as in `Scan`. proven: whether every configuration
    has been covered, so that `best` is the best; front_proven: whether the front is that of all.

    A kernel numbers its own configurations by `code`. Orders are `offset + code`, so that searches
    with fewer exits, which have smaller offsets, win ties.
    """

    def __init__(self) -> None:
        self.best: tuple[Rank, Configuration] | None = None
        self.front: Front[Configuration] = Front()
        self.evaluated = 0
        self.pruned = 0
        self.bounded = 0
        self.proven = False
        self.front_proven = False

    def offer(self, rank: Rank, configuration: Configuration) -> None:
        """Keep a candidate that meets all constraints if it is the best so far."""
        if self.best is None or rank < self.best[0]:
            self.best = (rank, configuration)

    def best_array(self, offset: int) -> NDArray[np.int64]:
        """Objective, tie and code of the best candidate."""
        if self.best is None:
            return np.full(3, NOTHING, dtype=np.int64)
        objective, tie, order = self.best[0]
        return np.array([objective, tie, _code(order, offset)], dtype=np.int64)

    def front_arrays(self, offset: int) -> tuple[Arrays, Arrays, Arrays]:
        """Costs, mIoUs and codes along the front."""
        rows = [(p.cost, p.miou, _code(p.order, offset)) for p in self.front.points]
        # A copy: kernels are compiled for arrays without gaps.
        cost, miou, code = np.array(rows, dtype=np.int64).reshape(-1, 3).T.copy()
        return cost, miou, code

    def merge(
        self,
        scans: Sequence[Scan],
        offset: int,
        decode: Callable[[int], Configuration],
        count: bool = True,
    ) -> None:
        """Take over what kernels found, and `count` their configurations."""
        for scan in scans:
            if count:
                self.evaluated += int(scan.evaluated)
                self.pruned += int(scan.pruned)
                self.bounded += int(scan.bounded)
            objective, tie, code = (int(value) for value in scan.best)
            # Otherwise it is what the kernel was given: nothing, or the best of a search with other
            # exits.
            if code not in (-1, NOTHING):
                self.offer(Rank(objective, tie, offset + code), decode(code))
        # To decode takes longer than to find, and most of what one kernel found another one beats.
        for cost, miou, code in _front_of(scans).tolist():
            self.front.insert(FrontPoint(cost, miou, offset + code, decode(code)))


def _front_of(scans: Sequence[Scan]) -> Arrays:
    """Cost, mIoU and code of what no other point of these scans beats, shape (points, 3)."""
    points = np.concatenate([np.stack([scan.cost, scan.miou, scan.code], axis=1) for scan in scans])
    points = points[np.lexsort((points[:, 2], -points[:, 1], points[:, 0]))]
    least = np.maximum.accumulate(np.append(-1, points[:-1, 1]))[: len(points)]
    return points[points[:, 1] > least]


def _code(order: int, offset: int) -> int:
    """What compares with a kernel's codes as `order` does: NOTHING where there are more exits."""
    return min(max(order - offset, -1), NOTHING)
