"""One round of the race: every method on the same cache, one after another, on one thread."""

from __future__ import annotations

import time
from functools import lru_cache, partial

from random_caches import CacheSize
from results import Results, Row
from search_baselines import METHODS, Race
from search_enumeration import Enumeration, seconds_per_configuration
from search_exact import cache_size, cached_cache, measure, request_of
from search_space import Figures, Space, check_evaluator

from mess.search.problem.costs import to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request

EXACT, EXACT_FRONT = "exact", "exact with front"
NUMPY = {"NumPy": False, "NumPy, cost first": True}
"""Enumerations by name, and whether they look at the cost first."""

WITHIN = 1.01
"""A sampler has arrived at so many times the optimum's cost."""


def race(
    results: Results,
    case: Row,
    *,
    sample_seconds: float,
    whole: int,
    front: bool,
    patience: float | None,
) -> list[Row]:
    """All rows of a round; the seed of `case` chooses the cache and drives the samplers.

    Enumeration runs whole up to `whole` configurations, otherwise on a sample of so many seconds.
    `front` asks for the exact search with its front too. Samplers have `patience` times the seconds
    of the exact search, or do not run. A row's `kind` says what its `seconds` are:
    "measured", "extrapolated", or "not reached" when a sampler was stopped then.
    """

    def exact(method: str, front: bool) -> Row:
        ours = {**case, "method": method, "front": front, "threads": 1}
        return results.measure(ours, lambda: measure(ours) | {"kind": "measured"})

    optimum = exact(EXACT, front=False)
    rows = [optimum, exact(EXACT_FRONT, front=True)] if front else [optimum]
    for method, cost_first in NUMPY.items():
        measurement = partial(enumerated, optimum, cost_first, sample_seconds, whole)
        rows.append(results.measure({**case, "method": method}, measurement))
    if patience is not None:
        for method in METHODS:
            measurement = partial(sampled, optimum, method, patience * optimum["seconds"])
            theirs = {**case, "method": method, "patience": patience}
            rows.append(results.measure(theirs, measurement))
    return rows


def enumerated(optimum: Row, cost_first: bool, sample_seconds: float, whole: int) -> Row:
    """Enumeration, whole or extrapolated; `timed` configurations were covered for it."""
    space = space_of(optimum)
    if space.size != optimum["configurations"]:
        raise AssertionError(f"{space.size} configurations, but by the exact search {optimum}")
    start = time.perf_counter()
    enumeration = Enumeration(space, cost_first)
    if space.size <= whole:
        enumeration.scan_whole()
        seconds = time.perf_counter() - start
        if enumeration.best is None or enumeration.best.total != optimum["total"]:
            raise AssertionError(f"{enumeration.best}, but by the exact search {optimum}")
        return {"seconds": seconds, "kind": "measured", "timed": enumeration.configurations}
    enumeration.best = Figures(optimum["total"], 0)
    early = optimum["max_exits"] - 1
    each, timed = seconds_per_configuration(enumeration, early, sample_seconds, optimum["seed"])
    return {"seconds": each * space.size, "kind": "extrapolated", "timed": timed}


def sampled(optimum: Row, method: str, limit: float) -> Row:
    """A sampler until it comes close to the optimum; `gap` is by how much it still is dearer."""
    run = Race(space_of(optimum), WITHIN * optimum["total"], limit)
    METHODS[method](run, optimum["seed"])
    if run.best is not None and run.best < optimum["total"]:
        raise AssertionError(f"{method} found {run.best}, but the exact search {optimum}")
    return {
        "seconds": run.seconds if run.reached is None else run.reached,
        "kind": "not reached" if run.reached is None else "measured",
        "evaluated": run.evaluated,
        "gap": None if run.best is None else run.best / optimum["total"] - 1,
    }


def space_of(case: Row) -> Space:
    """The baselines' view of the space of a case; the last one is kept."""
    return _space(cache_size(case), case["seed"], request_of(case))


@lru_cache(maxsize=1)
def _space(size: CacheSize, seed: int, request: Request) -> Space:
    tables, costs = cached_cache(size, seed)
    space = Space.of(Goal.of(tables, to_ticks(tables, costs), request))
    check_evaluator(space, seed)
    return space
