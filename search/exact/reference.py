"""Where the bound of `mess.search.kernels.bound` is put, and what a configuration must reach."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.kernels.arrays import EPSILON, GROUPS, MARGIN, MEAN, Counts, Prices, Window
from mess.search.kernels.second_order import spreads
from mess.search.problem.evaluate import Configuration
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import MIOU_STEPS, Goal
from mess.search.problem.ladder import Ladder
from mess.search.problem.progress import NOTHING, Arrays
from mess.search.problem.tables import Tables

BANDS = 8
"""Pieces of the front, each with a reference of its own."""


class Frame(NamedTuple):
    """What the screen reads, exits by rising point.

    order_E: the exit's index in the tables; point_E: its point, from 0; after_E: the first exit
        behind that point.
    label_C: labelled pixels of the classes that have any; share: 1 / least number of classes that
        count in the mIoU of any configuration.
    least_C: a lower bound of a class's union in any configuration.
    """

    order_E: NDArray[np.int64]
    point_E: NDArray[np.int64]
    after_E: NDArray[np.int64]
    counts: Counts
    label_C: NDArray[np.float64]
    least_C: NDArray[np.float64]
    share: float

    @classmethod
    def of(cls, tables: Tables) -> Frame:
        """The tables, sorted."""
        order = np.argsort(tables.point, kind="stable")
        point = tables.point[order]
        label = tables.label.sum(axis=0, dtype=np.int64)
        labelled = label > 0
        hits = tables.intersection[order][:, :, labelled]
        extra = tables.predicted[order][:, :, labelled] - hits
        # A class without labels counts where something is predicted as it, whoever answers.
        stray = tables.predicted[:, :, ~labelled].min(axis=0) > 0
        return cls(
            order_E=order,
            point_E=np.asarray(point - 1, dtype=np.int64),
            after_E=np.searchsorted(point, point, side="right"),
            counts=Counts(
                np.ascontiguousarray(hits, dtype=np.float32),
                np.ascontiguousarray(extra, dtype=np.float32),
            ),
            label_C=label[labelled].astype(np.float64),
            least_C=label[labelled] + extra.min(axis=0).sum(axis=0, dtype=np.float64),
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

    def sorted_ladder(self, steps: Ladder) -> tuple[NDArray[np.int32], Arrays]:
        """Bins and numbers of thresholds with exits by rising point."""
        return (
            np.ascontiguousarray(steps.bins[self.order_E]),
            np.ascontiguousarray(steps.number[self.order_E]),
        )

    def original(self, rows_Q: Arrays) -> Arrays:
        """Rows of the screen with exits as the tables number them."""
        index = np.append(self.order_E, -1)
        rows = rows_Q.copy()
        for column in (0, 3, 6, 10):
            rows[:, column] = index[rows[:, column]]
        return rows


def window(
    goal: Goal, frame: Frame, steps: Ladder, reference: Configuration, pool: Executor
) -> Window:
    """The bound around what `reference` answers, for early exits with the thresholds of `steps`.

    It asks for nothing yet: `need` and `slope` are 0.
    """
    answer = np.asarray([choice.exit for choice in reference])[goal.evaluate(reference).answer]
    position = np.argsort(frame.order_E)[answer]
    images = np.arange(goal.tables.images)
    hits0 = frame.counts.hits_EIC[position, images].sum(axis=0, dtype=np.float64)
    extra0 = frame.counts.extra_EIC[position, images].sum(axis=0, dtype=np.float64)
    union0 = frame.label_C + extra0
    iou0 = hits0 / union0
    gain, loss = (1 / union0).astype(np.float32), (iou0 / union0).astype(np.float32)
    above, below = gain, (1 / frame.least_C).astype(np.float32)
    bins, number = frame.sorted_ladder(steps)
    exits, signals = number.shape
    spread = np.zeros((exits, signals, 2, 4, GROUPS, exits), dtype=np.float32)
    most = np.zeros((exits, signals, 2, 4, GROUPS, goal.tables.points), dtype=np.float32)

    def fill(third: int) -> None:
        weights, first_last = (gain, loss, above, below), frame.after_E[third]
        spreads(
            frame.counts, *weights, bins, number, frame.point_E, first_last, third, spread, most
        )

    list(pool.map(fill, range(exits)))
    score = frame.share * (
        frame.counts.hits_EIC @ (1 / union0) - frame.counts.extra_EIC @ (iou0 / union0)
    )
    return Window(
        score_IE=np.ascontiguousarray(score.T, dtype=np.float32),
        gain_C=gain,
        loss_C=loss,
        above_C=above,
        below_C=below,
        hits0_C=hits0,
        extra0_C=extra0,
        share=frame.share,
        spread_EK24GE=spread,
        most_EK24GN=most,
        offset=float(frame.share * (iou0 * extra0 / union0).sum()),
        need=0.0,
        slope=0.0,
        front=goal.metrics.index(goal.front_metric),
        rounding=_rounding(goal, steps, float(np.abs(score).sum(axis=1).max())),
    )


def reaching(place: Window, miou: int) -> Window:
    """The window for configurations of at least `miou` (in steps)."""
    return place._replace(need=miou / MIOU_STEPS - MARGIN - place.offset)


def along(place: Window, band: Band, goal: Goal, steps: Ladder) -> Window:
    """The window for configurations that are not behind the front in `band`."""
    ticks = goal.ticks[goal.front_metric]
    dearest = float((ticks.backbone + ticks.exit + ticks.answer).max()) * goal.tables.images
    # A slope adds what the last exit costs to every sum of scores.
    rounding = place.rounding + _rounding(goal, steps, band.slope * dearest)
    return place._replace(need=band.need - place.offset, slope=band.slope, rounding=rounding)


def _rounding(goal: Goal, steps: Ladder, size: float) -> float:
    """What sums in single precision may lose, if their terms are at most `size` together."""
    terms = goal.tables.images + 3 * int(steps.number.max())
    return 2 * EPSILON * terms * size


class Band(NamedTuple):
    """A piece of the front: what matters costs `limit` at most, miou - slope * cost >= need."""

    reference: Configuration
    need: float
    slope: float
    limit: int


def bands(points: tuple[FrontPoint[Configuration], ...], kind: int) -> Iterator[Band]:
    """Bands that together hold every configuration that is not behind the front of `points`."""
    last = points[-1]
    yield Band(last.payload, last.miou / MIOU_STEPS - MARGIN, 0.0, NOTHING)
    edges = np.linspace(points[0].miou, last.miou, BANDS + 1)
    start = 0
    for edge in edges[1:]:
        stop = start
        while stop < len(points) - 1 and points[stop].miou < edge:
            stop += 1
        if stop == start:
            continue
        piece = points[start : stop + 1]
        middle = piece[len(piece) // 2].payload
        cost = np.array([point.cost for point in piece], dtype=np.float64)
        miou = np.array([point.miou for point in piece], dtype=np.float64) / MIOU_STEPS
        # Parameters and the 90% path are not sums over the images, which a slope needs.
        slope = float((miou[-1] - miou[0]) / (cost[-1] - cost[0])) if kind == MEAN else 0.0
        need = float((miou[:-1] - slope * cost[1:]).min())
        yield Band(middle, need - MARGIN, slope, piece[-1].cost)
        start = stop
