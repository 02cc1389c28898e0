"""Why the answer is what it is: the limits that hold it back, and what other limits would buy.

Nothing here is estimated. A front proves what a step along it buys; where a limit on something that
the front does not show might forbid that step, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mess.search.answers.infeasible import Solve
from mess.search.problem.costs import LATENCY, MACS, PARAMS, UNITS
from mess.search.problem.definition import Configuration, Evaluation
from mess.search.problem.front import Point, proven_optimum, relaxed_optimum
from mess.search.problem.goal import Goal, miou_steps, total_steps
from mess.search.problem.request import ACCURACY, Request

MIOU_STEP = 0.01
"""One percentage point, the step of accuracy that is priced."""

COST_SHARE = 0.01
"""The step of MACs and parameters that is priced, as a share of the baseline's."""

FIELDS = {LATENCY: "max_latency_ms", MACS: "max_macs", PARAMS: "max_params"}
"""The limit on each metric, as a `Request` and the `constraints` of result.json name it."""


def explain(
    goal: Goal, front: Sequence[Point] | None, best: Configuration, solve: Solve
) -> dict[str, Any]:
    """What `result.json` holds as `explanation` for the optimum `best` of `goal`.

    front: the front of the whole space in `goal.front_metric`, or None where it is not known: then
        there is neither `buys` nor `next`.
    solve: solves a relaxed goal exactly; called, once, for each limit that the front does not
        settle.

    `metric` and `unit` are those of every `cost`; `miou` is what a request maximises (of an anytime
    configuration the mean over the checkpoints), `error` is how far it is below the baseline's.

    binding: the constraints whose removal alone would improve the optimum, by their names in
        `constraints`; a checkpoint as `checkpoints[0]`.
    buys: what a step along either axis of the front buys, the one that relaxes a limit first:
        `request`, the options that ask for it while all others are kept (null where none do),
        `step` in `unit`, what `changes` (`cost` or `miou`), `from`, `to`, `gain` (0 where the step
        buys nothing), `share` of the cost that is saved, and the configuration.
    next: the nearest `cheaper` and the nearest `better` (more accurate) configuration of the front
        that keeps the limits on other metrics; null where there is none.
    """
    reached = goal.evaluate(best)
    told: dict[str, Any] = {
        "metric": goal.front_metric,
        "unit": UNITS[goal.front_metric],
        "binding": [
            name
            for name, without in _without_each(goal)
            if _improves(without, goal.objective(reached), front, solve)
        ],
    }
    if front is not None:
        offers = [_less_accurate(goal, front, reached), _dearer(goal, front, reached)]
        if goal.request.target == ACCURACY:
            offers.reverse()
        told["buys"] = [offer for offer in offers if offer is not None]
        told["next"] = _neighbours(goal, front, reached)
    return told


def _without_each(goal: Goal) -> Iterator[tuple[str, Goal]]:
    """Every constraint that can hold the objective back, and the goal without it alone."""
    request = goal.request
    for metric in goal.limits:
        if metric != request.target:
            yield FIELDS[metric], goal.relaxed([metric], request.target)
    if request.target == ACCURACY and not goal.checkpoints:
        return
    for name in ("max_error", "min_miou"):
        if getattr(request, name) is not None:
            yield name, _asking(goal, **{name: None})
    for index, (cost, miou) in enumerate(request.checkpoints):
        if miou > 0:
            points = list(request.checkpoints)
            points[index] = (cost, 0.0)
            yield f"checkpoints[{index}]", _asking(goal, checkpoints=tuple(points))


def _asking(goal: Goal, **changes: Any) -> Goal:
    """The goal of the request with other accuracies or other values of its cost limits."""
    return Goal.of(goal.tables, goal.ticks, replace(goal.request, **changes))


def _improves(without: Goal, reached: int, front: Sequence[Point] | None, solve: Solve) -> bool:
    """Whether the optimum of `without` is better than `reached`, the objective with the limit."""
    if front is not None:
        # What even the relaxed optimum does not improve nothing does; where it improves and keeps
        # all limits it is a witness. Only in between a search has to tell.
        point = relaxed_optimum(without, front)
        if point is None:
            return False
        evaluation = without.evaluate(point.payload)
        if without.objective(evaluation) >= reached:
            return False
        if without.meets(evaluation):
            return True
    if not _limited(without):
        # More exits than one cost more than the cheaper of them alone.
        without = replace(without, request=replace(without.request, max_exits=1))
    found = solve(without)
    return found is not None and without.objective(without.evaluate(found.configuration)) < reached


def _limited(goal: Goal) -> bool:
    """Whether anything keeps the goal's target from its extreme."""
    asks = goal.miou_limit >= 0 or any(point.miou > 0 for point in goal.checkpoints)
    return goal.request.target == ACCURACY or bool(goal.limits) or asks


