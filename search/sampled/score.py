"""How good a sampled configuration is, by the plain definition."""

from __future__ import annotations

from typing import NamedTuple

from mess.search.problem.definition import Configuration, Evaluation
from mess.search.problem.goal import Goal, Rank, miou_steps


class Score(NamedTuple):
    """How good a configuration is: less is better, `violation` first and then `rank`.

    violation: sum of what is positive in `excess`; 0 where all limits are kept.
    cost, quality: as the front has them.
    excess: what breaks or keeps each limit, as a share of it, above 0 where it is broken.
    """

    violation: float
    rank: Rank
    cost: int
    quality: int
    excess: dict[str, float]


def score_of(goal: Goal, configuration: Configuration, order: int) -> Score:
    """The score of a configuration; `order` is the last part of its rank."""
    evaluation = goal.evaluate(configuration)
    quality = goal.quality_steps(evaluation)
    excess = _excess(goal, evaluation)
    return Score(
        violation=sum(over for over in excess.values() if over > 0),
        rank=goal.rank(evaluation.totals, quality, order),
        cost=evaluation.totals[goal.front_metric],
        quality=quality,
        excess=excess,
    )


def _excess(goal: Goal, evaluation: Evaluation) -> dict[str, float]:
    # Shares of the limits, so that picoseconds and MACs weigh alike where a sampler adds them up.
    over = {
        metric: (evaluation.totals[metric] - limit, limit) for metric, limit in goal.limits.items()
    }
    if goal.miou_limit >= 0:
        over["accuracy"] = (goal.miou_limit - miou_steps(evaluation.miou), goal.miou_limit)
    for index, got in enumerate(goal.delivered(evaluation)):
        wanted = goal.checkpoints[index].miou
        over[f"checkpoint-{index}"] = (wanted - miou_steps(got), wanted)
    # An mIoU that is asked for may be 0.
    return {name: steps / max(limit, 1) for name, (steps, limit) in over.items()}
