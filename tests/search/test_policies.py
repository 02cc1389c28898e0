"""Policies that compare exits, and shared thresholds, against plain loops in fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mess.errors import CacheError, ConfigError, InfeasibleError
from mess.search.answers.answer import Answer, search
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.definition import Choice, evaluate
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables
from tests.search.spaces import between, chains, some
from tests.search.test_brute_force import (
    Candidate,
    Selected,
    expect,
    miou_of,
    requests,
    selected_of,
)
from tests.search.test_brute_force import run as run_each
from tests.seeds import seeded


def with_pairs(rng: np.random.Generator, tables: Tables) -> Tables:
    """The tables with a made-up signal for every pair of exits; values tie now and then."""
    pairs = -np.rint(rng.random((tables.exits, tables.exits, tables.images)) * 5) / 4
    point = np.asarray(tables.point)
    pairs[point[:, None] >= point[None, :]] = np.nan
    return replace(
        tables,
        signals=np.zeros((tables.exits, tables.images, 0), dtype=np.float32),
        signal_names=("vi",),
        pairs=pairs.astype(np.float32),
    )


def one_signal(cost: Cost) -> Cost:
    return replace(cost, signal=cost.signal[:, :1])


def pooled(values: Sequence[Any], size: int) -> list[float]:
    return some(between([float(v) for array in values for v in array]), size)


def own_order(configuration: Any) -> Selected:
    """How configurations of pairs are ordered: exit, the exit before it, threshold."""
    early = configuration[:-1]
    pairs = tuple((c.exit, b.exit, c.threshold) for b, c in pairwise(early))
    return (*pairs, (configuration[-1].exit, -1, 0.0))


def run_pairs(
    tables: Tables, costs: Mapping[str, Cost], chain: tuple[int, ...], limits: tuple[float, ...],
    stat: str,
) -> Candidate:  # fmt: skip
    """Exit by exit and image by image; `limits` are the thresholds of the second exit onwards."""
    assert tables.pairs is not None
    answering = []
    for i in range(tables.images):
        depth = len(chain) - 1
        for position in range(len(chain) - 2, 0, -1):
            a, b = chain[position - 1], chain[position]
            if float(tables.pairs[a, b, i]) >= limits[position - 1]:
                depth = position
        answering.append(depth)
    cost = {}
    for metric, parts in costs.items():
        paths, delay = [], Fraction(0)
        for depth, e in enumerate(chain):
            delay += Fraction(float(parts.exit[e]))
            if depth < len(chain) - 1:
                extra = parts.signal[e, 0] if depth else parts.compared[e]
                delay += Fraction(float(extra))
            fixed = parts.backbone[tables.point[e]] + parts.answer[e]
            paths.append(Fraction(float(fixed)) + delay)
            delay += Fraction(float(parts.resume[e]))
        if metric == "params":
            cost[metric] = paths[-1]
        elif metric == "latency" and stat == "p90":
            share = [sum(a <= depth for a in answering) for depth in range(len(chain))]
            first = next(d for d, n in enumerate(share) if 10 * n >= 9 * tables.images)
            cost[metric] = paths[first]
        else:
            cost[metric] = sum((paths[a] for a in answering), Fraction(0)) / tables.images
    ordered = tuple(
        (b, a, t) for (a, b), t in zip(pairwise(chain[:-1]), limits, strict=True)
    )  # fmt: skip
    miou = miou_of(tables, [chain[a] for a in answering])
    return Candidate((*ordered, (chain[-1], -1, 0.0)), miou, cost)


def all_pairs(
    tables: Tables, costs: Mapping[str, Cost], size: int, stat: str, longest: int, shared: bool
) -> list[Candidate]:
    assert tables.pairs is not None
    point = tables.point
    usable = [
        tables.pairs[a, b]
        for b in range(tables.exits)
        for a in range(tables.exits)
        if point[a] < point[b] < tables.points
    ]
    found = []
    for chain in chains(tables, longest):
        if len(chain) == 1:
            single = run_each(tables, costs, ((chain[0], -1, 0.0),), stat)
            found.append(single)
        observed = [tables.pairs[a, b].tolist() for a, b in pairwise(chain[:-1])]
        if len(chain) == 3:
            found += [run_pairs(tables, costs, chain, (t,), stat) for t in between(observed[0])]
        if len(chain) == 4 and shared:
            own = pooled(usable, size)
            if all(len(v) for v in observed):
                found += [run_pairs(tables, costs, chain, (t, t), stat) for t in own]
        elif len(chain) == 4:
            first, second = (some(between(v), size) for v in observed)
            found += [run_pairs(tables, costs, chain, (t, u), stat) for t in first for u in second]
    return found


def all_shared(
    tables: Tables, costs: Mapping[str, Cost], size: int, stat: str, longest: int
) -> list[Candidate]:
    """One signal and one threshold for all early exits."""
    found = []
    early = tables.signals[tables.point < tables.points]
    for chain in chains(tables, longest):
        last = (chain[-1], -1, 0.0)
        if len(chain) == 1:
            found.append(run_each(tables, costs, (last,), stat))
            continue
        for s in range(len(tables.signal_names)):
            if len(chain) == 2:
                grid = between(tables.signals[chain[0], :, s].tolist())
            else:
                grid = pooled(list(early[:, :, s]), size)
            found += [
                run_each(tables, costs, (*((e, s, t) for e in chain[:-1]), last), stat)
                for t in grid
            ]
    return found


def check(answer: Answer, best: Candidate, front: list[Candidate], order: Any) -> None:
    assert order(answer.configuration) == best.selected
    assert answer.evaluation.miou == pytest.approx(float(best.miou), abs=1e-12)
    for metric, cost in best.cost.items():
        assert answer.evaluation.costs[metric] == pytest.approx(float(cost), rel=1e-12)
    assert [order(point.payload) for point in answer.front] == [c.selected for c in front]
    ruled_out = sum(answer.pruned.values())
    assert answer.evaluated + ruled_out == answer.configurations


@pytest.mark.parametrize("seed", range(120))
@pytest.mark.parametrize("kind", ["pairs", "pairs, one threshold", "one threshold"])
def test_search_equals_the_enumeration(make_cache: Any, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seeded(seed))
    tables, costs = make_cache(
        rng,
        points=int(rng.integers(3, 5)),
        images=int(rng.integers(1, 7)),
        classes=int(rng.integers(1, 5)),
        signals=1 if "pairs" in kind else int(rng.integers(1, 3)),
        twins=seed % 3 == 0,
    )
    shared, compares = "one" in kind, "pairs" in kind
    if compares:
        tables = with_pairs(rng, tables)
        costs = {metric: one_signal(cost) for metric, cost in costs.items()}
    stat, size = str(rng.choice(["mean", "p90"])), int(rng.integers(1, 5))
    if compares:
        everything = all_pairs(tables, costs, size, stat, 4, shared)
    else:
        everything = all_shared(tables, costs, size, stat, 4)
    exits = (lambda c: len(c.selected) + (len(c.selected) > 1)) if compares else (
        lambda c: len(c.selected)
    )  # fmt: skip
    order = own_order if compares else selected_of
    for made in requests(rng, tables, {"input-dependent": everything}, stat, size):
        request = replace(made, shared_threshold=shared)
        space = [c for c in everything if exits(c) <= request.max_exits]
        best, front = expect(space, tables, costs, request)
        if best is None:
            with pytest.raises(InfeasibleError, match="no configuration"):
                search(tables, costs, request, threads=1)
            continue
        answer = search(tables, costs, request, threads=1)
        check(answer, best, front, order)
        assert answer.configurations == len(space)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_threads_and_early_references_change_nothing(
    make_cache: Any, seed: int, shared: bool
) -> None:
    """Enough exits before each that they are searched in several parts."""
    rng = np.random.default_rng(seeded(seed))
    tables, costs = make_cache(rng, points=5, per_point=3, images=12, classes=4, signals=1)
    tables = with_pairs(rng, tables)
    request = Request(
        target="macs", max_error=0.05, max_exits=4, thresholds=4, shared_threshold=shared
    )
    one, two = (search(tables, costs, request, threads=n) for n in (1, 3))
    assert one.configuration == two.configuration
    assert one.front == two.front
    everything = all_pairs(tables, costs, 4, "mean", 4, shared)
    best, front = expect(everything, tables, costs, request)
    assert best is not None
    check(one, best, front, own_order)
    assert one.configurations == len(everything)


# ---- The plain definition


def three_exits() -> tuple[Tables, dict[str, Cost]]:
    counts = np.ones((3, 2, 1), dtype=np.int32)
    pairs = np.full((3, 3, 2), np.nan, dtype=np.float32)
    pairs[0, 1], pairs[0, 2], pairs[1, 2] = [-0.25, -1.5], [-0.5, -0.5], [-0.5, -0.5]
    tables = Tables(
        exit_ids=("a", "b", "final"),
        point=np.array([1, 2, 3]),
        label=np.full((2, 1), 2),
        intersection=counts,
        predicted=counts,
        signals=np.zeros((3, 2, 0), dtype=np.float32),
        signal_names=("vi",),
        pairs=pairs,
    )
    part = Cost(
        backbone=np.array([0.0, 10.0, 20.0, 30.0]),
        exit=np.array([1.0, 2.0, 3.0]),
        signal=np.zeros((3, 1)),
        answer=np.zeros(3),
        resume=np.zeros(3),
        compared=np.zeros(3),
    )
    latency = replace(
        part,
        signal=np.full((3, 1), 0.5),
        answer=np.full(3, 0.25),
        resume=np.full(3, 0.125),
        compared=np.array([0.0625, 64.0, 64.0]),
    )
    return tables, {"macs": part, "params": part, "latency": latency}


def test_nobody_leaves_at_the_exit_that_is_compared_with() -> None:
    tables, costs = three_exits()
    found = evaluate(tables, to_ticks(tables, costs), (Choice(0), Choice(1, 0, -1.0), Choice(2)))
    assert found.answer.tolist() == [1, 2]
    assert found.exit_rates == (0.0, 0.5, 0.5)
    assert found.costs["macs"] == ((20 + 1 + 2) + (30 + 1 + 2 + 3)) / 2
    before = 1 + 0.0625 + 0.125
    assert found.costs["latency"] == pytest.approx(
        (20 + before + 2 + 0.5 + 0.25 + 30 + before + 2 + 0.5 + 0.125 + 3 + 0.25) / 2
    )


@pytest.mark.parametrize(
    "configuration",
    [
        (Choice(0, 0, -1.0), Choice(1, 0, -1.0), Choice(2)),
        (Choice(0), Choice(1), Choice(2)),
    ],
)
def test_only_the_first_exit_is_without_a_signal(configuration: Any) -> None:
    tables, costs = three_exits()
    with pytest.raises(ValueError, match="signal"):
        evaluate(tables, to_ticks(tables, costs), configuration)


def test_pairs_that_are_missing_are_refused() -> None:
    tables, _ = three_exits()
    assert tables.pairs is not None
    holed = tables.pairs.copy()
    holed[0, 1, 1] = np.nan
    with pytest.raises(CacheError, match="pair of 'a' and 'b' lacks its vi"):
        replace(tables, pairs=holed)
    with pytest.raises(CacheError, match="decides alone"):
        replace(tables, signal_names=("vi", "other"))
    with pytest.raises(CacheError, match=r"pairs must have shape \(3, 3, 2\)"):
        replace(tables, pairs=holed[:2])


@pytest.mark.parametrize("shared", [False, True])
def test_optuna_says_what_it_cannot_sample(make_cache: Any, shared: bool) -> None:
    rng = np.random.default_rng(seeded(0))
    tables, costs = make_cache(rng, signals=1)
    if not shared:
        tables = with_pairs(rng, tables)
    request = Request(target="macs", max_error=0.1, shared_threshold=shared)
    with pytest.raises(ConfigError, match="use algorithm 'exhaustive'"):
        search(tables, costs, request, algorithm="optuna")
