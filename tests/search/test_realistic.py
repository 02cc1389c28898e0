"""The search where its bound rules out nearly everything, against evaluating everything in NumPy.

The caches of `make_cache` are too small for that: here exits resemble each other, as in a network.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from mess.search.answers.answer import search
from mess.search.problem.costs import Cost
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables
from mess.search.problem.thresholds import Thresholds, thresholds_of
from tests.seeds import seeded

THRESHOLDS = 16
PER_EXIT = {1: None, 2: 16, 3: 6}


def lost_pixels(
    rng: np.random.Generator, label: NDArray[np.int64], hits: NDArray[np.int32], final: int
) -> NDArray[np.int32]:
    """At least what the final exit has more hits, at most what it hits and the others miss."""
    least = np.maximum(hits[final] - hits, 0).sum(axis=2)
    most = np.minimum(hits[final], label - hits).sum(axis=2)
    lost = least + np.floor(0.3 * rng.random(least.shape) * (most - least))
    lost[final] = 0
    return lost.astype(np.int32)


def network(seed: int, classes: int = 7) -> tuple[Tables, dict[str, Cost]]:
    """Four points of two exits: deeper ones fail less, on the same difficult images."""
    rng = np.random.default_rng(seeded(seed))
    images = 60
    point = np.array([4, *np.repeat([1, 2, 3, 4], 2)])
    label = rng.integers(0, 400, (images, classes)) * (rng.random((images, classes)) < 0.5)
    label[:, rng.random(classes) < 0.15] = 0
    label[0, 0] += 1
    difficulty = rng.normal(size=images)
    reach = -1 + 0.9 * point + 0.4 * rng.normal(size=len(point))
    logit = difficulty - reach[:, None] + 0.3 * rng.normal(size=(len(point), images))
    wrong = 0.1 + 0.6 / (1 + np.exp(-1.5 * logit))
    per_class = (wrong[:, :, None] * rng.uniform(0.7, 1.3, (*wrong.shape, classes))).clip(0, 1)
    hits = np.floor(label * (1 - per_class)).astype(np.int32)
    missed = (label - hits).sum(axis=2, keepdims=True)
    extra = np.floor(missed * rng.dirichlet(np.ones(classes), wrong.shape))
    extra[:, :, label.sum(axis=0) == 0] *= rng.random() < 0.5
    sure = -logit + 0.4 * rng.normal(size=logit.shape)
    signals = np.stack([sure, np.rint(4 * sure) / 4], axis=2).astype(np.float32)
    tables = Tables(
        exit_ids=("final", *(f"p{p}-crm{2**k}-b0-fcn" for p in (1, 2, 3, 4) for k in range(2))),
        point=point,
        label=label,
        intersection=hits,
        predicted=hits + extra.astype(np.int32),
        signals=signals[:, :, : 1 + seed % 2],
        signal_names=("sure", "coarse")[: 1 + seed % 2],
        lost=lost_pixels(np.random.default_rng(seeded(seed + 1)), label, hits, final=0),
    )

    def cost(unit: float, latency: bool) -> Cost:
        exits, count = len(point), len(tables.signal_names)

        def part(low: int, high: int, shape: int | tuple[int, int]) -> NDArray[np.float64]:
            return rng.integers(low, high, shape).astype(np.float64) * unit

        return Cost(
            backbone=np.arange(5.0) * 100 * unit,
            exit=part(2, 40, exits),
            signal=part(0, 3, (exits, count)) * latency,
            answer=part(1, 9, exits) * latency,
            resume=part(0, 6, exits) * latency,
            compared=part(0, 6, exits) * latency,
        )

    return tables, {
        "macs": cost(1000, False),
        "latency": cost(1 / 64, True),
        "params": cost(10, False),
    }


class Space(NamedTuple):
    """Every configuration: costs in the order of `METRICS`, p90 latency last, mIoU, and exits."""

    cost_4X: NDArray[np.float64]
    miou_X: NDArray[np.float64]
    exits_X: NDArray[np.int64]


METRICS = ("latency", "macs", "params", "p90")


def enumerate_space(tables: Tables, costs: dict[str, Cost]) -> Space:
    points = [np.flatnonzero(tables.point == p).tolist() for p in (1, 2, 3, 4)]
    chains = [
        tuple(e for e in chain if e >= 0)
        for chain in product(*([-1, *exits] for exits in points))
        if any(e >= 0 for e in chain)
    ]
    grids = {early: thresholds_of(tables, size) for early, size in PER_EXIT.items()}
    found = [measure(tables, costs, chain, grids.get(len(chain) - 1)) for chain in chains]
    cost, miou, exits = zip(*found, strict=True)
    return Space(np.concatenate(cost, axis=1), np.concatenate(miou), np.concatenate(exits))


def measure(
    tables: Tables,
    costs: dict[str, Cost],
    chain: tuple[int, ...],
    steps: Thresholds | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    early = chain[:-1]
    blocks = []
    for signals in product(range(len(tables.signal_names)), repeat=len(early)):
        thresholds = [
            steps.values[e][s] for e, s in zip(early, signals, strict=True) if steps is not None
        ]
        for chosen in product(*thresholds):
            depth = np.full(tables.images, len(early))
            for position in reversed(range(len(early))):
                observed = tables.signals[early[position], :, signals[position]]
                depth[observed >= chosen[position]] = position
            blocks.append((signals, depth))
    depth_XI = np.array([depth for _, depth in blocks])
    by_depth = [(depth_XI == d).astype(np.float64) for d in range(len(chain))]
    # Whole numbers: sums in double precision are exact.
    hits = sum(took_XI @ tables.intersection[e] for took_XI, e in zip(by_depth, chain, strict=True))
    predicted = sum(
        took_XI @ tables.predicted[e] for took_XI, e in zip(by_depth, chain, strict=True)
    )
    union = predicted + tables.label.sum(axis=0) - hits
    miou = np.nanmean(np.where(union > 0, hits / np.maximum(union, 1), np.nan), axis=1)
    counts = np.stack([took_XI.sum(axis=1) for took_XI in by_depth], axis=1)
    cost = np.empty((4, len(blocks)))
    for m, metric in enumerate(METRICS):
        paths = np.array([path_costs(tables, costs, metric, chain, s) for s, _ in blocks])
        if metric == "params":
            cost[m] = paths[:, -1]
        elif metric == "p90":
            left = 10 * np.cumsum(counts, axis=1) >= 9 * tables.images
            cost[m] = paths[np.arange(len(blocks)), left.argmax(axis=1)]
        else:
            # All parts are multiples of a power of two: totals are exact.
            cost[m] = (counts * paths).sum(axis=1) / tables.images
    return cost, miou, np.full(len(blocks), len(chain))


def path_costs(
    tables: Tables,
    costs: dict[str, Cost],
    metric: str,
    chain: tuple[int, ...],
    signals: tuple[int, ...],
) -> list[float]:
    part = costs["latency" if metric == "p90" else metric]
    paths, delay = [], 0.0
    for position, e in enumerate(chain):
        delay += part.exit[e]
        if position < len(signals):
            delay += part.signal[e, signals[position]]
        paths.append(part.backbone[tables.point[e]] + delay + part.answer[e])
        delay += part.resume[e]
    return paths


def front_of(cost: NDArray[np.float64], miou: NDArray[np.float64]) -> list[tuple[float, float]]:
    order = np.lexsort((-miou, cost))
    steps = np.rint(miou[order] * 1e12)
    best_before = np.maximum.accumulate(np.append(-1.0, steps[:-1]))
    front = order[steps > best_before]
    return list(zip(cost[front].tolist(), miou[front].tolist(), strict=True))


def test_answers_and_fronts_equal_the_enumeration() -> None:
    exits, ruled_out, among = zip(*(compared(seed) for seed in range(4)), strict=True)
    # Otherwise the bound was not put to the test.
    assert sum(ruled_out) > 0.3 * sum(among)
    assert max(exits) > 2


def compared(seed: int) -> tuple[int, int, int]:
    """The most exits of an answer, configurations that the bound ruled out, and all there are."""
    tables, costs = network(seed)
    space = enumerate_space(tables, costs)
    base = search(tables, costs, Request(setting="final-only", target="accuracy")).goal.baseline
    rng = np.random.default_rng(seeded(seed))
    sizes, ruled_out, among = set(), 0, 0
    asked = [("latency", "mean"), ("latency", "p90"), ("macs", "mean"), ("accuracy", "mean")]
    for (target, stat), error in product([*asked, ("params", "mean")], (0.0, 0.02)):
        metric = ("p90" if stat == "p90" else "latency") if target == "latency" else target
        wanted = np.rint(space.miou_X * 1e12) >= round((base.miou - error) * 1e12)
        limits: dict[str, Any] = {"max_error": error}
        if target == "accuracy":
            limit = float(np.quantile(space.cost_4X[1], rng.uniform(0.1, 0.6)))
            limits, metric = {"max_macs": limit}, "macs"
            wanted = space.cost_4X[1] <= limit + 1e-6
        request = Request(
            target=target, latency_stat=stat, max_exits=4, thresholds=THRESHOLDS, **limits
        )
        answer = search(tables, costs, request)
        cost_X = space.cost_4X[METRICS.index(metric)]
        if target == "accuracy":
            assert answer.evaluation.miou == pytest.approx(space.miou_X[wanted].max(), abs=1e-12)
        else:
            key = "latency" if metric == "p90" else metric
            assert answer.evaluation.costs[key] == pytest.approx(cost_X[wanted].min(), rel=1e-12)
            ties = wanted & np.isclose(cost_X, cost_X[wanted].min(), rtol=1e-12)
            assert answer.evaluation.miou == pytest.approx(space.miou_X[ties].max(), abs=1e-12)
        sizes.add(len(answer.configuration))
        rows = answer.front_rows()
        name = {"p90": "latency_ms", "latency": "latency_ms"}.get(metric, metric)
        expected = front_of(cost_X, space.miou_X)
        assert [row[name] for row in rows] == pytest.approx([c for c, _ in expected], rel=1e-12)
        assert [row["miou"] for row in rows] == pytest.approx([m for _, m in expected], abs=1e-12)
        assert answer.configurations == len(space.miou_X)
        assert answer.evaluated + sum(answer.pruned.values()) == answer.configurations
        ruled_out += answer.pruned["by_bound"]
        among += answer.configurations
    return max(sizes), ruled_out, among
