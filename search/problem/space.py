"""The space of a search: how many configurations it has, and how they are numbered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.errors import ConfigError
from mess.search.problem.findings import NOTHING
from mess.search.problem.goal import Goal
from mess.search.problem.tables import Tables
from mess.search.problem.thresholds import Thresholds, grid_size, thresholds_of

Done = Callable[[int, float], None]
"""Hears which share of the configurations with a number of early exits is done."""


OFFSET = 2**63
"""Above any code of a kernel: configurations with fewer exits come first in order."""


def count_configurations(
    tables: Tables, steps: Thresholds, early: int, *, shared: bool = False
) -> int:
    """Configurations with `early` early exits and one last exit."""
    if shared and early > 1:
        chains = _count_chains(tables, np.ones_like(tables.point), early)
        return chains * int(steps.number.max(axis=0).sum())
    return _count_chains(tables, steps.number.sum(axis=1), early)


def count_choices(tables: Tables, max_exits: int) -> int:
    """Choices of early exits, none included, that with the last one are at most `max_exits`."""
    *before_last, _ = _by_point(tables, np.ones_like(tables.point))
    return sum(_choices(before_last, max_exits - 1))


def _count_chains(tables: Tables, ways_E: NDArray[np.integer], early: int) -> int:
    """Choices of `early` early exits, each in so many ways, and one last exit behind them."""
    ways, lasts = _by_point(tables, ways_E), _by_point(tables, np.ones_like(tables.point))
    return sum(last * _choices(ways[:p], early)[early] for p, last in enumerate(lasts))


def _by_point(tables: Tables, of_exit_E: NDArray[np.integer]) -> list[int]:
    """The sum over the exits of each point."""
    return [int(of_exit_E[tables.point == p].sum()) for p in range(1, tables.points + 1)]


def _choices(ways: Sequence[int], most: int) -> list[int]:
    """In how many ways 0, 1, ..., `most` points are chosen, each of which has so many `ways`.

    The elementary symmetric sums of `ways`, one point after the other. Python's integers hold them
    whatever their size.
    """
    chosen = [1] + [0] * most
    for here in ways:
        # Downwards, so that no point is chosen twice.
        for size in range(most, 0, -1):
            chosen[size] += chosen[size - 1] * here
    return chosen


def thresholds_by_early(goal: Goal) -> dict[int, Thresholds]:
    """Thresholds by number of early exits: all of them for one, a grid for more.

    Empty without signals: no image can leave early then.
    """
    request = goal.request
    most = min(request.max_exits, goal.tables.points) - 1 if goal.tables.signal_names else 0
    steps_by_early = {
        early: thresholds_of(
            goal.tables,
            threshold_grid(goal, early),
            shared=request.shared_threshold and early > 1,
        )
        for early in range(1, most + 1)
    }
    for early, steps in steps_by_early.items():
        require_numbers(steps, early)
    return steps_by_early


def require_numbers(steps: Thresholds, early: int) -> None:
    """Raise ConfigError where configurations have no number a kernel can hold."""
    exits, signals = steps.number.shape
    if (exits * signals * int(steps.number.max())) ** early * exits >= NOTHING:
        raise ConfigError(
            f"{exits} exits with {signals} signals and {steps.number.max()} thresholds give more "
            "configurations than can be numbered; lower thresholds or max_exits"
        )


def threshold_grid(goal: Goal, early: int) -> int | None:
    """Size of the grid of `early` exits with thresholds; one that is shared has no other beside."""
    request = goal.request
    if request.shared_threshold and early > 1:
        return request.thresholds
    return grid_size(early, request.thresholds)


def decode_steps(
    steps: Thresholds, exits: int, early: int, code: int
) -> list[tuple[int, int, int]]:
    """Exit, signal and threshold (all indices) of each exit behind a kernel's code."""
    radix = max(1, int(steps.number.max()))
    code, last = divmod(code, exits)
    found = [(last, 0, 0)]
    for _ in range(early):
        code, step = divmod(code, radix)
        code, signal = divmod(code, steps.number.shape[1])
        code, exit_ = divmod(code, exits)
        found.append((exit_, signal, step))
    return found[::-1]


def describe_space(goal: Goal, **details: Any) -> dict[str, Any]:
    """The space of a goal in words and numbers, as `result.json` holds it."""
    tables, request = goal.tables, goal.request
    statement = goal.setting.statement(
        compares=tables.pairs is not None, shared=request.shared_threshold
    )
    sizes = {"candidates": tables.exits, "points": tables.points, "images": tables.images}
    return {"statement": statement, **sizes, **details}
