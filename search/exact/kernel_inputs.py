"""A goal as the arrays that the compiled kernels read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.kernels.arrays import (
    MEAN,
    NOBODY,
    P90,
    STORED,
    Aim,
    Exits,
    Prices,
    Slots,
)
from mess.search.problem.costs import LATENCY, PARAMS
from mess.search.problem.findings import NOTHING, Arrays
from mess.search.problem.goal import Goal
from mess.search.problem.request import ACCURACY
from mess.search.problem.tables import Tables
from mess.search.problem.thresholds import Thresholds


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
        # A limit that was asked for may be larger than 64 bits hold.
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


class ByDepth(NamedTuple):
    """The tables as the kernels read them: exits by rising point.

    order_E: the exit's index in the tables; point_E: its point, from 0; after_E: the first exit
        behind that point.
    least_C: a lower bound of a labelled class's union in any configuration.
    share: 1 / least number of classes that count in the mIoU of any configuration.
    """

    order_E: NDArray[np.int64]
    point_E: NDArray[np.int64]
    after_E: NDArray[np.int64]
    slots: Slots
    least_C: NDArray[np.float64]
    share: float

    @classmethod
    def of(cls, tables: Tables) -> ByDepth:
        """The tables, sorted."""
        order = np.argsort(tables.point, kind="stable")
        point = tables.point[order]
        label = tables.label.sum(axis=0, dtype=np.int64)
        labelled = label > 0
        # A class without labels counts where something is predicted as it, whoever answers.
        stray = tables.predicted[:, :, ~labelled].min(axis=0) > 0
        return cls(
            order_E=order,
            point_E=np.asarray(point - 1, dtype=np.int64),
            after_E=np.searchsorted(point, point, side="right"),
            slots=_slots(tables, order, label),
            least_C=tables.least_union[labelled].astype(np.float64),
            share=1.0 / (int(labelled.sum()) + int(stray.any(axis=0).sum())),
        )

    def sorted_prices(self, prices: Prices) -> Prices:
        """The same prices with exits by rising point."""
        return prices._replace(
            backbone_ME=np.ascontiguousarray(prices.backbone_ME[:, self.order_E]),
            exit_ME=np.ascontiguousarray(prices.exit_ME[:, self.order_E]),
            signal_MEK=np.ascontiguousarray(prices.signal_MEK[:, self.order_E]),
            answer_ME=np.ascontiguousarray(prices.answer_ME[:, self.order_E]),
            resume_ME=np.ascontiguousarray(prices.resume_ME[:, self.order_E]),
        )

    def exits(self, steps: Thresholds) -> Exits:
        """The exits with their thresholds."""
        return Exits(
            bins_EKI=np.ascontiguousarray(steps.bins[self.order_E]),
            number_EK=np.ascontiguousarray(steps.number[self.order_E]),
            point_E=self.point_E,
            after_E=self.after_E,
        )

    def original(self, rows_Q: Arrays) -> Arrays:
        """Rows of `rows_that_matter` with exits as the tables number them."""
        # NOBODY is -1 and reads the last element.
        index = np.append(self.order_E, NOBODY)
        rows = rows_Q.copy()
        for column in (0, 3, 6, 10):
            rows[:, column] = index[rows[:, column]]
        return rows


def _slots(tables: Tables, order_E: Arrays, label_C: Arrays) -> Slots:
    order_C = np.argsort(label_C == 0, kind="stable")
    image_S, class_S = np.nonzero(np.any(tables.predicted, axis=0)[:, order_C])
    column_S = order_C[class_S]
    hits_SE = np.empty((len(class_S), tables.exits), dtype=np.float32)
    extra_SE = np.empty_like(hits_SE)
    # One exit at a time: arrays of all in the tables' order would double the memory.
    for position, exit_ in enumerate(order_E):
        hits_SE[:, position] = tables.intersection[exit_, image_S, column_S]
        extra_SE[:, position] = tables.predicted[exit_, image_S, column_S]
    extra_SE -= hits_SE
    return Slots(
        start_I=np.searchsorted(image_S, np.arange(tables.images + 1)),
        # A view of every second number else, which kernels would be compiled for once more.
        class_S=np.ascontiguousarray(class_S),
        hits_SE=hits_SE,
        extra_SE=extra_SE,
        label_C=label_C[order_C].astype(np.float64),
        labelled=int((label_C > 0).sum()),
        column_C=order_C,
    )
