"""A search that is stopped says how far from the best it may be, and never that it is optimal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import mess.search.answers.answer as answer_module
import mess.search.exact.cover as cover_module
from mess.search.answers.answer import search
from mess.search.answers.gap import gap, highest_miou, lowest_cost
from mess.search.exact.cover import Covered, collect, optimum
from mess.search.exact.resolution import EXACT
from mess.search.exact.workers import Workers
from mess.search.guarantees.picking import picks
from mess.search.problem.costs import to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.settings import SETTINGS
from tests.search.conftest import MakeCache
from tests.search.test_realistic import network
from tests.seeds import seeded


def interrupt_at(share: float) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("target", ["latency", "macs", "params", "accuracy"])
@pytest.mark.parametrize("stat", ["mean", "p90"])
def test_no_answer_is_better_than_the_relaxation(
    make_cache: MakeCache, setting: str, target: str, stat: str
) -> None:
    for seed in range(12):
        tables, costs = make_cache(
            np.random.default_rng(seeded(seed)), images=5, twins=seed % 2 == 0
        )
        limits: dict[str, Any] = {"max_error": 0.05 * (seed % 3)} if target != "accuracy" else {}
        request = Request(setting=setting, target=target, latency_stat=stat, **limits)
        if setting == "anytime" and target != "accuracy":
            baseline = Goal.of(tables, to_ticks(tables, costs), request).baseline
            request = Request(
                setting=setting,
                target=target,
                latency_stat=stat,
                checkpoints=((baseline.costs[target] + 1, 0.0),),
                **limits,
            )
        answer = search(tables, costs, request, front=False, threads=1)
        goal = answer.goal
        if target == "accuracy":
            best = goal.quality(answer.evaluation) * max(1, len(goal.checkpoints))
            assert best <= highest_miou(goal) + 1e-12
            assert gap(goal, -round(best * 1e12)) >= 0
        else:
            best = answer.evaluation.totals[target]
            assert lowest_cost(goal) <= best * (1 + 1e-12)
            assert 0 <= gap(goal, best) <= 1
            # Twice the optimum is at least half its cost away from it.
            assert best == 0 or gap(goal, 2 * best) >= 0.5 - 1e-9


def test_the_relaxation_says_something_on_a_network() -> None:
    """Not only that costs are positive."""
    tables, costs = network(0)
    goal = Goal.of(tables, to_ticks(tables, costs), Request(target="macs", max_error=0.0))
    cheapest = min(costs["macs"].backbone[1] + costs["macs"].exit[1:3])
    assert lowest_cost(goal) > 1.05 * cheapest * tables.images
    assert highest_miou(goal) < 1


def test_interrupted_before_the_answer_is_proven() -> None:
    tables, costs = network(1)
    request = Request(target="latency", max_error=0.01, thresholds=16)
    whole = search(tables, costs, request)
    part = search(tables, costs, request, progress=interrupt_at(1e-3))
    assert part.gap is not None
    assert 0 < part.gap < 1
    result = json.loads(json.dumps(part.to_result()))
    assert not result["search"]["optimal"]
    assert result["explanation"] == {}
    assert not any(row["proven"] for row in part.front_rows())
    covered = part.evaluated + sum(part.pruned.values())
    assert covered < part.configurations == whole.configurations
    # What it holds is real, and the gap is not too small.
    assert part.evaluation.miou >= part.goal.baseline.miou - 0.01 - 1e-12
    best = whole.evaluation.costs["latency"]
    assert best >= part.evaluation.costs["latency"] * (1 - part.gap) * (1 - 1e-12)


def test_interrupted_before_the_front_is_proven() -> None:
    tables, costs = network(1)
    request = Request(target="latency", max_error=0.01, thresholds=16)
    whole = search(tables, costs, request)
    part = search(tables, costs, request, progress=interrupt_at(0.6))
    assert part.gap == 0
    assert part.to_result()["search"]["optimal"]
    assert part.configuration == whole.configuration
    assert not any(row["proven"] for row in part.front_rows())
    assert all(row["proven"] for row in whole.front_rows())
    assert set(part.to_result()["explanation"]) == {"metric", "unit", "binding"}


def test_interrupted_with_nothing_found() -> None:
    tables, costs = network(1)
    request = Request(target="latency", min_miou=0.999, thresholds=4)
    with pytest.raises(KeyboardInterrupt):
        search(tables, costs, request, progress=interrupt_at(0.0))


def test_what_an_interrupt_leaves_is_no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither alone, nor as a certificate's pick or as where a study starts."""
    tables, costs = network(1)
    goal = Goal.of(tables, to_ticks(tables, costs), Request(target="macs", max_error=0.05))
    assert optimum(goal) is not None
    whole = cover_module.cover

    def interrupted(*arguments: Any, **named: Any) -> Covered:
        covered = whole(*arguments, **named)
        covered.found.proven = covered.found.front_proven = False
        return covered

    monkeypatch.setattr(cover_module, "cover", interrupted)
    monkeypatch.setattr(answer_module, "cover", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimum(goal)
    accurate = replace(goal, request=replace(goal.request, target="accuracy"))
    with pytest.raises(KeyboardInterrupt):
        picks(accurate, (0.0,), Workers(1))
    with pytest.raises(KeyboardInterrupt):
        collect(replace(goal, request=replace(goal.request, setting="budgeted")), EXACT)
    with pytest.raises(KeyboardInterrupt):
        search(tables, costs, goal.request, algorithm="optuna", trials=1)


def test_an_answer_outlives_an_interrupt_of_its_explanation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables, costs = network(1)
    request = Request(setting="budgeted", target="macs", max_error=0.05)
    answer = search(tables, costs, request)
    assert answer.to_result()["explanation"]

    def interrupted(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(answer_module, "explain", interrupted)
    told = answer.to_result()
    assert (told["search"]["optimal"], told["explanation"]) == (True, {})


@pytest.mark.parametrize(
    ("setting", "error"), [("budgeted", 0.02), ("anytime", 0.3), ("input-dependent", 0.02)]
)
def test_an_explanation_needs_no_front(setting: str, error: float) -> None:
    tables, costs = network(1)
    request = Request(setting=setting, target="macs", max_error=error, max_exits=2)
    told = [
        search(tables, costs, request, front=front).to_result()["explanation"]["binding"]
        for front in (True, False)
    ]
    assert told[0] == told[1] == ["max_error"]


def test_a_deadline_that_none_reaches_is_none() -> None:
    tables, costs = network(1)
    for cost in (1e30, 2e15):
        request = Request(setting="anytime", target="macs", checkpoints=((cost, 0.3),), max_exits=2)
        assert search(tables, costs, request).gap == 0
