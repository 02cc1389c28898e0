"""What a search picks if it has to stay within the limits by a margin.

The same procedure runs on the images of a fold and on all of them: what is certified is the
procedure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from mess.search.exact.cover import collect, optimum
from mess.search.exact.resolution import EXACT, FINE, Resolution
from mess.search.exact.workers import ALL_CORES, Workers
from mess.search.guarantees.claims import Picked, claims_of
from mess.search.problem.definition import Choice
from mess.search.problem.front import Point
from mess.search.problem.goal import Goal, miou_steps
from mess.search.problem.request import ACCURACY, Request

Judged = TypeVar("Judged")
"""What was found of a pick on images that did not choose it."""

_MARGINS = 40
"""Besides the limit itself. Few would waste saving, many cost time and gain nothing."""

_WIDEST = 2.0
"""The widest margin, in allowed errors: half of it is below what the whole network loses."""

_LEAST_ERROR = 0.002
"""What stands for an allowed error that is smaller: an error of 0 needs margins, too."""

_WIDEST_OF_MIOU, _NARROWEST_OF_MIOU = 0.2, 0.0005
"""An mIoU of its own is far less certain than a difference of two on the same images."""


def margins_of(request: Request) -> tuple[float, ...]:
    """Margins of mIoU, the widest first; fixed before any image is looked at.

    A single 0 where accuracy is maximised: there is no limit on it to stay within.
    """
    if request.target == ACCURACY:
        return (0.0,)
    if request.max_error is None:
        # Each step by the same share: how wide it has to be is not known by a power of ten.
        spread = np.geomspace(_WIDEST_OF_MIOU, _NARROWEST_OF_MIOU, _MARGINS)
        return (*spread.tolist(), 0.0)
    unit = max(request.max_error, _LEAST_ERROR)
    return tuple(_WIDEST * unit * n / _MARGINS for n in range(_MARGINS, -1, -1))


def resolution_of(request: Request) -> Resolution:
    """Of the fronts that are picked from: exact where that is fast."""
    return EXACT if request.max_exits <= 2 else FINE


def whole_network(goal: Goal) -> Picked:
    """The network run to its end: the safest answer to all that is asked of new images."""
    return Picked.of(goal, (Choice(goal.tables.final),))


def picks(goal: Goal, margins: Sequence[float], workers: Workers = ALL_CORES) -> list[Picked]:
    """The answer at each margin; where nothing stays within the limits by it, the nearest to that.

    That is no refusal: on few images nothing may be as good as a wide margin asks, and then a
    search for a promise takes what loses least.
    """
    if goal.checkpoints:
        return [_at_checkpoints(goal, margin, workers) for margin in margins]
    if goal.request.target == ACCURACY or set(goal.limits) - {goal.front_metric}:
        return _searched(goal, margins, workers)
    resolution = resolution_of(goal.request).above(goal.miou_limit)
    front = [
        point
        for point in collect(goal, resolution, workers)
        if goal.affordable(goal.evaluate(point.payload).totals)
    ]
    return [_first(goal, front, goal.miou_limit + miou_steps(margin)) for margin in margins]


def _first(goal: Goal, front: Sequence[Point], miou: int) -> Picked:
    """The cheapest point that reaches `miou`, else the most accurate one."""
    if not front:
        return whole_network(goal)
    reaching = (point for point in front if point.miou >= miou)
    return Picked.of(goal, next(reaching, front[-1]).payload)


def _searched(goal: Goal, margins: Sequence[float], workers: Workers) -> list[Picked]:
    """By searches: a front is of one cost, and what keeps a limit on another is seldom on it."""
    found: list[Picked] = []
    reached = -1
    # What reaches a wider margin than it was searched for is the best there, too.
    for margin in reversed(margins):
        miou = goal.miou_limit + miou_steps(margin)
        if found and miou <= reached:
            found.append(found[-1])
            continue
        best = optimum(replace(goal, miou_limit=miou), workers)
        if best is None:
            found += [_most_accurate(goal, workers)] * (len(margins) - len(found))
            break
        found.append(Picked.of(goal, best))
        reached = miou_steps(goal.evaluate(best).miou)
    return found[::-1]


def _at_checkpoints(goal: Goal, margin: float, workers: Workers) -> Picked:
    """By a search for this margin alone, of what is delivered by each checkpoint."""
    more = miou_steps(margin)
    stricter = replace(
        goal,
        checkpoints=tuple(
            # What asks for nothing keeps asking for nothing.
            point._replace(miou=point.miou + more if point.miou else 0)
            for point in goal.checkpoints
        ),
    )
    best = optimum(stricter, workers)
    return whole_network(goal) if best is None else Picked.of(goal, best)


def _most_accurate(goal: Goal, workers: Workers) -> Picked:
    """Of what keeps the limits on cost; the whole network where nothing does."""
    best = optimum(goal.relaxed([ACCURACY], ACCURACY), workers)
    return whole_network(goal) if best is None else Picked.of(goal, best)


class Settled(NamedTuple, Generic[Judged]):
    """What is answered, and what was found of it.

    margin: None for the whole network, which needs no test.
    passed: whether it is more than what loses least of all that failed.
    """

    picked: Picked
    margin: float | None
    judged: Judged
    passed: bool


def settle(
    goal: Goal,
    margins: Sequence[float],
    chosen: Sequence[Picked],
    judged: Sequence[Judged],
    passed: int | None,
    judge: Callable[[Picked], Judged],
) -> Settled[Judged]:
    """The pick of the last test that passed, else the whole network, else the first pick.

    goal: of the searched images. chosen, judged: at each margin, the widest first; `passed` is the
    index of the last before the first that fails. `judge` finds the same of another pick.
    """
    whole = whole_network(goal)
    # A wide margin may leave nothing but the whole network to pick.
    if passed is not None and chosen[passed] != whole:
        return Settled(chosen[passed], margins[passed], judged[passed], True)
    if goal.affordable(goal.evaluate(whole.configuration).totals):
        # It loses nothing to itself, which needs no test. An mIoU of its own does, and after one
        # that failed a second is one too many: either of them may pass by chance.
        tested = passed is not None or all(claim.against_final for claim in claims_of(goal))
        return Settled(whole, None, judge(whole), tested)
    # Nothing is certified: what loses least of what is not too dear.
    return Settled(chosen[0], margins[0], judged[0], False)
