"""Every change that an infeasible request is told makes it feasible, and hardly more would do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mess.errors import InfeasibleError
from mess.search.answers.answer import Answer, search
from mess.search.answers.infeasible import round_up
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.definition import Choice, evaluate
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.settings import SETTINGS
from mess.search.problem.tables import Tables
from tests.seeds import seeded

Cache = tuple[Tables, dict[str, Cost]]
NUMBER = r"(\d[\d.]*(?:e[+-]?\d+)?)"
COST = rf"(early|{NUMBER[1:-1]})"
FIELDS = {
    "--max-latency": "max_latency_ms",
    "--max-macs": "max_macs",
    "--max-params": "max_params",
    "--max-error": "max_error",
    "--min-miou": "min_miou",
}
UNITS = {"macs": 1000.0, "latency": 1 / 64, "params": 10.0}


def refusal(cache: Cache, request: Request) -> str | None:
    """The message of an infeasible request."""
    tables, costs = cache
    try:
        search(tables, costs, request, threads=1)
    except InfeasibleError as error:
        return str(error)
    return None


def advice(message: str) -> list[str]:
    """The alternatives that a message ends with."""
    last = re.split(r"\.\s(?=[A-Z])", message)[-1].removesuffix(".")
    last = last.removeprefix("No single change is enough: ")
    return (last[0].lower() + last[1:]).split(", or ")


def heeded(request: Request, alternative: str) -> Request:
    """The request with the changes of an alternative."""
    points = list(request.checkpoints)
    for change in alternative.split(" and "):
        limit = re.fullmatch(rf"(?:raise|lower) (--[a-z-]+) to {NUMBER}", change)
        given = re.fullmatch(rf"give --checkpoint {NUMBER}={NUMBER}", change)
        replaced = re.fullmatch(
            rf"replace --checkpoint {COST}={NUMBER} with --checkpoint {COST}={NUMBER}", change
        )
        if limit:
            request = replace(request, **{FIELDS[limit[1]]: float(limit[2])})
        elif given:
            points.append((float(given[1]), float(given[2])))
        else:
            assert replaced, change
            old = (cost_of(replaced[1]), float(replaced[2]))
            points[points.index(old)] = (cost_of(replaced[3]), float(replaced[4]))
    return replace(request, checkpoints=tuple(points))


def cost_of(text: str) -> float | None:
    return None if text == "early" else float(text)


def drawn(rng: np.random.Generator, setting: str, answer: Answer) -> Request:
    """A request that asks for a little more than some instances give."""
    figures, target = answer.evaluation, answer.goal.request.target
    limits: dict[str, Any] = {}
    for metric, name in (
        ("latency", "max_latency_ms"),
        ("macs", "max_macs"),
        ("params", "max_params"),
    ):
        if rng.random() < 0.4:
            limits[name] = figures.costs[metric] * float(rng.uniform(0.3, 1.1)) + 1e-3
    if rng.random() < 0.5:
        limits["max_error"] = float(rng.choice([0.0, 0.003]))
    if rng.random() < 0.3:
        limits["min_miou"] = min(1.0, figures.miou * float(rng.uniform(0.9, 1.2)))
    if setting == "anytime" and rng.random() < 0.8:
        metric = Request(setting=setting, target=target, **limits).cost_metric(UNITS)
        limits["checkpoints"] = tuple(
            (
                None
                if rng.random() < 0.25
                else figures.costs[metric] * float(rng.uniform(0.05, 0.9)) + 1e-3,
                min(1.0, figures.miou * float(rng.uniform(0.6, 1.3))),
            )
            for _ in range(rng.integers(1, 4))
        )
    return Request(setting=setting, target=target, thresholds=3, **limits)


def infeasible_requests(
    make_cache: Any, setting: str, seed: int
) -> Iterator[tuple[Cache, Request, str]]:
    rng = np.random.default_rng(seeded(seed))
    tables, costs = cache = make_cache(rng, points=3, per_point=3, images=6, signals=1)
    for target in ("latency", "macs", "params", "accuracy"):
        plain = Request(setting=setting, target=target, thresholds=3)
        answer = search(tables, costs, plain, threads=1)
        for _ in range(4):
            request = drawn(rng, setting, answer)
            message = refusal(cache, request)
            if message is not None:
                yield cache, request, message


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("seed", range(6))
def test_every_suggestion_is_feasible(make_cache: Any, setting: str, seed: int) -> None:
    for cache, request, message in infeasible_requests(make_cache, setting, seed):
        assert "_" not in message
        alternatives = advice(message)
        assert alternatives
        for alternative in alternatives:
            assert refusal(cache, heeded(request, alternative)) is None, (message, alternative)


def deliveries(cache: Cache) -> list[tuple[float, float]]:
    """Cost in MACs and mIoU of every answer that an exit can give alone, before the final one."""
    tables, costs = cache
    ticks = to_ticks(tables, costs)
    early = [exit_ for exit_ in range(tables.exits) if tables.point[exit_] < tables.points]
    figures = [evaluate(tables, ticks, (Choice(exit_),)) for exit_ in (*early, tables.final)]
    return [(figure.costs["macs"], figure.miou) for figure in figures]


@pytest.mark.parametrize("seed", range(4))
def test_a_missed_checkpoint_is_told_the_best_of_both_kinds(make_cache: Any, seed: int) -> None:
    rng = np.random.default_rng(seeded(seed))
    cache = make_cache(rng, points=4, per_point=4, images=8)
    answers = deliveries(cache)
    costs, mious = zip(*answers, strict=True)
    for cost, miou in rng.uniform((0, 0), (max(costs), max(mious)), (12, 2)).tolist():
        asked = Request(setting="anytime", target="macs", checkpoints=((cost, miou),))
        message = refusal(cache, asked)
        assert (message is None) == any(c <= cost and m >= miou for c, m in answers)
        if message is None:
            continue
        moves = [heeded(asked, alternative).checkpoints[0] for alternative in advice(message)]
        now = max((m for c, m in answers if c <= cost), default=0.0)
        lower = [m for c, m in moves if c == cost]
        assert len(lower) == (now > 0)
        assert all(0 <= now - m < 1e-3 * now for m in lower)
        first = min(c for c, m in answers if m >= miou)
        later = [c for c, m in moves if m == miou and c is not None]
        assert len(later) == 1
        assert 0 <= later[0] - first < 1e-3 * first


def test_a_checkpoint_beyond_every_exit_is_told_the_most_accurate(make_cache: Any) -> None:
    cache = make_cache(np.random.default_rng(seeded(3)), points=4, per_point=4, images=8)
    answers = deliveries(cache)
    most = max(miou for _, miou in answers)
    first = min(cost for cost, miou in answers if miou == most)
    message = refusal(cache, Request(setting="anytime", target="macs", checkpoints=((1.0, 1.0),)))
    assert message is not None
    assert "by 1 MACs the most accurate choice delivers nothing" in message
    assert f"no choice ever delivers more than mIoU {most:.4g}" in message
    assert advice(message) == [
        f"replace --checkpoint 1=1 with --checkpoint {round_up(first):.10g}={-round_up(-most):.10g}"
    ]


def test_what_no_early_exit_delivers_is_told_the_most_accurate(make_cache: Any) -> None:
    cache = make_cache(np.random.default_rng(seeded(3)), points=4, per_point=4, images=8)
    answers = deliveries(cache)
    most = max(miou for _, miou in answers[:-1])
    asked = Request(setting="anytime", target="macs", checkpoints=((None, most + 1e-3),))
    message = refusal(cache, asked)
    assert message is not None
    assert "by an early exit the most accurate choice delivers mIoU" in message
    (move,) = [heeded(asked, alternative).checkpoints[0] for alternative in advice(message)]
    assert move[0] is None
    # Of 1e-12, the steps in which mIoU is compared.
    assert -1e-12 <= most - move[1] < 1e-3 * most


def test_the_default_checkpoint_is_told_as_error_or_as_a_checkpoint(make_cache: Any) -> None:
    told = 0
    for seed in range(10):
        cache = make_cache(np.random.default_rng(seeded(seed)), points=4, per_point=4, images=8)
        message = refusal(cache, Request(setting="anytime", target="macs", max_error=0.0))
        if message is None or "delivers nothing" in message:
            continue
        assert "(half of the network's own)" in message
        error, checkpoint = advice(message)
        assert error.startswith("raise --max-error to ")
        assert checkpoint.startswith("give --checkpoint ")
        told += 1
    assert told


def test_an_anytime_answer_is_never_better_than_the_network(make_cache: Any) -> None:
    """Whatever earlier exits deliver: that the network's own head answers in the end is missed."""
    tables, costs = make_cache(np.random.default_rng(seeded(4)), points=3, per_point=2, images=8)
    hits = tables.intersection.copy()
    hits[tables.final] //= 2
    worse = replace(tables, intersection=hits, lost=None)
    final = Goal.of(worse, to_ticks(worse, costs), Request(target="macs")).baseline.miou
    asked = Request(setting="anytime", target="macs", min_miou=final + 0.01)
    message = refusal((worse, costs), asked)
    assert message is not None
    assert (
        f"every anytime instance ends in the network's own head, with mIoU {final:.4g}" in message
    )
    assert "short" not in message
    assert "ever delivers" not in message


def test_every_checkpoint_that_is_missed_for_itself_is_named(make_cache: Any) -> None:
    cache = make_cache(np.random.default_rng(seeded(3)), points=4, per_point=4, images=8)
    message = refusal(
        cache, Request(setting="anytime", target="macs", checkpoints=((1.0, 1.0), (2.0, 0.9)))
    )
    assert message is not None
    for cost in (1, 2):
        assert f"by {cost} MACs the most accurate choice among all delivers nothing" in message
    assert "No single change is enough: " in message
