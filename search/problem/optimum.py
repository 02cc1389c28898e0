"""What the front of a whole space proves about a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from mess.search.problem.evaluate import Configuration, Evaluation
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import Goal, miou_steps
from mess.search.problem.request import ACCURACY

Point: TypeAlias = FrontPoint[Configuration]


def quality_steps(goal: Goal, evaluation: Evaluation) -> int:
    """The mIoU that is maximised, in whole steps; anytime the sum over the checkpoints.

    The `miou` of a front's points is the same number.
    """
    delivered = goal.delivered(evaluation)
    return sum(map(miou_steps, delivered)) if delivered else miou_steps(evaluation.miou)


def objective(goal: Goal, evaluation: Evaluation) -> int:
    """What the goal minimises, in whole steps: a cost, or minus the mIoU."""
    if goal.request.target == ACCURACY:
        return -quality_steps(goal, evaluation)
    return evaluation.totals[goal.request.target]


def meets(goal: Goal, evaluation: Evaluation) -> bool:
    """Whether a configuration keeps every limit of the goal."""
    delivered = map(miou_steps, goal.delivered(evaluation))
    return (
        goal.affordable(evaluation.totals)
        and miou_steps(evaluation.miou) >= goal.miou_limit
        and all(got >= point.miou for got, point in zip(delivered, goal.checkpoints, strict=True))
    )


def bound(goal: Goal, front: Sequence[Point]) -> Point | None:
    """The optimum where only those limits of the goal count that a front shows by itself.

    They are the mIoU where `goal.front_metric` is minimised, and the cost in that metric where
    accuracy is maximised. No configuration that keeps all limits is better. None where no
    configuration keeps these, so that the goal is infeasible.
    """
    if goal.request.target == ACCURACY:
        limit = goal.limits.get(goal.front_metric)
        affordable = [point for point in front if limit is None or point.cost <= limit]
        return affordable[-1] if affordable else None
    least = sum(point.miou for point in goal.checkpoints) if goal.checkpoints else goal.miou_limit
    return next((point for point in front if point.miou >= least), None)


def optimum(goal: Goal, front: Sequence[Point]) -> Point | None:
    """The optimum of the goal, where the front proves it: its bound keeps the other limits too.

    The tie rule agrees: of equally good configurations a front holds the one that ranks first. None
    where the goal is infeasible, or where only a search can tell.
    """
    point = bound(goal, front)
    return point if point and meets(goal, goal.evaluate(point.payload)) else None
