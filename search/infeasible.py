"""The answer when no configuration meets the constraints: which requests just would be met."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mess.errors import InfeasibleError
from mess.search.costs import LATENCY, MACS, PARAMS, UNITS
from mess.search.evaluate import Configuration
from mess.search.goal import MIOU_STEPS, Goal, miou_steps
from mess.search.request import ACCURACY, ANYTIME

_WORDS = {
    LATENCY: ("runs within {} ms", "fastest", "takes {} ms", "--max-latency"),
    MACS: ("needs at most {} MACs", "cheapest", "needs {} MACs", "--max-macs"),
    PARAMS: ("holds at most {} parameters", "smallest", "holds {} parameters", "max_params"),
}


class Best(NamedTuple):
    """The best configuration of a relaxed goal; `quality` is the mIoU that is maximised."""

    configuration: Configuration
    costs: dict[str, float]
    miou: float
    quality: float


Solve = Callable[[Goal], Best | None]


def infeasible(goal: Goal, solve: Solve) -> InfeasibleError:
    """An error that names the constraints and, for each, the nearest value that can be met."""
    given = [*goal.limits]
    if goal.miou_limit >= 0 or any(checkpoint.miou > 0 for checkpoint in goal.checkpoints):
        given.append(ACCURACY)
    facts, moves = [], []
    for name in given:
        extreme = solve(goal.relaxed(given, name)) if len(given) > 1 else None
        if extreme is not None and not _meets(goal, name, extreme):
            facts.append(_fact(goal, name, extreme, "of all "))
        nearest = solve(goal.relaxed([name], name))
        if nearest is not None:
            kept = "that keeps the other limits" if len(given) > 1 else ""
            facts.append(_fact(goal, name, nearest, "", kept))
            moves.append(_move(goal, name, nearest))
    advice = ", or ".join(moves) if moves else "relax several constraints at once"
    return InfeasibleError(
        f"no configuration {_demand(goal, given)}; {'; '.join(facts)}. "
        f"{advice[0].upper()}{advice[1:]}."
    )


def _demand(goal: Goal, given: Iterable[str]) -> str:
    limits = goal.request.limits
    costs = [_WORDS[name][0].format(f"{limits[name]:.6g}") for name in given if name in limits]
    if ACCURACY not in given:
        return " and ".join(costs)
    wanted = []
    if goal.request.max_error is not None:
        wanted.append(f"error <= {goal.request.max_error:g}")
    if goal.request.min_miou is not None:
        wanted.append(f"mIoU >= {goal.request.min_miou:g}")
    if goal.request.setting == ANYTIME:
        images = goal.tables.images
        ticks = goal.ticks[goal.front_metric]
        wanted += [
            f"mIoU {checkpoint.miou / MIOU_STEPS:.6g} by "
            f"{ticks.to_unit(checkpoint.deadline / images):.6g} {UNITS[goal.front_metric]}"
            for checkpoint in goal.checkpoints
        ]
    accuracy = " and ".join(wanted)
    return f"{' and '.join(costs)} at {accuracy}" if costs else f"has {accuracy}"


def _fact(goal: Goal, name: str, best: Best, which: str, kept: str = "") -> str:
    exits = " + ".join(goal.tables.exit_ids[choice.exit] for choice in best.configuration)
    error = f"error {goal.baseline.miou - best.miou:.4g}"
    kept = f" {kept}" if kept else ""
    if name == ACCURACY:
        quality = f"mIoU {best.miou:.4g} ({error})"
        if goal.request.setting == ANYTIME:
            quality = (
                f"mIoU {best.quality:.4g} on average at the checkpoints and {quality} at the end"
            )
        return f"the most accurate {which}{kept.strip()}".rstrip() + f", {exits}, has {quality}"
    _, superlative, takes, _ = _WORDS[name]
    value = f"{round_up(best.costs[name]):.10g}"
    head = f"the {superlative} {which}{kept.strip()}".rstrip()
    return f"{head}, {exits}, {takes.format(value)} at {error}"


def _move(goal: Goal, name: str, best: Best) -> str:
    if name != ACCURACY:
        return f"raise {_WORDS[name][3]} to {round_up(best.costs[name]):.10g}"
    if goal.request.setting == ANYTIME:
        return "lower the checkpoints' mIoU, --min-miou or raise --max-error"
    moves = []
    request, error = goal.request, goal.baseline.miou - best.miou
    if request.max_error is not None and miou_steps(error) > miou_steps(request.max_error):
        moves.append(f"raise --max-error to {round_up(error):.10g}")
    if request.min_miou is not None and miou_steps(best.miou) < miou_steps(request.min_miou):
        moves.append(f"lower --min-miou to {-round_up(-best.miou):.10g}")
    return " and ".join(moves)


def _meets(goal: Goal, name: str, best: Best) -> bool:
    if name == ACCURACY:
        return miou_steps(best.quality) >= goal.miou_limit
    return best.costs[name] <= goal.request.limits[name]


def round_up(value: float, digits: int = 4) -> float:
    """`value` rounded up to `digits` significant digits, so that as a limit it admits `value`."""
    if value == 0:
        return 0.0
    step = digits - 1 - math.floor(math.log10(abs(value)))
    scaled = value * 10.0**step
    nearest = round(scaled)
    whole = nearest if math.isclose(scaled, nearest, rel_tol=1e-12) else math.ceil(scaled)
    return float(f"{whole}e{-step}")
