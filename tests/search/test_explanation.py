"""What holds an answer back and what other limits would buy, against plain enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest

from mess.errors import InfeasibleError
from mess.search.answers.answer import search
from mess.search.answers.explanation import explain
from mess.search.answers.infeasible import Best
from mess.search.exact.cover import cover
from mess.search.exact.workers import Workers
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.definition import Configuration, Evaluation
from mess.search.problem.front import Front, FrontPoint, proven_optimum, relaxed_optimum
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.settings import SETTINGS
from mess.search.problem.tables import Tables
from tests.search.spaces import space_of
from tests.seeds import first_drawn, seeded

Cache = tuple[Tables, dict[str, Cost]]
UNITS = {"macs": 1000.0, "latency": 1 / 64, "params": 10.0}
FIELDS = {"latency": "max_latency_ms", "macs": "max_macs", "params": "max_params"}
TARGETS = ("latency", "macs", "params", "accuracy")


class Run(NamedTuple):
    """One configuration of a space, run through the plain definition."""

    order: int
    configuration: Configuration
    evaluation: Evaluation


class Space:
    """Every configuration of a request's space with at most two exits, and its optima by scans."""

    def __init__(self, cache: Cache, request: Request) -> None:
        tables, costs = cache
        self.goal = Goal.of(tables, to_ticks(tables, costs), request)
        self.runs = [
            Run(order, configuration, self.goal.evaluate(configuration))
            for order, configuration in enumerate(space_of(tables, request))
        ]
        self.searches = 0

    @property
    def front(self) -> tuple[FrontPoint[Configuration], ...]:
        front: Front[Configuration] = Front()
        for run in self.runs:
            cost = run.evaluation.totals[self.goal.front_metric]
            miou = self.goal.quality_steps(run.evaluation)
            front.insert(FrontPoint(cost, miou, run.order, run.configuration))
        return front.points

    def best(self, goal: Goal) -> Run | None:
        """The optimum of a goal on this space."""
        allowed = [run for run in self.runs if goal.meets(run.evaluation)]
        return min(allowed, default=None, key=lambda run: rank(goal, run))

    def solve(self, goal: Goal) -> Best | None:
        self.searches += 1
        run = self.best(goal)
        return None if run is None else Best.of(goal, run.configuration)


def rank(goal: Goal, run: Run) -> tuple[int, int, int]:
    cost = run.evaluation.totals[goal.front_metric]
    miou = -goal.quality_steps(run.evaluation)
    pair = (miou, cost) if goal.request.target == "accuracy" else (cost, miou)
    return (*pair, run.order)


def drawn(rng: np.random.Generator, cache: Cache, setting: str, target: str) -> Request:
    """Limits on and beside configurations of the space, several at once now and then."""
    stat = str(rng.choice(["mean", "p90"]))
    plain = Request(setting=setting, target=target, latency_stat=stat, max_exits=2)
    runs = Space(cache, plain).runs
    near = runs[rng.integers(len(runs))].evaluation
    limits: dict[str, Any] = {}
    for metric, name in FIELDS.items():
        if rng.random() < 0.35 and near.costs[metric] > 0:
            limits[name] = near.costs[metric] * float(rng.choice([1.0, 1.2, 1.5]))
    if rng.random() < 0.6:
        limits["min_miou"] = max(0.0, near.miou - float(rng.choice([0.0, 0.01, 0.05])))
    if rng.random() < 0.6:
        limits["max_error"] = float(rng.choice([0.0, 0.02, 0.1, 0.3]))
    if setting == "anytime" and rng.random() < 0.7:
        metric = replace(plain, **limits).cost_metric(UNITS)
        limits["checkpoints"] = tuple(
            (
                None if rng.random() < 0.25 else float(rng.integers(2, 30)) * UNITS[metric],
                float(rng.choice([0, 0.1, 0.3])),
            )
            for _ in range(rng.integers(1, 3))
        )
    return replace(plain, **limits)