def _less_accurate(
    goal: Goal, front: Sequence[Point], reached: Evaluation
) -> dict[str, Any] | None:
    """The cost that a step of accuracy saves."""
    if goal.request.target == ACCURACY:
        options, point = _settling_for_less(goal, front, reached)
    else:
        options = _loosened(goal.request)
        point = proven_optimum(_asking(goal, **options), front) if options else None
    if point is None:
        return None
    metric, offered = goal.front_metric, goal.evaluate(point.payload)
    before, after = reached.costs[metric], offered.costs[metric]
    return {
        "request": options,
        "step": MIOU_STEP,
        "unit": "mIoU",
        "changes": "cost",
        "from": before,
        "to": after,
        "gain": before - after,
        "share": (before - after) / before if before else 0.0,
        "configuration": _described(goal, point, offered),
    }


def _loosened(request: Request) -> dict[str, Any]:
    """The accuracies that a cost target is asked for, a step lower; {} where that cannot be asked.

    Rounded, so that 0.01 and a step make 0.02.
    """
    if request.checkpoints:
        # The last answer of an anytime instance is the baseline's: checkpoints alone give way.
        checkpoints = [
            [cost, round(miou - MIOU_STEP, 12) if miou else 0.0]
            for cost, miou in request.checkpoints
        ]
        asked = any(miou for _, miou in request.checkpoints)
        possible = all(miou >= 0 for _, miou in checkpoints)
        return {"checkpoints": checkpoints} if asked and possible else {}
    lower = {}
    if request.max_error is not None:
        lower["max_error"] = round(request.max_error + MIOU_STEP, 12)
    if request.min_miou is not None:
        lower["min_miou"] = round(request.min_miou - MIOU_STEP, 12)
    return lower if all(0 <= share <= 1 for share in lower.values()) else {}


def _settling_for_less(
    goal: Goal, front: Sequence[Point], reached: Evaluation
) -> tuple[dict[str, Any] | None, Point | None]:
    """What asks for the cheapest configuration a step below the best mIoU, and that one."""
    miou = goal.quality(reached) - MIOU_STEP
    deadlines = [checkpoint.deadline for checkpoint in goal.checkpoints]
    least = miou_steps(miou) * max(len(deadlines), 1)
    point = next((point for point in front if point.miou >= least), None)
    if miou < 0 or point is None or not goal.meets(goal.evaluate(point.payload)):
        return None, None
    options: dict[str, Any] = {"target": goal.front_metric}
    if not deadlines:
        return options | {"min_miou": miou}, point
    if len(deadlines) > 1:
        return None, point  # no request asks for a mean over checkpoints at the least cost
    cost = None
    if not goal.checkpoints[0].early:
        cost = goal.ticks[goal.front_metric].to_unit(deadlines[0] / goal.tables.images)
    return options | {"checkpoints": [[cost, miou]]}, point


def _dearer(goal: Goal, front: Sequence[Point], reached: Evaluation) -> dict[str, Any] | None:
    """The mIoU that a step of cost buys."""
    metric, request = goal.front_metric, goal.request
    step = 1.0 if metric == LATENCY else COST_SHARE * goal.baseline.costs[metric]
    limit = request.limits.get(metric)
    options: dict[str, Any] = {}
    if request.target != ACCURACY:
        options["target"] = ACCURACY
        budget = reached.costs[metric] + step
        if limit is not None and budget > limit:
            return None
    elif limit is not None:
        budget = limit + step
    else:
        return None
    options[FIELDS[metric]] = budget
    asked = replace(request, **options)
    total = total_steps(metric, budget, goal.tables.images)
    point = proven_optimum(
        replace(goal, request=asked, limits={**goal.limits, metric: total}), front
    )
    if point is None:
        return None
    offered = goal.evaluate(point.payload)
    before, after = goal.quality(reached), goal.quality(offered)
    return {
        # Of several limits the first one says what a front, and a checkpoint's cost, is about.
        "request": options if asked.cost_metric(goal.ticks) == metric else None,
        "step": step,
        "unit": UNITS[metric],
        "changes": "miou",
        "from": before,
        "to": after,
        "gain": after - before,
        "share": None,
        "configuration": _described(goal, point, offered),
    }


def _neighbours(
    goal: Goal, front: Sequence[Point], reached: Evaluation
) -> dict[str, dict[str, Any] | None]:
    """The points of the front on either side that keep the limits it does not show."""
    metric, target = goal.front_metric, goal.request.target
    cost, miou = reached.totals[metric], goal.quality_steps(reached)
    cheaper = (point for point in reversed(front) if point.cost < cost)
    better = (point for point in front if point.miou > miou)
    return {
        "cheaper": _first(goal.relaxed([metric, ACCURACY], target), cheaper),
        "better": _first(goal.relaxed([metric], target), better),
    }


def _first(goal: Goal, points: Iterable[Point]) -> dict[str, Any] | None:
    for point in points:
        evaluation = goal.evaluate(point.payload)
        if goal.meets(evaluation):
            return _described(goal, point, evaluation)
    return None


def _described(goal: Goal, point: Point, evaluation: Evaluation) -> dict[str, Any]:
    quality = goal.quality(evaluation)
    return {
        "exits": [goal.tables.exit_ids[choice.exit] for choice in point.payload],
        "miou": quality,
        "error": goal.baseline.miou - quality,
        "cost": evaluation.costs[goal.front_metric],
    }
