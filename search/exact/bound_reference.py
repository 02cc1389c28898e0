"""Around which configuration the bound of `mess.search.kernels.bound` is put, and what it asks for.

The bound holds around any reference, and is tight near it. For the best configuration the reference
is the best one so far; for the front it is the middle of each band of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from mess.search.exact.kernel_inputs import ByDepth
from mess.search.kernels.arrays import EPSILON, MEAN, Bound
from mess.search.kernels.bound import MARGIN
from mess.search.kernels.second_order import GROUPS, fill_free_norms
from mess.search.problem.definition import Configuration
from mess.search.problem.findings import NOTHING
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import MIOU_STEPS, Goal
from mess.search.problem.thresholds import Thresholds

BANDS = 8
"""Pieces of the front, each with a reference of its own."""


def bound_around(
    goal: Goal, by_depth: ByDepth, steps: Thresholds, reference: Configuration, pool: Executor
) -> Bound:
    """The bound around what `reference` answers, for early exits with the thresholds of `steps`.

    It asks for nothing yet: `need` and `slope` are 0.
    """
    answer = np.asarray([choice.exit for choice in reference])[goal.evaluate(reference).answer]
    # `argsort` of a permutation is its inverse: the place by depth of an exit of the tables.
    position = np.argsort(by_depth.order_E)[answer]
    images = np.arange(goal.tables.images)
    counts, exits = by_depth.counts, by_depth.exits(steps)
    # Single precision would no longer be exact once a class has more than 2^24 pixels in the split.
    hits0 = counts.hits_EIC[position, images].sum(axis=0, dtype=np.float64)
    extra0 = counts.extra_EIC[position, images].sum(axis=0, dtype=np.float64)
    union0 = by_depth.label_C + extra0
    iou0 = hits0 / union0
    gain, loss = 1 / union0, iou0 / union0
    score = by_depth.share * (counts.hits_EIC @ gain - counts.extra_EIC @ loss)
    free_shape = (*steps.number.shape, 2, 4, GROUPS)
    bound = Bound(
        score_IE=np.ascontiguousarray(score.T, dtype=np.float32),
        gain_C=gain,
        loss_C=loss,
        above_C=gain,
        below_C=1 / by_depth.least_C,
        hits0_C=hits0,
        extra0_C=extra0,
        share=by_depth.share,
        free_EK24GE=np.zeros((*free_shape, goal.tables.exits), dtype=np.float32),
        most_free_EK24GN=np.zeros((*free_shape, goal.tables.points), dtype=np.float32),
        # The sum over the classes of iou0 - iou0 * label / union0.
        offset=float(by_depth.share * (iou0 * extra0 / union0).sum()),
        need=0.0,
        slope=0.0,
        front=goal.metrics.index(goal.front_metric),
        rounding=_rounding(goal, steps, float(np.abs(score).sum(axis=1).max())),
    )
    # Threads write to parts of their own. `list` waits, and raises what any of them raised.
    list(pool.map(lambda exit_: fill_free_norms(counts, bound, exits, exit_), range(len(score))))
    return bound


def reaching(bound: Bound, miou: int) -> Bound:
    """The bound for configurations of at least `miou` (in steps)."""
    return bound._replace(need=miou / MIOU_STEPS - MARGIN - bound.offset)


def along(bound: Bound, band: Band, goal: Goal, steps: Thresholds) -> Bound:
    """The bound for configurations that are not behind the front in `band`."""
    ticks = goal.ticks[goal.front_metric]
    dearest = float((ticks.backbone + ticks.exit + ticks.answer).max()) * goal.tables.images
    # A slope adds what the last exit costs to every sum of scores.
    rounding = bound.rounding + _rounding(goal, steps, band.slope * dearest)
    return bound._replace(need=band.need - bound.offset, slope=band.slope, rounding=rounding)


def _rounding(goal: Goal, steps: Thresholds, size: float) -> float:
    """What sums in single precision may lose, if the sizes of an exit's terms add up to `size`.

    A sum of n terms loses at most n * (EPSILON / 2) times the sum of their sizes. A term is the
    difference of two exits' scores, and goes through a sum over the images, the columns, and the
    thresholds of either earlier exit. That is EPSILON * terms * size; twice that covers what is
    rounded before and after.
    """
    terms = goal.tables.images + 3 * int(steps.number.max())
    return 2 * EPSILON * terms * size


class Band(NamedTuple):
    """A piece of the front: what matters costs `limit` at most, miou - slope * cost >= need."""

    reference: Configuration
    need: float
    slope: float
    limit: int


def bands(points: tuple[FrontPoint[Configuration], ...], kind: int) -> Iterator[Band]:
    """Bands that together hold every configuration that is not behind the front of `points`.

    No configuration costs less than the cheapest exit alone, which is on the front. So let the
    point p be the last that costs no more than a configuration; not to be behind it, the
    configuration is at least as accurate as p. If p is the end of the front, the first band holds
    it. Otherwise it costs less than the point q after p, so that with slope >= 0

        miou - slope * cost >= miou of p - slope * cost of q,

    and `need` is the least of that over neighbours p and q of the band. Bands share their ends, so
    every two neighbours are in one of them.
    """
    last = points[-1]
    yield Band(last.payload, last.miou / MIOU_STEPS - MARGIN, 0.0, NOTHING)
    edges = np.linspace(points[0].miou, last.miou, BANDS + 1)
    start = 0
    for edge in edges[1:]:
        stop = start
        while stop < len(points) - 1 and points[stop].miou < edge:
            stop += 1
        # The band before reaches past this edge already.
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
