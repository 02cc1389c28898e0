"""Around which configuration the bound of `mess.search.kernels.bound` is put, and what it asks for.

The bound holds around any reference, and is tight near it. For the best configuration the reference
is the best one so far; for the front it is the middle of each band of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.exact.kernel_inputs import ByDepth
from mess.search.exact.resolution import EXACT, Resolution, hurdles
from mess.search.kernels.arrays import EPSILON, MEAN, Bound, Slots
from mess.search.kernels.bound import MARGIN, scores
from mess.search.kernels.second_order import GROUPS, fill_free_norms
from mess.search.problem.definition import Configuration
from mess.search.problem.findings import NOTHING
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import MIOU_STEPS, Goal
from mess.search.problem.thresholds import Thresholds

BANDS, BANDS_ABOVE = 8, 2
"""Pieces of a front, each with a reference of its own, and of what is above a floor."""


def bound_around(
    goal: Goal,
    by_depth: ByDepth,
    steps: Thresholds,
    reference: Configuration,
    pool: Executor,
    deepest: Sequence[int] | None = None,
) -> Bound:
    """The bound around what `reference` answers, for early exits with the thresholds of `steps`.

    deepest: places by depth of those that may be the deepest early one; None for all.
    It asks for nothing yet: `need` and `slope` are 0.
    """
    answer = np.asarray([choice.exit for choice in reference])[goal.evaluate(reference).answer]
    # `argsort` of a permutation is its inverse: the place by depth of an exit of the tables.
    position = np.argsort(by_depth.order_E)[answer]
    slots, exits = by_depth.slots, by_depth.exits(steps)
    hits0, extra0 = (
        _labelled_sums(slots, counts_SE, position) for counts_SE in (slots.hits_SE, slots.extra_SE)
    )
    union0 = slots.label_C[: slots.labelled] + extra0
    iou0 = hits0 / union0
    gain, loss = 1 / union0, iou0 / union0
    score_IE = scores(slots, by_depth.share * gain, by_depth.share * loss)
    free_shape = (*steps.number.shape, 2, 4, GROUPS)
    bound = Bound(
        score_IE=score_IE.astype(np.float32),
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
        rounding=_rounding(goal, steps, float(np.abs(score_IE).sum(axis=0).max())),
    )
    # Threads write to parts of their own. `list` waits, and raises what any of them raised.
    places = range(goal.tables.exits) if deepest is None else deepest
    list(pool.map(lambda exit_: fill_free_norms(slots, bound, exits, exit_), places))
    return bound


def _labelled_sums(
    slots: Slots, counts_SE: NDArray[np.float32], position_I: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Sums by labelled class, each image answered by an exit."""
    position_S = np.repeat(position_I, np.diff(slots.start_I))
    # Single precision would no longer be exact once a class has more than 2^24 pixels in the split.
    answered_S = counts_SE[np.arange(len(position_S)), position_S].astype(np.float64)
    sums_C = np.zeros(len(slots.label_C))
    np.add.at(sums_C, slots.class_S, answered_S)
    return sums_C[: slots.labelled]


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


def bands(
    points: tuple[FrontPoint[Configuration], ...], kind: int, resolution: Resolution = EXACT
) -> Iterator[Band]:
    """Bands that together hold every configuration that is not behind the hurdles of `points`.

    No configuration costs less than the first hurdle. So let the hurdle p be the last that costs no
    more than a configuration; not to be behind it, the configuration is at least as accurate as p
    asks. If p is the last, the first band holds it. Otherwise it costs less than the hurdle q after
    p, so that with slope >= 0

        miou - slope * cost >= miou of p - slope * cost of q,

    and `need` is the least of that over neighbours p and q of the band. Bands share their ends, so
    every two neighbours are in one of them.
    """
    cost_F = np.array([point.cost for point in points])
    miou_F = np.array([point.miou for point in points])
    cost_H, miou_H = hurdles(cost_F, miou_F, resolution)

    def near(hurdle: int) -> Configuration:
        return points[
            max(0, int(np.searchsorted(cost_F, cost_H[hurdle], side="right")) - 1)
        ].payload

    yield Band(points[-1].payload, miou_H[-1] / MIOU_STEPS - MARGIN, 0.0, NOTHING)
    start, pieces = 0, BANDS
    if resolution.floor >= miou_F[0] and len(cost_H) > 1:
        # From the cheapest up to the floor is a long way, which no slope follows well.
        yield Band(near(1), miou_H[0] / MIOU_STEPS - MARGIN, 0.0, int(cost_H[1]))
        # What is left is short, and every piece costs a look at all rows.
        start, pieces = 1, BANDS_ABOVE
    way_H = _way(cost_H[start:], miou_H[start:])
    for edge in np.linspace(0, way_H[-1], pieces + 1)[1:] if way_H[-1] else ():
        stop = start
        while stop < len(cost_H) - 1 and way_H[stop - (len(cost_H) - len(way_H))] < edge:
            stop += 1
        # The band before reaches past this edge already.
        if stop == start:
            continue
        piece = slice(start, stop + 1)
        cost, miou = cost_H[piece].astype(np.float64), miou_H[piece] / MIOU_STEPS
        # Parameters and the 90% path are not sums over the images, which a slope needs.
        slope = float((miou[-1] - miou[0]) / (cost[-1] - cost[0])) if kind == MEAN else 0.0
        need = float((miou[:-1] - slope * cost[1:]).min())
        yield Band(near((start + stop + 1) // 2), need - MARGIN, slope, int(cost_H[stop]))
        start = stop


def _way(cost_H: NDArray[np.int64], miou_H: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far along the front each hurdle is, by cost and twice by mIoU.

    By mIoU alone the accurate end, where much cost buys little, would be one band, whose reference
    is far from most of it. In equal parts the bands of the cheap end, where the bound is loosest,
    are too wide.
    """
    parts = [(values - values[0]) / max(1, values[-1] - values[0]) for values in (cost_H, miou_H)]
    return parts[0] + 2 * parts[1]
