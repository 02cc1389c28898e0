"""What no configuration can beat: the proven gap of a search that was interrupted.

The bound lets every image leave at any exit, wherever its signal would send it, at what the exit
costs alone. It is far weaker than a finished search.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mess.search.problem.costs import LATENCY, PARAMS
from mess.search.problem.goal import MIOU_STEPS, Goal
from mess.search.problem.request import ACCURACY
from mess.search.problem.tables import Tables

_PRICES = 60
"""Prices of accuracy that are tried, each a valid bound."""


def gap(goal: Goal, objective: int) -> float:
    """How far a configuration with `objective` (see `Rank`) may be from the best one.

    A share of its cost; for target accuracy mIoU (in the anytime setting the sum over the
    checkpoints).
    """
    if goal.request.target == ACCURACY:
        return max(0.0, highest_miou(goal) + objective / MIOU_STEPS)
    return float(max(0.0, 1 - lowest_cost(goal) / objective)) if objective else 0.0


def highest_miou(goal: Goal) -> float:
    """An upper bound of what is maximised, in mIoU."""
    bound = min(1.0, float(_scores(goal.tables).max(axis=0).sum()))
    return bound * max(1, len(goal.checkpoints))


def lowest_cost(goal: Goal) -> float:
    """A lower bound of the target's total over the images, in whole steps."""
    tables, target = goal.tables, goal.request.target
    ticks = goal.ticks[target]
    answering = goal.setting.answering(tables)
    alone = np.array([ticks.deliveries([exit_])[0] for exit_ in answering], dtype=float)
    cheapest = float(alone.min() * tables.images)
    if target == PARAMS or (target == LATENCY and goal.request.latency_stat == "p90"):
        return cheapest
    scores, least = _scores(tables)[answering], goal.miou_limit / MIOU_STEPS
    scale = (alone.max() - alone.min()) * tables.images
    return max(
        cheapest,
        *(
            price * least + float((alone[:, None] - price * scores).min(axis=0).sum())
            for price in scale * np.geomspace(1e-2, 1e2, _PRICES)
        ),
    )


def _scores(tables: Tables) -> NDArray[np.float64]:
    """Shape (E, I): their sum over the answers is at least the mIoU of any configuration.

    Each class counts with the least union that any exits could give it.
    """
    label = tables.label.sum(axis=0, dtype=np.int64)
    labelled = label > 0
    extra = (tables.predicted - tables.intersection)[:, :, labelled]
    least = label[labelled] + extra.min(axis=0).sum(axis=0, dtype=np.int64)
    return tables.intersection[:, :, labelled] @ (1 / least) / len(least)