def spaces(make_cache: Any, seed: int) -> Iterator[Space]:
    """A feasible space of every setting and target."""
    rng = np.random.default_rng(seeded(seed))
    cache = make_cache(
        rng,
        points=int(rng.integers(2, 5)),
        per_point=3,
        images=int(rng.integers(2, 8)),
        signals=int(rng.integers(1, 3)),
        twins=seed % 4 == 0,
    )
    for setting, target in product(SETTINGS, TARGETS):
        space = Space(cache, drawn(rng, cache, setting, target))
        if space.best(space.goal) is not None:
            yield space


def without_each(request: Request) -> dict[str, Request]:
    """The request without each of its constraints, by the name that an explanation uses."""
    names = ("max_error", "min_miou", *FIELDS.values())
    fewer = {
        name: replace(request, **{name: None})
        for name in names
        if getattr(request, name) is not None
    }
    for index, (cost, miou) in enumerate(request.checkpoints):
        if miou > 0:
            points = list(request.checkpoints)
            points[index] = (cost, 0.0)
            fewer[f"checkpoints[{index}]"] = replace(request, checkpoints=tuple(points))
    return fewer


def as_goal(space: Space, request: Request) -> Goal:
    """The goal of a request, about the same front: limits that come and go do not change that."""
    asked = Goal.of(space.goal.tables, space.goal.ticks, request)
    if asked.front_metric == space.goal.front_metric:
        return asked
    return replace(space.goal, request=request, limits=asked.limits)


@pytest.mark.parametrize("seed", range(15))
def test_binding_is_what_improves_when_removed(make_cache: Any, seed: int) -> None:
    for space in spaces(make_cache, seed):
        goal, best = space.goal, space.best(space.goal)
        assert best is not None
        expected = []
        for name, request in without_each(goal.request).items():
            relaxed = as_goal(space, request)
            better = space.best(relaxed)
            assert better is not None
            if relaxed.objective(better.evaluation) < goal.objective(best.evaluation):
                expected.append(name)
        for front in (space.front, None):
            told = explain(goal, front, best.configuration, space.solve)
            assert sorted(told["binding"]) == sorted(expected)


@pytest.mark.parametrize("seed", range(15))
def test_a_front_proves_optima_and_bounds(make_cache: Any, seed: int) -> None:
    for space in spaces(make_cache, seed):
        best = space.best(space.goal)
        assert best is not None
        limit = relaxed_optimum(space.goal, space.front)
        assert limit is not None
        at_best = space.goal.objective(best.evaluation)
        assert space.goal.objective(space.goal.evaluate(limit.payload)) <= at_best
        proven = proven_optimum(space.goal, space.front)
        assert proven is None or proven.payload == best.configuration
        others = {*space.goal.limits} - {space.goal.front_metric}
        if not others and len(space.goal.checkpoints) < 2:
            assert proven is not None


@pytest.mark.parametrize("seed", range(15))
def test_purchases_are_what_the_asked_for_request_gives(make_cache: Any, seed: int) -> None:
    for space in spaces(make_cache, seed):
        goal, best = space.goal, space.best(space.goal)
        assert best is not None
        told = explain(goal, space.front, best.configuration, space.solve)
        others = {*goal.limits} - {goal.front_metric}
        for offer in told["buys"]:
            request = offer["request"]
            if request is None:
                assert others or len(goal.checkpoints) > 1
                continue
            asked = Goal.of(goal.tables, goal.ticks, replace(goal.request, **request))
            assert asked.front_metric == goal.front_metric
            bought = space.best(asked)
            assert bought is not None
            figures = offer["configuration"]
            names = [goal.tables.exit_ids[choice.exit] for choice in bought.configuration]
            assert figures["exits"] == names
            assert figures["cost"] == bought.evaluation.costs[goal.front_metric]
            assert figures["miou"] == goal.quality(bought.evaluation)
            which = "cost" if offer["changes"] == "cost" else "miou"
            assert offer["to"] == figures[which]
            assert abs(offer["to"] - offer["from"]) == offer["gain"] >= 0
            # Nobody is sold what breaks a limit that was not to be relaxed.
            assert goal.relaxed([goal.front_metric, "accuracy"], "macs").meets(bought.evaluation)


