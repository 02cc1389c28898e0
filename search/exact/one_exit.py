"""One exit answers every image: a scan of the exits (MESS paper, Table 1)."""

from __future__ import annotations

from collections.abc import Iterable

from mess.search.problem.definition import Choice
from mess.search.problem.findings import Findings
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import Goal, miou_steps


def search_single(goal: Goal, found: Findings, exits: Iterable[int]) -> None:
    """Every one of `exits` alone: the budgeted setting, or with those at point N the final-only."""
    for exit_ in exits:
        configuration = (Choice(exit_),)
        evaluation = goal.evaluate(configuration)
        miou = miou_steps(evaluation.miou)
        found.evaluated += 1
        if miou >= goal.miou_limit and goal.affordable(evaluation.totals):
            found.offer(goal.rank(evaluation.totals, miou, exit_), configuration)
        found.front.insert(
            FrontPoint(evaluation.totals[goal.front_metric], miou, exit_, configuration)
        )
