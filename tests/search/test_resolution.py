"""A front to a resolution misses no point of the whole front by more than it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mess.search.answers.answer import search
from mess.search.exact.cover import collect
from mess.search.exact.resolution import EXACT, Resolution, hurdles
from mess.search.exact.workers import Workers
from mess.search.problem.costs import to_ticks
from mess.search.problem.front import Point
from mess.search.problem.goal import MIOU_STEPS, Goal
from mess.search.problem.request import Request
from tests.search.test_realistic import network
from tests.seeds import seeded

BLOCKS, CACHES_A_BLOCK = 10, 50


def random_resolution(rng: np.random.Generator, points: tuple[Point, ...]) -> Resolution:
    """Each of the three at times not at all."""
    floor = int(rng.integers(points[0].miou, points[-1].miou + 1)) if rng.random() < 0.6 else -1
    return Resolution(
        miou=int(rng.random() ** 2 * 0.3 * MIOU_STEPS * (rng.random() < 0.8)),
        cost=float(rng.random() * 0.5 * (rng.random() < 0.8)),
        floor=floor,
    )


def within(point: Point, of: tuple[Point, ...], resolution: Resolution) -> bool:
    """By the definition, in whole numbers."""
    return any(
        (q.cost <= point.cost and q.miou >= point.miou - resolution.miou)
        or (q.cost <= (1 + resolution.cost) * point.cost and q.miou >= point.miou)
        for q in of
    )


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_point_of_the_whole_front_is_farther_away_than_promised(
    make_cache: Any, block: int
) -> None:
    """500 random caches, with both sums and paths as costs; also where nothing may be left out."""
    for number in range(CACHES_A_BLOCK):
        rng = np.random.default_rng(seeded(1000 * block + number))
        tables, costs = make_cache(
            rng, points=3, images=int(rng.integers(4, 12)), signals=1 + number % 2,
            twins=number % 3 == 0,
        )  # fmt: skip
        request = Request(
            target=str(rng.choice(["macs", "latency", "params"])), max_error=1.0, max_exits=4,
            latency_stat=str(rng.choice(["mean", "p90"])), thresholds=3,
            shared_threshold=bool(rng.random() < 0.2),
        )  # fmt: skip
        whole = search(tables, costs, request, threads=1).front
        goal = Goal.of(tables, to_ticks(tables, costs), request)
        assert collect(goal, EXACT, Workers(1)) == whole
        resolution = random_resolution(rng, whole)
        found = collect(goal, resolution, Workers(1))
        reaching = [point for point in whole if point.miou >= resolution.floor]
        assert all(within(point, found, resolution) for point in reaching)
        # And what it has is no farther behind.
        for point in found:
            cheaper = [p.miou for p in reaching if (1 + resolution.cost) * p.cost <= point.cost]
            assert max(cheaper, default=0) <= point.miou + resolution.miou


def test_where_the_bound_rules_out_nearly_everything() -> None:
    left_out = 0
    for seed in range(4):
        tables, costs = network(seed)
        request = Request(target="macs", max_error=0.02, max_exits=4, thresholds=16)
        whole = search(tables, costs, request).front
        goal = Goal.of(tables, to_ticks(tables, costs), request)
        reaching = [point for point in whole if point.miou >= goal.miou_limit]
        for miou, cost in ((0.0005, 0.005), (0.0, 0.05), (0.01, 0.0)):
            resolution = Resolution(int(miou * MIOU_STEPS), cost).above(goal.miou_limit)
            found = collect(goal, resolution)
            assert all(within(point, found, resolution) for point in reaching)
            left_out += len({*reaching} - {*found})
    # Otherwise nothing was saved.
    assert left_out


def test_hurdles_by_hand() -> None:
    cost, miou = np.array([100, 200, 300]), np.array([10, 50, 60])
    found = hurdles(cost, miou, Resolution(miou=5, cost=0.1))
    # 200 / 1.1 is 181.8, and what costs 182 still has a point that costs a tenth more at most.
    assert found[0].tolist() == [91, 100, 182, 200, 273, 300]
    assert found[1].tolist() == [10, 15, 50, 55, 60, 65]
    found = hurdles(cost, miou, Resolution(miou=5, cost=0.1, floor=52))
    assert found[0].tolist() == [91, 200, 273, 300]
    assert found[1].tolist() == [52, 55, 60, 65]