@pytest.mark.parametrize("seed", range(15))
def test_neighbours_are_the_nearest_on_the_front(make_cache: Any, seed: int) -> None:
    for space in spaces(make_cache, seed):
        goal, best = space.goal, space.best(space.goal)
        assert best is not None
        metric, front = goal.front_metric, space.front
        told = explain(goal, front, best.configuration, space.solve)["next"]
        cost, miou = best.evaluation.totals[metric], goal.quality_steps(best.evaluation)
        loose = goal.relaxed([metric, "accuracy"], goal.request.target)
        fits = [point for point in front if loose.meets(goal.evaluate(point.payload))]
        cheaper = [point for point in fits if point.cost < cost]
        accurate = goal.relaxed([metric], goal.request.target)
        better = [
            point
            for point in fits
            if point.miou > miou and accurate.meets(goal.evaluate(point.payload))
        ]
        for name, point in (("cheaper", cheaper[-1:]), ("better", better[:1])):
            if not point:
                assert told[name] is None
                continue
            figures = goal.evaluate(point[0].payload)
            assert told[name] == {
                "exits": [goal.tables.exit_ids[choice.exit] for choice in point[0].payload],
                "miou": goal.quality(figures),
                "error": goal.baseline.miou - goal.quality(figures),
                "cost": figures.costs[metric],
            }


def test_one_limit_and_a_front_need_no_search(make_cache: Any) -> None:
    def spaces(rng: np.random.Generator) -> list[Space]:
        cache = make_cache(rng, points=3, per_point=3, images=7)
        return [
            Space(cache, Request(setting=setting, target=target, max_error=0.5, max_exits=2))
            for setting, target in product(SETTINGS, TARGETS)
        ]

    # In the anytime setting an exit must be there by half of the baseline's cost.
    feasible = first_drawn(5, spaces, lambda some: all(s.best(s.goal) for s in some))
    for space in feasible:
        best = space.best(space.goal)
        assert best is not None
        explain(space.goal, space.front, best.configuration, space.solve)
        assert space.searches == 0


@pytest.mark.parametrize("setting", SETTINGS)
def test_purchases_agree_with_searching_again(make_cache: Any, setting: str) -> None:
    """The searcher's own front, and its own answer to what the explanation says to ask for."""
    tables, costs = make_cache(
        np.random.default_rng(seeded(28)), points=4, per_point=4, images=25, classes=9, signals=2
    )
    told = 0
    asked: list[tuple[str, dict[str, Any]]] = [
        ("macs", {"max_error": 0.05}),
        ("latency", {"max_error": 0.02, "min_miou": 0.1}),
        ("accuracy", {"max_macs": 9000.0}),
        ("accuracy", {"max_latency_ms": 0.2, "max_params": 150.0}),
    ]
    for target, limits in asked:
        request = Request(setting=setting, target=target, thresholds=4, **limits)
        try:
            answer = search(tables, costs, request, threads=1)
        except InfeasibleError:
            continue
        goal = answer.goal
        explanation = explain(goal, answer.front, answer.configuration, searched)
        for offer in explanation["buys"]:
            again = search(tables, costs, replace(request, **offer["request"]), threads=1)
            assert offer["configuration"]["exits"] == [
                tables.exit_ids[choice.exit] for choice in again.configuration
            ]
            assert offer["configuration"]["cost"] == again.evaluation.costs[goal.front_metric]
            told += 1
    assert told >= 2


def searched(goal: Goal) -> Best | None:
    """The optimum of a relaxed goal, by the searcher."""
    best = cover(goal, collect=False, workers=Workers(threads=1)).found.best
    return None if best is None else Best.of(goal, best[1])
