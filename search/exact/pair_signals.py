"""Early exits whose signal compares them with the selected exit before: exhaustive search.

The first selected exit is only compared with: nobody leaves there. Three exits then have one
threshold, four have two. The kernels know no pairs, but any number of signals with a cost each: for
them the exit before is the signal. Signal `a` of exit `b` is what `b` has after `a`, and costs what
`a` costs besides, as everybody passes it. So ties go by exit, the exit before it, threshold.

Of two exits with thresholds the second is compared with the first, so that its signal may not be
chosen freely. Hence they are searched apart for every exit that is the first of them: this one has
the exits before it as signals, and all others have a single signal, compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from mess.search.exact.early_exits import EarlyExits, EarlyExitSearch, Task
from mess.search.exact.kernel_inputs import ByDepth, pack_prices
from mess.search.exact.one_exit import search_single
from mess.search.exact.resolution import Resolution
from mess.search.exact.workers import ALL_CORES, Workers
from mess.search.kernels.arrays import NOBODY, Prices
from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.findings import Arrays, Findings
from mess.search.problem.goal import Goal
from mess.search.problem.space import OFFSET, Done, decode_steps, require_numbers, threshold_grid
from mess.search.problem.tables import Tables
from mess.search.problem.thresholds import Thresholds, pair_thresholds

_SPAN = 2**62
"""Above any code of a kernel."""

_CHUNK = 4
"""Exits before the first one with a threshold that are searched together."""


def pair_thresholds_by_early(goal: Goal) -> dict[int, Thresholds]:
    """Thresholds by number of early exits that have one: all for one, a grid for two."""
    request, tables = goal.request, goal.tables
    most = min(request.max_exits, tables.points) - 2
    steps_by_early = {
        early: pair_thresholds(
            tables, threshold_grid(goal, early), shared=request.shared_threshold and early > 1
        )
        for early in range(1, most + 1)
    }
    for early, steps in steps_by_early.items():
        require_numbers(steps, early)
    return steps_by_early


def count_pairs(tables: Tables, steps: Thresholds, early: int, *, shared: bool = False) -> int:
    """Configurations with `early` thresholds."""
    number, point = steps.number, np.asarray(tables.point)
    lasts_E = (point[None, :] > point[:, None]).sum(axis=1)
    if early == 1:
        return int((number.sum(axis=1) * lasts_E).sum())
    follows = (number > 0).astype(np.int64)
    if shared:
        # One threshold for both: as many as there are, in any exits that follow each other.
        ways = follows.sum(axis=1)[None, :] * follows * lasts_E[:, None]
        return int(ways.sum()) * int(number.max())
    return int((number.sum(axis=1)[None, :] * number * lasts_E[:, None]).sum())


def search_pairs(
    goal: Goal,
    found: Findings,
    steps_by_early: dict[int, Thresholds],
    collect: bool = True,
    workers: Workers = ALL_CORES,
    done: Done = lambda _early, _share: None,
) -> None:
    """Single exits, then every configuration with one and two thresholds.

    `steps_by_early` come from `pair_thresholds_by_early`. Best configuration and front as in
    `search_dependent`.
    """
    by_depth = ByDepth.of(goal.tables)
    _search_one(goal, found, by_depth, steps_by_early, collect, workers, partial(done, 1))
    behind = partial(_each_middle, goal, by_depth, steps_by_early, workers, partial(done, 2))
    # All best ones before any front, so that an interrupt leaves at least a proven answer.
    for search, hear in behind():
        search.run_best(found, hear)
    found.proven = True
    if collect:
        for search, hear in behind():
            search.run_front(found, hear)
        found.front_proven = True


def collect_pairs(
    goal: Goal,
    found: Findings,
    steps_by_early: dict[int, Thresholds],
    resolution: Resolution,
    workers: Workers = ALL_CORES,
) -> None:
    """The front alone, to a resolution."""
    by_depth = ByDepth.of(goal.tables)
    _search_one(goal, found, by_depth, steps_by_early, True, workers, lambda _: None)
    for search, hear in _each_middle(goal, by_depth, steps_by_early, workers, lambda _: None):
        search.run_front(found, hear, resolution)


def _search_one(
    goal: Goal,
    found: Findings,
    by_depth: ByDepth,
    steps_by_early: dict[int, Thresholds],
    collect: bool,
    workers: Workers,
    done: Callable[[float], None],
) -> None:
    """Single exits, and every configuration with one threshold."""
    search_single(goal, found, range(goal.tables.exits))
    if 1 in steps_by_early:
        single = EarlyExitSearch(goal, by_depth, _single(goal, steps_by_early[1]), workers)
        single.run_all(found, collect, done)


def _each_middle(
    goal: Goal,
    by_depth: ByDepth,
    steps_by_early: dict[int, Thresholds],
    workers: Workers,
    done: Callable[[float], None],
) -> Iterator[tuple[EarlyExitSearch, Callable[[float], None]]]:
    """Searches of two thresholds by the first exit that has one, each with who hears its share."""
    middles = _middles(steps_by_early[2]) if 2 in steps_by_early else []
    # One at a time: together they would take as much memory as all triples of exits.
    for position, exit_ in enumerate(middles):
        space = _behind_middle(goal, by_depth, steps_by_early[2], exit_)
        yield (
            EarlyExitSearch(goal, by_depth, space, workers),
            lambda share, n=position: done((n + share) / len(middles)),
        )


def _single(goal: Goal, steps: Thresholds) -> EarlyExits:
    """One early exit with a threshold, behind one that is only compared with."""
    prices = pack_prices(goal)
    return EarlyExits(
        steps=steps,
        deepest_steps=steps,
        prices=prices._replace(signal_MEK=prices.signal_MEK + _before(goal, prices)[:, None, :]),
        tasks=(),
        offset=OFFSET,
        decode=partial(_decode, steps),
    )


def _behind_middle(goal: Goal, by_depth: ByDepth, steps: Thresholds, middle: int) -> EarlyExits:
    """Two early exits with thresholds, the first of which is `middle`."""
    before = np.flatnonzero(steps.number[middle])
    own = _own_thresholds(steps, middle, before)
    # As the deepest one `middle` is never looked at, and the others have a single signal.
    deepest_number = own.number[:, :1].copy()
    deepest_number[middle] = 0
    prices = pack_prices(goal)
    signal_MEK = np.repeat(prices.signal_MEK, len(before), axis=2)
    signal_MEK[:, middle] += _before(goal, prices)[:, before]
    return EarlyExits(
        steps=own,
        deepest_steps=Thresholds([row[:1] for row in own.values], deepest_number, own.bins[:, :1]),
        prices=prices._replace(signal_MEK=signal_MEK),
        tasks=_tasks(by_depth, own, middle),
        offset=2 * OFFSET + middle * _SPAN,
        decode=partial(_decode_middle, own, before),
        shared=goal.request.shared_threshold,
        same_signal=False,
    )


def _own_thresholds(steps: Thresholds, middle: int, before: Arrays) -> Thresholds:
    """Signals of `middle` by the exits `before` it, and one of each exit that may follow it."""
    deeper, none = np.flatnonzero(steps.number[:, middle]), np.zeros(0, dtype=np.float64)
    exits, _, images = steps.bins.shape
    values = [[none] * len(before) for _ in range(exits)]
    number = np.zeros((exits, len(before)), dtype=np.int64)
    bins = np.zeros((exits, len(before), images), dtype=np.int32)
    values[middle] = [steps.values[middle][a] for a in before]
    number[middle], bins[middle] = steps.number[middle, before], steps.bins[middle, before]
    for exit_ in deeper:
        values[exit_][0] = steps.values[exit_][middle]
        number[exit_, 0] = steps.number[exit_, middle]
        bins[exit_, 0] = steps.bins[exit_, middle]
    return Thresholds(values, number, bins)


def _tasks(by_depth: ByDepth, own: Thresholds, middle: int) -> list[Task]:
    """Some of the exits before the middle one each."""
    place, tasks = int(np.flatnonzero(by_depth.order_E == middle)[0]), []
    sorted_number = by_depth.exits(own).number_EK
    for start in range(0, sorted_number.shape[1], _CHUNK):
        number = sorted_number.copy()
        number[place, :start] = number[place, start + _CHUNK :] = 0
        tasks.append(Task(NOBODY, 0, np.array([place]), number))
    return tasks


def _middles(steps: Thresholds) -> list[int]:
    """Exits that can be the first of two with a threshold."""
    return np.flatnonzero(steps.number.any(axis=1) & steps.number.any(axis=0)).tolist()


def _before(goal: Goal, prices: Prices) -> Arrays:
    """Cost of an exit that is only compared with, (M, E)."""
    compared = np.stack([goal.ticks[metric].compared for metric in goal.metrics])
    return prices.exit_ME + prices.resume_ME + compared


def _decode(steps: Thresholds, code: int) -> Configuration:
    (exit_, before, step), (last, _, _) = decode_steps(steps, len(steps.values), 1, code)
    threshold = float(steps.values[exit_][before][step])
    return Choice(before), Choice(exit_, 0, threshold), Choice(last)


def _decode_middle(steps: Thresholds, before: Arrays, code: int) -> Configuration:
    middle, deep, (last, _, _) = decode_steps(steps, len(steps.values), 2, code)
    return (
        Choice(int(before[middle[1]])),
        *(Choice(e, 0, float(steps.values[e][signal][step])) for e, signal, step in (middle, deep)),
        Choice(last),
    )
