"""A goal as the arrays that the compiled kernels read."""

from __future__ import annotations

import numpy as np

from mess.search.kernels.arrays import MEAN, P90, STORED, Aim, Pixels, Prices
from mess.search.problem.costs import LATENCY, PARAMS
from mess.search.problem.goal import Goal
from mess.search.problem.progress import NOTHING
from mess.search.problem.request import ACCURACY
from mess.search.problem.tables import Tables


def pack_pixels(tables: Tables) -> Pixels:
    """Counts for the kernels, classes that have labels first."""
    label = tables.label.sum(axis=0, dtype=np.int64)
    order = np.argsort(label == 0, kind="stable")
    # Indexing may leave the classes outermost; kernels are compiled once, for C order.
    hits = np.ascontiguousarray(tables.intersection[:, :, order], dtype=np.int32)
    extra = np.ascontiguousarray(tables.predicted[:, :, order], dtype=np.int32) - hits
    return Pixels(hits, extra, label[order].astype(np.float64), int((label > 0).sum()))


def pack_prices(goal: Goal) -> Prices:
    """Costs of the metrics that matter, with their limits."""
    ticks = [goal.ticks[metric] for metric in goal.metrics]
    p90 = goal.request.latency_stat == "p90"
    kinds = {LATENCY: P90 if p90 else MEAN, PARAMS: STORED}
    return Prices(
        backbone_ME=np.stack([cost.backbone for cost in ticks]),
        exit_ME=np.stack([cost.exit for cost in ticks]),
        signal_MEK=np.stack([cost.signal for cost in ticks]),
        answer_ME=np.stack([cost.answer for cost in ticks]),
        resume_ME=np.stack([cost.resume for cost in ticks]),
        kind_M=np.array([kinds.get(metric, MEAN) for metric in goal.metrics]),
        limit_M=np.array(
            [min(goal.limits.get(metric, NOTHING), NOTHING) for metric in goal.metrics]
        ),
    )


def pack_aim(goal: Goal, collect: bool) -> Aim:
    """Target, front and accuracy limit for the kernels."""
    target = goal.request.target
    return Aim(
        target=-1 if target == ACCURACY else goal.metrics.index(target),
        front=goal.metrics.index(goal.front_metric),
        collect=collect,
        miou=goal.miou_limit,
    )
