"""The Pareto front of cost and mIoU, and what the front of a whole space proves about a goal."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from mess.search.problem.definition import Configuration
from mess.search.problem.goal import Goal
from mess.search.problem.request import ACCURACY

Payload = TypeVar("Payload")


class FrontPoint(NamedTuple, Generic[Payload]):
    """A non-dominated candidate: no other one costs no more and is at least as accurate.

    cost and miou are whole numbers (see `mess.search.problem.goal`); `order` breaks exact ties, the
    smaller wins.
    """

    cost: int
    miou: int
    order: int
    payload: Payload


class Front(Generic[Payload]):
    """Non-dominated candidates, by rising cost and strictly rising mIoU.

    The content does not depend on the order of insertion: of candidates with the same cost and mIoU
    the one with the smallest order stays, and no two have the same order.
    """

    def __init__(self) -> None:
        self._points: list[FrontPoint[Payload]] = []
        self._costs: list[int] = []

    def __len__(self) -> int:
        return len(self._points)

    @property
    def points(self) -> tuple[FrontPoint[Payload], ...]:
        """The front, cheapest first."""
        return tuple(self._points)

    def insert(self, point: FrontPoint[Payload]) -> bool:
        """Add a candidate and drop what it dominates; whether it is on the front now."""
        # mIoU rises along the front: of what costs no more the last one is the most accurate.
        at = bisect_right(self._costs, point.cost)
        if at:
            rival = self._points[at - 1]
            if rival.miou > point.miou or (rival.miou == point.miou and rival.cost < point.cost):
                return False
            if (rival.cost, rival.miou) == point[:2] and rival.order <= point.order:
                return False
        start = bisect_left(self._costs, point.cost)
        stop = start
        while stop < len(self._points) and self._points[stop].miou <= point.miou:
            stop += 1
        self._points[start:stop] = [point]
        self._costs[start:stop] = [point.cost]
        return True


Point: TypeAlias = FrontPoint[Configuration]


def relaxed_optimum(goal: Goal, front: Sequence[Point]) -> Point | None:
    """The optimum where only those limits of the goal count that a front shows by itself.

    They are the mIoU where `goal.front_metric` is minimised, and the cost in that metric where
    accuracy is maximised. No configuration that keeps all limits is better. None where no
    configuration keeps these, so that the goal is infeasible.

    Why a front settles this: of all configurations with at least some mIoU take the one that ranks
    first. Whatever dominated it would have that mIoU too and rank before it, so it is on the front.
    Every cheaper point misses the mIoU, so it is the first that reaches it. With cost and mIoU
    changed round the same holds for a limit on cost. Several checkpoints are met only if their sum
    is, which is the mIoU of a front's points.
    """
    if goal.request.target == ACCURACY:
        limit = goal.limits.get(goal.front_metric)
        affordable = [point for point in front if limit is None or point.cost <= limit]
        return affordable[-1] if affordable else None
    least = sum(point.miou for point in goal.checkpoints) if goal.checkpoints else goal.miou_limit
    return next((point for point in front if point.miou >= least), None)


def proven_optimum(goal: Goal, front: Sequence[Point]) -> Point | None:
    """The optimum of the goal, where the front proves it: the relaxed one keeps all limits.

    Fewer limits admit more, so an optimum of the relaxed goal that keeps all of them is the goal's.
    The tie rule agrees: of configurations with the same cost and mIoU a front holds the one with
    the smallest order, which is what ranks first among them. None where the goal is infeasible, or
    where only a search can tell.
    """
    point = relaxed_optimum(goal, front)
    return point if point and goal.meets(goal.evaluate(point.payload)) else None
