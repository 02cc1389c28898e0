"""Exhaustive search of the space of a request's setting, and the statement of that space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mess.errors import ConfigError
from mess.search.exact.anytime import search_anytime
from mess.search.exact.input_dependent import collect_dependent, search_dependent
from mess.search.exact.one_exit import search_single
from mess.search.exact.pair_signals import (
    collect_pairs,
    count_pairs,
    pair_thresholds_by_early,
    search_pairs,
)
from mess.search.exact.resolution import Resolution
from mess.search.exact.workers import ALL_CORES, Workers
from mess.search.problem.definition import Configuration
from mess.search.problem.findings import Findings
from mess.search.problem.front import Point
from mess.search.problem.goal import Goal
from mess.search.problem.settings import Anytime, InputDependent
from mess.search.problem.space import (
    count_choices,
    count_configurations,
    describe_space,
    threshold_grid,
    thresholds_by_early,
)

MOST_EXITS = 4
"""Exits in all that the input-dependent search covers."""

Progress = Callable[[int, int], None]
"""Hears how much of a search is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Covered:
    """Findings, the number of configurations of the space, and the space in words and numbers."""

    found: Findings
    configurations: int
    space: dict[str, Any]


def cover(
    goal: Goal,
    collect: bool = True,
    progress: Progress | None = None,
    workers: Workers = ALL_CORES,
) -> Covered:
    """Search the whole space; `collect` asks for the front besides the best configuration.

    An interrupt (Ctrl-C) ends the search early: `found.proven` and `found.front_proven` say what is
    complete. It is passed on as long as nothing has been found, and in a team.
    """
    search_space = _COVERS.get(goal.request.setting, _cover_single_exits)
    return search_space(goal, collect, progress or (lambda _done, _total: None), workers)


def _cover_single_exits(goal: Goal, _collect: bool, hear: Progress, _workers: Workers) -> Covered:
    """Every exit that may answer, alone: so few that they are tried one by one."""
    found, exits = Findings(), goal.setting.answering(goal.tables).tolist()
    search_single(goal, found, exits)
    found.proven = found.front_proven = True
    hear(len(exits), len(exits))
    space = describe_space(goal, exits=len(exits))
    return Covered(found=found, configurations=len(exits), space=space)


def _cover_dependent(goal: Goal, collect: bool, hear: Progress, workers: Workers) -> Covered:
    tables, shared = goal.tables, goal.request.shared_threshold
    compares = tables.pairs is not None
    if min(goal.request.max_exits, tables.points) > MOST_EXITS:
        sampled = ", or search with `--algorithm optuna`, which proves nothing"
        raise ConfigError(
            f"the exhaustive search covers at most {MOST_EXITS} exits in all, got "
            f"max_exits={goal.request.max_exits}; lower it to {MOST_EXITS}"
            f"{'' if compares or shared else sampled}"
        )
    found = Findings()
    steps_by_early = pair_thresholds_by_early(goal) if compares else thresholds_by_early(goal)
    count = count_pairs if compares else count_configurations
    counts = {0: tables.exits} | {
        early: count(tables, steps, early, shared=shared) for early, steps in steps_by_early.items()
    }
    total = sum(counts.values())
    # For the front what has several early exits is searched a second time.
    work = total + (sum(n for early, n in counts.items() if early > 1) if collect else 0)

    def done(early: int, share: float) -> None:
        before = sum(n for size, n in counts.items() if size < early)
        again = total - counts[0] - counts[1] if found.proven else 0
        hear(before + again + int(share * counts[early]), work)

    with _interruptible(found, workers):
        explore = search_pairs if compares else search_dependent
        explore(goal, found, steps_by_early, collect, workers, done)
    sizes = {early: threshold_grid(goal, early) for early in steps_by_early}
    exits = {early: early + 2 if compares and early else early + 1 for early in counts}
    space = describe_space(
        goal,
        max_exits=goal.request.max_exits,
        signals=list(tables.signal_names),
        thresholds={str(early): "all" if size is None else size for early, size in sizes.items()},
        configurations_by_exits={str(exits[early]): count for early, count in counts.items()},
    )
    return Covered(found=found, configurations=total, space=space)


def _cover_anytime(goal: Goal, collect: bool, hear: Progress, workers: Workers) -> Covered:
    found = Findings()
    with _interruptible(found, workers):
        search_anytime(goal, found, collect, workers, lambda share: hear(int(1000 * share), 1000))
    space = describe_space(
        goal,
        max_exits=goal.request.max_exits,
        checkpoint_metric=goal.front_metric,
    )
    configurations = count_choices(goal.tables, goal.request.max_exits)
    return Covered(found=found, configurations=configurations, space=space)


_COVERS: dict[str, Callable[[Goal, bool, Progress, Workers], Covered]] = {
    InputDependent.name: _cover_dependent,
    Anytime.name: _cover_anytime,
}
"""How a setting's space is covered; in a setting that is not named one exit answers alone."""


def optimum(goal: Goal, workers: Workers = ALL_CORES) -> Configuration | None:
    """The best of the whole space; an interrupt ends what rests on it, for it has no optimum."""
    found = cover(goal, collect=False, workers=workers).found
    if not found.proven:
        raise KeyboardInterrupt
    return None if found.best is None else found.best[1]


def collect(goal: Goal, resolution: Resolution, workers: Workers = ALL_CORES) -> tuple[Point, ...]:
    """The front of the whole space alone, to a resolution, whatever the limits."""
    if goal.request.setting != InputDependent.name:
        whole = cover(goal, workers=workers).found
        if not whole.front_proven:
            raise KeyboardInterrupt
        return whole.front.points
    found = Findings()
    if goal.tables.pairs is not None:
        collect_pairs(goal, found, pair_thresholds_by_early(goal), resolution, workers)
    else:
        collect_dependent(goal, found, thresholds_by_early(goal), resolution, workers)
    return found.front.points


@contextmanager
def _interruptible(found: Findings, workers: Workers) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        # Processes of a team are interrupted at different places.
        if found.best is None or workers.team:
            raise
