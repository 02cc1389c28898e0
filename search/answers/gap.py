"""What no configuration can beat: the proven gap of a search that was interrupted.

The bounds relax the problem image by image: each image may be answered by any exit, wherever its
signal would send it, at what that exit costs alone. They hold for every setting and take no search,
and are far weaker than a finished one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mess.search.problem.costs import LATENCY, PARAMS
from mess.search.problem.goal import MIOU_STEPS, Goal
from mess.search.problem.request import ACCURACY
from mess.search.problem.tables import Tables

_PRICES = np.geomspace(1e-2, 1e2, 60)
"""Prices of the whole mIoU, as shares of what separates the dearest exit from the cheapest."""


def gap(goal: Goal, objective: int) -> float:
    """How far a configuration with `objective` (see `Rank`) may be from the best one.

    A share of its cost; for target accuracy mIoU (in the anytime setting the sum over the
    checkpoints).
    """
    if goal.request.target == ACCURACY:
        # The objective is minus the mIoU.
        return max(0.0, highest_miou(goal) + objective / MIOU_STEPS)
    return float(max(0.0, 1 - lowest_cost(goal) / objective)) if objective else 0.0


def highest_miou(goal: Goal) -> float:
    """An upper bound of what is maximised, in mIoU: every image has the exit that scores best."""
    bound = min(1.0, float(_scores(goal.tables).max(axis=0).sum()))
    return bound * max(1, len(goal.checkpoints))


def lowest_cost(goal: Goal) -> float:
    """A lower bound of the target's total over the images, in whole steps.

    An image pays at least what its answering exit costs alone, so nothing is below the cheapest
    exit. Means are sums over the images, where the accuracy asked for can be priced in (weak
    Lagrangian duality): with c_i and s_i the cost and the score (`_scores`) of image i's answer,
    any configuration that reaches an mIoU of m has sum(s_i) >= m, so for every price p >= 0

        sum(c_i) >= sum(c_i - p s_i) + p m >= sum_i(min over exits of (c - p s)) + p m.

    Each price gives a valid bound, and the largest of some is taken.
    """
    tables, target = goal.tables, goal.request.target
    answering, ticks = goal.setting.answering(tables), goal.ticks[target]
    cost_E = np.array([ticks.deliveries([exit_])[0] for exit_ in answering], dtype=float)
    cheapest = float(cost_E.min() * tables.images)
    if target == PARAMS or (target == LATENCY and goal.request.latency_stat == "p90"):
        return cheapest
    score_EI, least = _scores(tables)[answering], goal.miou_limit / MIOU_STEPS
    prices = (cost_E.max() - cost_E.min()) * tables.images * _PRICES
    priced = [
        price * least + float((cost_E[:, None] - price * score_EI).min(axis=0).sum())
        for price in prices
    ]
    return max(cheapest, *priced)


def _scores(tables: Tables) -> NDArray[np.float64]:
    """Shape (E, I): their sum over the answers is at least the mIoU of any configuration.

    The IoU of a class is its hits, a sum over the images, by its union, which is not one. The union
    is the class's labels and what is wrongly predicted as it; with the least of that on every image
    it is too small, so that the ratio is too large, and a sum over the images. Classes without
    labels have no hits: where they count at all they lower the mean, so they are left out of it.
    """
    labelled = tables.label.any(axis=0)
    least = tables.least_union[labelled]
    return tables.intersection[:, :, labelled] @ (1 / least) / len(least)
