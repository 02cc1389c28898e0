"""The answer when no configuration meets the constraints: which requests just would be met.

Nothing is estimated. Each suggestion is the optimum of the goal without one limit, found by the
same search, and rounded to the side on which it is still met.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

from mess.errors import InfeasibleError
from mess.search.problem.costs import LATENCY, MACS, PARAMS, UNITS
from mess.search.problem.definition import Choice, Configuration, evaluate
from mess.search.problem.goal import MIOU_STEPS, NO_DEADLINE, Checkpoint, Goal, miou_steps
from mess.search.problem.request import ACCURACY

_WORDS = {
    LATENCY: ("runs within {} ms", "fastest", "takes {} ms", "--max-latency"),
    MACS: ("needs at most {} MACs", "cheapest", "needs {} MACs", "--max-macs"),
    PARAMS: ("holds at most {} parameters", "smallest", "holds {} parameters", "--max-params"),
}

_FINENESS = 100_000
"""Deadlines are tried in steps of this share of themselves; four digits are suggested."""


class Best(NamedTuple):
    """The best configuration of a relaxed goal; `quality` is the mIoU that is maximised.

    costs: of an image, by metric, in MACs, ms and parameters.
    """

    configuration: Configuration
    costs: dict[str, float]
    miou: float
    quality: float

    @classmethod
    def of(cls, goal: Goal, configuration: Configuration) -> Best:
        evaluation = goal.evaluate(configuration)
        return cls(configuration, evaluation.costs, evaluation.miou, goal.quality(evaluation))


Solve = Callable[[Goal], Best | None]


def infeasible(goal: Goal, solve: Solve) -> InfeasibleError:
    """An error that names the constraints and, for each, the nearest value that can be met.

    Where no single change is enough it names those that together admit some configuration.
    """

    # Every new name is a whole search.
    @cache
    def extreme(name: str) -> Best | None:
        """The best of all configurations in one respect."""
        return solve(goal.relaxed([*goal.limits, ACCURACY], name))

    given = [*goal.limits]
    if _limits_answers(goal):
        given.append(ACCURACY)
    missable = [index for index, point in enumerate(goal.checkpoints) if point.miou > 0]
    kept = " that keeps the other limits" if len(given) + len(missable) > 1 else ""
    facts, moves = [], []
    for name in given:
        nearest = solve(_without(goal, name))
        best = extreme(name) if kept else None
        if (
            best is not None
            and not _meets(goal, name, best)
            and (nearest is None or _value(name, nearest) != _value(name, best))
        ):
            facts.append(_fact(goal, name, best, " of all"))
        if nearest is not None:
            facts.append(_fact(goal, name, nearest, kept))
            moves.append(_changes(goal, nearest))
    for index in missable:
        about, instead = _checkpoint(goal, index, kept, solve)
        if _by_default(goal) and goal.miou_limit > miou_steps(goal.baseline.miou):
            # Not what is delivered by then is missed, but what answers in the end.
            final = Best.of(goal, (Choice(goal.tables.final),))
            about = [_fact(goal, ACCURACY, final, "")]
        facts += about
        moves += instead
    if not moves:
        extremes = map(extreme, (*goal.limits, ACCURACY))
        changes = [_changes(goal, best) for best in extremes if best is not None]
        fewest = min(changes, key=lambda change: change.count(" and "))
        moves = [f"no single change is enough: {fewest}"]
    advice = ", or ".join(moves)
    known = f"; {'; '.join(dict.fromkeys(facts))}" if facts else ""
    return InfeasibleError(
        f"no configuration {_demand(goal)}{known}. {advice[0].upper()}{advice[1:]}."
    )


def _limits_answers(goal: Goal) -> bool:
    """Whether the accuracy of the (anytime last) answer can be what is missed."""
    if not goal.setting.ends_in_final:
        return goal.miou_limit >= 0
    return goal.miou_limit > miou_steps(goal.baseline.miou) and not _by_default(goal)


def _by_default(goal: Goal) -> bool:
    """Whether the limits on accuracy are what the one checkpoint asks for."""
    return not goal.request.checkpoints and any(point.miou > 0 for point in goal.checkpoints)


def _without(goal: Goal, name: str) -> Goal:
    """The goal without one limit, looking for the best in that respect."""
    if name == ACCURACY and goal.setting.ends_in_final:
        return replace(goal, miou_limit=-1)
    return goal.relaxed([name], name)


def _value(name: str, best: Best) -> float:
    return best.miou if name == ACCURACY else best.costs[name]


def _meets(goal: Goal, name: str, best: Best) -> bool:
    if name == ACCURACY:
        return miou_steps(best.miou) >= goal.miou_limit
    return best.costs[name] <= goal.request.limits[name]


def _demand(goal: Goal) -> str:
    request = goal.request
    costs = [_WORDS[name][0].format(f"{request.limits[name]:.6g}") for name in goal.limits]
    wanted = []
    if request.max_error is not None:
        wanted.append(f"error <= {request.max_error:g}")
    if request.min_miou is not None:
        wanted.append(f"mIoU >= {request.min_miou:g}")
    half = " (half of the network's own)" if _by_default(goal) else ""
    wanted += [
        f"mIoU {point.miou / MIOU_STEPS:.6g} {_by(goal, point)}{half}"
        for point in goal.checkpoints
        if point.miou > 0
    ]
    if not wanted:
        return " and ".join(costs)
    accuracy = " and ".join(wanted)
    return f"{' and '.join(costs)} at {accuracy}" if costs else f"has {accuracy}"


def _fact(goal: Goal, name: str, best: Best, which: str) -> str:
    if name == ACCURACY and goal.setting.ends_in_final:
        every = f"every {goal.setting.name} instance ends in the network's own head"
        return f"{every}, with mIoU {best.miou:.4g}"
    exits = " + ".join(goal.tables.exit_ids[choice.exit] for choice in best.configuration)
    error = f"error {goal.baseline.miou - best.miou:.4g}"
    if name == ACCURACY:
        return f"the most accurate{which}, {exits}, has mIoU {best.miou:.4g} ({error})"
    _, superlative, takes, _ = _WORDS[name]
    return f"the {superlative}{which}, {exits}, {takes.format(_up(best.costs[name]))} at {error}"


def _changes(goal: Goal, best: Best) -> str:
    """The options that admit a configuration which breaks limits."""
    evaluation = goal.evaluate(best.configuration)
    changes = [
        f"raise {_WORDS[name][3]} to {_up(evaluation.costs[name])}"
        for name, limit in goal.limits.items()
        if evaluation.totals[name] > limit
    ]
    answered = miou_steps(evaluation.miou)
    if not _by_default(goal):
        changes += _loosened(goal, evaluation.miou)
    for index, point in enumerate(goal.checkpoints):
        now = miou_steps(goal.delivered(evaluation)[index])
        ever = max(map(miou_steps, evaluation.exit_mious))
        if _by_default(goal):
            now, ever = min(now, answered), min(ever, answered)
        if now < point.miou and (now or point.early):
            changes.append(_replaced(goal, index, point.deadline, now))
        elif now < point.miou:
            later = min(ever, point.miou)
            changes.append(_replaced(goal, index, _delivery(goal, best, later).cost, later))
    return " and ".join(changes)


def _loosened(goal: Goal, miou: float) -> list[str]:
    """The options with which `miou` is accurate enough, of those with which it is not."""
    request, baseline, changes = goal.request, goal.baseline.miou, []
    reached = miou_steps(miou)
    if request.max_error is not None and reached < miou_steps(baseline - request.max_error):
        changes.append(f"raise --max-error to {_up(baseline - miou)}")
    if request.min_miou is not None and reached < miou_steps(request.min_miou):
        changes.append(f"lower --min-miou to {_down(miou)}")
    return changes


class _Delivery(NamedTuple):
    """The first answer of a configuration that is accurate enough.

    `cost` is a total in whole steps, as deadlines are.
    """

    cost: int
    exit_id: str


def _checkpoint(goal: Goal, index: int, kept: str, solve: Solve) -> tuple[list[str], list[str]]:
    """What is delivered by a checkpoint, and when what it asks for; options for either.

    Where the other limits cannot be kept without the checkpoint either there are no such options,
    and facts only where the checkpoint is missed for itself.
    """
    point = goal.checkpoints[index]
    levels = _levels(goal, point.miou)
    facts, moves = [], []

    # Every new pair is a whole search, and what the bisections found is asked for again.
    @cache
    def deliver(deadline: int, miou: int) -> _Delivery | None:
        best = solve(_asking(goal, index, point._replace(deadline=deadline, miou=miou)))
        return None if best is None else _delivery(goal, best, miou)

    # What an instance delivers by a deadline is what some exit has alone, so the levels hold all
    # values. Asking for more, or by an earlier deadline, admits fewer: both can be bisected.
    def most(deadline: int) -> int:
        """The largest level that can be asked for by a deadline."""
        refused = bisect_left(levels, True, key=lambda miou: deliver(deadline, miou) is None)
        return levels[max(refused - 1, 0)]

    now, ever = most(point.deadline), most(NO_DEADLINE)
    here = deliver(point.deadline, now)
    if here is None:
        return _checkpoint(_only(goal, index), index, " among all", solve)[0], []
    if now == point.miou:
        return [], []
    best = f"{_by(goal, point)} the most accurate choice{kept} delivers"
    if now > 0:
        short = f"{(point.miou - now) / MIOU_STEPS:.2g} short"
        facts.append(f"{best} mIoU {_figure(now)} ({here.exit_id}), {short}")
        moves.append(_replaced(goal, index, point.deadline, now))
    else:
        facts.append(f"{best} nothing")
    if ever < point.miou and not point.early:
        facts.append(f"no choice{kept} ever delivers more than mIoU {_figure(ever)}")
    first = _earliest(point.deadline, partial(deliver, miou=ever)) if ever > now else None
    if first is not None:
        facts.append(
            f"mIoU {_figure(ever)} is there by {_cost(goal, first.cost)} ({first.exit_id}), "
            f"{_cost(goal, first.cost - point.deadline)} late"
        )
        moves.append(_replaced(goal, index, first.cost, ever))
    return facts, moves


def _only(goal: Goal, index: int) -> Goal:
    """The goal with one checkpoint as its only limit."""
    points = tuple(
        point if position == index else point._replace(miou=0)
        for position, point in enumerate(goal.checkpoints)
    )
    return replace(goal, limits={}, miou_limit=-1, checkpoints=points)


def _earliest(missed: int, deliver: Callable[[int], _Delivery | None]) -> _Delivery | None:
    """The first delivery after the deadline `missed`."""
    eventual = deliver(NO_DEADLINE)
    if eventual is None:
        return None
    tries = range(missed, eventual.cost, max(1, eventual.cost // _FINENESS))
    met = bisect_left(tries, True, key=lambda deadline: deliver(deadline) is not None)
    return (deliver(tries[met]) if met < len(tries) else None) or eventual


def _levels(goal: Goal, miou: int) -> list[int]:
    """What exits deliver, ascending from 0 to `miou`, in whole steps."""
    exits = range(goal.tables.exits)
    delivered = {
        miou_steps(evaluate(goal.tables, goal.ticks, (Choice(exit_),)).miou) for exit_ in exits
    }
    return sorted({0, miou, *(level for level in delivered if level < miou)})


def _asking(goal: Goal, index: int, instead: Checkpoint) -> Goal:
    """The goal with another checkpoint; where that stands for the limits, they change with it."""
    points = list(goal.checkpoints)
    points[index] = instead
    limit = min(goal.miou_limit, instead.miou) if _by_default(goal) else goal.miou_limit
    return replace(goal, checkpoints=tuple(points), miou_limit=limit)


def _delivery(goal: Goal, best: Best, miou: int) -> _Delivery:
    evaluation = goal.evaluate(best.configuration)
    return next(
        _Delivery(cost[goal.front_metric] * goal.tables.images, goal.tables.exit_ids[choice.exit])
        for choice, cost, got in zip(
            best.configuration, evaluation.delivered, evaluation.exit_mious, strict=True
        )
        if miou_steps(got) >= miou
    )


def _replaced(goal: Goal, index: int, deadline: int, miou: int) -> str:
    """The options that ask for another checkpoint in the place of one."""
    point, request = goal.checkpoints[index], goal.request
    if not request.checkpoints:
        changes = _loosened(goal, miou / MIOU_STEPS) if miou < point.miou else []
        if deadline > point.deadline:
            cost = _up(_unit(goal, deadline))
            changes.append(f"give --checkpoint {cost}={_down(miou / MIOU_STEPS, 6)}")
        return " and ".join(changes)
    asked, wanted = request.checkpoints[index]
    cost, wanted = "early" if asked is None else _exactly(asked), _exactly(wanted)
    later = _up(_unit(goal, deadline)) if deadline > point.deadline else cost
    lower = _down(miou / MIOU_STEPS) if miou < point.miou else wanted
    return f"replace --checkpoint {cost}={wanted} with --checkpoint {later}={lower}"


def _unit(goal: Goal, total: int) -> float:
    """The cost of an image, from a total in whole steps."""
    return goal.ticks[goal.front_metric].to_unit(total / goal.tables.images)


def _cost(goal: Goal, total: int) -> str:
    return f"{float(f'{_unit(goal, total):.6g}'):.10g} {UNITS[goal.front_metric]}"


def _by(goal: Goal, point: Checkpoint) -> str:
    return "by an early exit" if point.early else f"by {_cost(goal, point.deadline)}"


def _figure(steps: int) -> str:
    return f"{steps / MIOU_STEPS:.4g}"


def _exactly(value: float) -> str:
    """A number as short as it can be read back."""
    short = f"{value:.10g}"
    return short if float(short) == value else repr(value)


def _up(value: float) -> str:
    return f"{round_up(value):.10g}"


def _down(value: float, digits: int = 4) -> str:
    return f"{0.0 - round_up(-value, digits):.10g}"


def round_up(value: float, digits: int = 4) -> float:
    """`value` rounded up to `digits` significant digits, so that as a limit it admits `value`."""
    if value == 0:
        return 0.0
    step = digits - 1 - math.floor(math.log10(abs(value)))
    scaled = value * 10.0**step
    nearest = round(scaled)
    # A value that has these digits already must not be raised by the rounding of the product.
    whole = nearest if math.isclose(scaled, nearest, rel_tol=1e-12) else math.ceil(scaled)
    # By way of its text, which is rounded once; 10.0**-step is rounded before it multiplies.
    return float(f"{whole}e{-step}")
