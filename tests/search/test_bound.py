"""The bound against the mIoU it bounds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mess.search.exact.bound_reference import bound_around, reaching
from mess.search.exact.kernel_inputs import ByDepth, pack_prices
from mess.search.kernels.arrays import NOBODY
from mess.search.kernels.bound import rows_of, rows_that_matter, scan
from mess.search.kernels.coarse import lanes_that_may
from mess.search.kernels.rows import Deepest, early_exits
from mess.search.problem.costs import to_ticks
from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.findings import NOTHING
from mess.search.problem.goal import MIOU_STEPS, Goal, miou_steps
from mess.search.problem.request import Request
from mess.search.problem.thresholds import thresholds_of
from tests.search.test_realistic import network
from tests.seeds import seeded

EMPTY = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def drawn(
    rng: np.random.Generator, goal: Goal, early: int, steps: int
) -> list[tuple[int, int, int]]:
    """Exits by rising point, each with a signal and an index of threshold, unused in the last."""
    points = np.sort(rng.choice(np.arange(1, 5), early + 1, replace=False))
    exits = [int(rng.choice(np.flatnonzero(goal.tables.point == p))) for p in points]
    signals = len(goal.tables.signal_names)
    return [(e, int(rng.integers(signals)), int(rng.integers(steps))) for e in exits]


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_no_configuration_is_more_accurate_than_its_bound(classes: int) -> None:
    """With a single class the bound is nearly tight, so that an error in any part of it shows."""
    assert sum(ruled_out_beside_kept(seed, classes) for seed in range(4)) > 0


def ruled_out_beside_kept(seed: int, classes: int) -> int:
    """Rows are kept where the least mIoU asked for is that of one of their configurations.

    Returns how many other configurations were ruled out.
    """
    tables, costs = network(seed, classes)
    goal = Goal.of(tables, to_ticks(tables, costs), Request(target="macs"))
    by_depth, rng = ByDepth.of(tables), np.random.default_rng(seeded(seed))
    steps = thresholds_of(tables, 10)
    prices = by_depth.sorted_prices(pack_prices(goal))
    prices = prices._replace(limit_M=np.full_like(prices.limit_M, NOTHING))
    at = np.argsort(by_depth.order_E)
    ruled_out = 0
    # Any configuration may be the reference, good or bad.
    with ThreadPoolExecutor(1) as pool:
        bounds = [
            bound_around(goal, by_depth, steps, (Choice(int(exit_)),), pool)
            for exit_ in rng.integers(tables.exits, size=12)
        ]
    for draw in range(120):
        bound, early = bounds[draw % len(bounds)], 2 + draw % 2
        chosen = drawn(rng, goal, early, 10)
        configuration: Configuration = (
            *(Choice(e, s, float(steps.values[e][s][t])) for e, s, t in chosen[:-1]),
            Choice(chosen[-1][0]),
        )
        miou = miou_steps(goal.evaluate(configuration).miou)
        (second, s2, r2), (third, s3, t), (last, _, _) = chosen[-3:]
        first, s1, r1 = chosen[0] if early == 3 else (NOBODY, 0, 0)
        rows, pruned = rows_that_matter(
            by_depth.slots,
            reaching(bound, miou),
            prices,
            by_depth.exits(steps),
            at[first] if early == 3 else NOBODY,
            s1,
            np.array([at[second]]),
            EMPTY,
        )
        rows = by_depth.original(rows)
        mine = (rows[:, [0, 1, 2, 3, 5, 6, 7, 10]] == [
            first, s1, r1, second, r2, third, s3, last
        ]).all(axis=1) & (rows[:, 4] == s2)  # fmt: skip
        assert ((rows[mine, 8] <= t) & (t < rows[mine, 9])).any()
        ruled_out += pruned
    return ruled_out


def test_a_first_look_rules_out_nothing_that_a_close_one_would_keep() -> None:
    """Rows and lanes of which some column reaches what is needed, with limits and slopes."""
    reached = ruled_out = 0
    for seed in range(6):
        tables, costs = network(seed)
        goal = Goal.of(tables, to_ticks(tables, costs), Request(target="macs"))
        by_depth, rng = ByDepth.of(tables), np.random.default_rng(seeded(seed))
        exits = by_depth.exits(steps := thresholds_of(tables, 10))
        sorted_prices = by_depth.sorted_prices(pack_prices(goal))
        with ThreadPoolExecutor(1) as pool:
            around = bound_around(goal, by_depth, steps, (Choice(int(seed)),), pool)
        for _ in range(40):
            points = np.sort(rng.choice(np.arange(1, 4), 3, replace=False))
            first, second, third = (
                int(rng.choice(np.flatnonzero(exits.point_E == p - 1))) for p in points
            )
            s1, s2, s3 = rng.integers(len(tables.signal_names), size=3).tolist()
            limit = int(goal.baseline.totals["macs"] * rng.uniform(0.3, 1.2))
            prices = sorted_prices._replace(limit_M=np.full_like(sorted_prices.limit_M, limit))
            bound = reaching(around, int(goal.baseline.miou * MIOU_STEPS * rng.uniform(0.8, 1.02)))
            bound = bound._replace(
                slope=float(rng.choice([0.0, 0.3])) / goal.baseline.totals["macs"]
            )
            early = early_exits(exits, first if rng.random() < 0.5 else NOBODY, s1, second, s2)
            rows = rows_of(by_depth.slots, bound, exits, early)
            deepest = Deepest(
                third, s3, exits.bins_EKI[third, s3], int(exits.number_EK[third, s3]),
                int(exits.after_E[third]),
            )  # fmt: skip
            every_L = np.arange(deepest.first_last, tables.exits)
            every_R = np.ones(len(rows.score_R), dtype=np.bool_)
            close, _ = scan(bound, prices, exits, rows, deepest, every_L, every_R)
            last_L, some_R = lanes_that_may(bound, prices, exits, rows, deepest)
            assert {*every_L[close.any(axis=(0, 1))]} <= {*last_L}
            assert not (close.any(axis=(1, 2)) & ~some_R).any()
            reached += close.any(axis=(0, 1)).sum()
            ruled_out += len(every_L) - len(last_L)
            if len(last_L):
                found, _ = scan(bound, prices, exits, rows, deepest, last_L, some_R)
                assert (found == close[:, :, last_L - deepest.first_last]).all()
    assert reached
    assert ruled_out


def test_what_is_stored_too_dear_is_ruled_out_where_nothing_else_is_limited() -> None:
    tables, costs = network(0, 3)
    goal = Goal.of(tables, to_ticks(tables, costs), Request(target="params"))
    by_depth, steps = ByDepth.of(tables), thresholds_of(tables, 4)
    prices = by_depth.sorted_prices(pack_prices(goal))
    with ThreadPoolExecutor(1) as pool:
        bound = reaching(bound_around(goal, by_depth, steps, (Choice(0),), pool), 0)

    def kept(limit: int) -> int:
        limited = prices._replace(limit_M=np.full_like(prices.limit_M, NOTHING))
        limited.limit_M[goal.metrics.index("params")] = limit
        seconds, exits = np.array([0]), by_depth.exits(steps)
        rows, _ = rows_that_matter(by_depth.slots, bound, limited, exits, NOBODY, 0, seconds, EMPTY)
        return len(rows)

    assert kept(0) == 0 < kept(NOTHING)
