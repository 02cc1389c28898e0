"""The bound against the mIoU it bounds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mess.search.exact.bound_reference import bound_around, reaching
from mess.search.exact.kernel_inputs import ByDepth, pack_prices
from mess.search.kernels.arrays import NOBODY
from mess.search.kernels.bound import rows_that_matter
from mess.search.problem.costs import to_ticks
from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.findings import NOTHING
from mess.search.problem.goal import Goal, miou_steps
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
