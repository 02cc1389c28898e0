"""Early exits before a last one, each image leaving by itself: exhaustive search."""

from __future__ import annotations

from functools import partial

import numpy as np

from mess.search.exact.early_exits import EarlyExits, EarlyExitSearch, Task, unheard
from mess.search.exact.kernel_inputs import ByDepth, pack_prices
from mess.search.exact.one_exit import search_single
from mess.search.exact.resolution import Resolution
from mess.search.exact.workers import ALL_CORES, Workers
from mess.search.kernels.arrays import NOBODY
from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.findings import Findings
from mess.search.problem.goal import Goal
from mess.search.problem.space import OFFSET, Done, decode_steps
from mess.search.problem.thresholds import Thresholds


def search_dependent(
    goal: Goal,
    found: Findings,
    steps_by_early: dict[int, Thresholds],
    collect: bool = True,
    workers: Workers = ALL_CORES,
    done: Done = lambda _early, _share: None,
) -> None:
    """Single exits, then every configuration with one, two and three early exits.

    `steps_by_early` come from `thresholds_by_early`. First the best configuration is proven; then,
    to `collect` the front, those with several early exits are searched again in every piece of it.
    """
    searches = _begin(goal, found, steps_by_early, workers)
    # Fewer exits first: what they find is the reference of the bound, and the limit, for more.
    for early, search in searches.items():
        if early == 1:
            search.run_all(found, collect, partial(done, 1))
        else:
            search.run_best(found, partial(done, early))
    found.proven = True
    # Only now, so that an interrupt leaves at least a proven answer.
    if collect:
        for early, search in searches.items():
            if early > 1:
                search.run_front(found, partial(done, early))
        found.front_proven = True


def collect_dependent(
    goal: Goal,
    found: Findings,
    steps_by_early: dict[int, Thresholds],
    resolution: Resolution,
    workers: Workers = ALL_CORES,
) -> None:
    """The front alone, to a resolution."""
    for early, search in _begin(goal, found, steps_by_early, workers).items():
        if early == 1:
            search.run_all(found, True, unheard)
        else:
            search.run_front(found, unheard, resolution)


def _begin(
    goal: Goal, found: Findings, steps_by_early: dict[int, Thresholds], workers: Workers
) -> dict[int, EarlyExitSearch]:
    """Single exits are searched; then by number of early exits what is yet to be."""
    search_single(goal, found, range(goal.tables.exits))
    by_depth = ByDepth.of(goal.tables)
    return {
        early: EarlyExitSearch(goal, by_depth, _early_exits(goal, by_depth, steps, early), workers)
        for early, steps in steps_by_early.items()
    }


def _early_exits(goal: Goal, by_depth: ByDepth, steps: Thresholds, early: int) -> EarlyExits:
    return EarlyExits(
        steps=steps,
        deepest_steps=steps,
        prices=pack_prices(goal),
        tasks=_tasks(by_depth, steps, early) if early > 1 else (),
        offset=early * OFFSET,
        decode=partial(_decode, steps, goal.tables.exits, early),
        shared=goal.request.shared_threshold and early > 1,
    )


def _tasks(by_depth: ByDepth, steps: Thresholds, early: int) -> list[Task]:
    """The second exit each of two, or the first each of three with each of its signals."""
    after, exits = by_depth.after_E, len(by_depth.order_E)
    number = by_depth.exits(steps).number_EK
    firsts = [e for e in range(exits) if after[e] < exits]
    if early == 2:
        return [Task(NOBODY, 0, np.array([second]), number) for second in firsts]
    return [
        Task(first, signal, np.arange(after[first], exits), number)
        for first in firsts
        for signal in range(number.shape[1])
    ]


def _decode(steps: Thresholds, exits: int, early: int, code: int) -> Configuration:
    """The configuration behind a kernel's code."""
    *choices, last = decode_steps(steps, exits, early, code)
    return (
        *(Choice(e, signal, float(steps.values[e][signal][step])) for e, signal, step in choices),
        Choice(last[0]),
    )
