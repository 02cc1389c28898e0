"""The Pareto front of cost and mIoU."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Generic, NamedTuple, TypeVar

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

    The content does not depend on the order of insertion.
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
