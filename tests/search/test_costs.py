"""Costs of paths, whatever the parts cost: sums in whole steps equal plain loops of fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mess.search.problem.costs import TICKS, Cost, to_ticks
from mess.search.problem.tables import Tables

POINTS, SIGNALS = 3, 2
WHOLE = st.integers(0, 10**12)
PICOSECONDS = st.integers(0, 10**12)


def tables(exits_a_point: list[int]) -> Tables:
    names = [
        f"p{point}-crm{2**number}-b0-fcn"
        for point, count in enumerate(exits_a_point, start=1)
        for number in range(count)
    ]
    point = [int(name[1]) for name in names]
    exits, images, classes = len(names) + 1, 1, 1
    counts = np.ones((exits, images, classes), np.int32)
    return Tables(
        exit_ids=(*names, "final"),
        point=np.array([*point, POINTS]),
        label=np.ones((images, classes), np.int64),
        intersection=counts,
        predicted=counts,
        signals=np.zeros((exits, images, SIGNALS), np.float32),
        signal_names=tuple(f"s{k}" for k in range(SIGNALS)),
    )


@st.composite
def costs(draw: st.DrawFn, exits: int, metric: str) -> Cost:
    """In the metric's unit; latencies are whole picoseconds, given in milliseconds."""
    amount = PICOSECONDS if metric == "latency" else WHOLE

    def parts(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        drawn = draw(st.lists(amount, min_size=size, max_size=size))
        return np.array(drawn, dtype=np.float64).reshape(shape) / TICKS[metric]

    def timed(*shape: int) -> np.ndarray:
        return parts(*shape) if metric == "latency" else np.zeros(shape)

    return Cost(
        backbone=np.append(0.0, np.sort(parts(POINTS))),
        exit=parts(exits),
        signal=timed(exits, SIGNALS),
        answer=timed(exits),
        resume=timed(exits),
        compared=timed(exits),
    )


@st.composite
def paths(draw: st.DrawFn) -> tuple[Tables, dict[str, Cost], list[int], list[int | None]]:
    """Tables with costs, and exits of rising points with what decides at all but the last."""
    made = tables(draw(st.lists(st.integers(0, 2), min_size=POINTS, max_size=POINTS)))
    given_costs = {metric: draw(costs(made.exits, metric)) for metric in TICKS}
    chain = [
        draw(st.sampled_from([e for e in range(made.exits) if made.point[e] == point]))
        for point in sorted(draw(st.sets(st.sampled_from(made.point.tolist()), min_size=1)))
    ]
    decides = st.one_of(st.none(), st.integers(0, SIGNALS - 1))
    size = len(chain) - 1
    return made, given_costs, chain, draw(st.lists(decides, min_size=size, max_size=size))


def steps(value: Any, metric: str) -> int:
    return round(Fraction(float(value)) * TICKS[metric])


@given(paths())
def test_a_path_costs_what_its_parts_cost(
    asked: tuple[Tables, dict[str, Cost], list[int], list[int | None]],
) -> None:
    made, given_costs, chain, signals = asked
    for metric, ticks in to_ticks(made, given_costs).items():
        cost = given_costs[metric]
        expected = []
        for depth, exit_ in enumerate(chain):
            total = steps(cost.backbone[made.point[exit_]], metric) + steps(
                cost.answer[exit_], metric
            )
            for reached in range(depth + 1):
                total += steps(cost.exit[chain[reached]], metric)
                if reached < len(signals):
                    signal = signals[reached]
                    observed = (
                        cost.compared[chain[reached]]
                        if signal is None
                        else cost.signal[chain[reached], signal]
                    )
                    total += steps(observed, metric)
                if reached < depth:
                    total += steps(cost.resume[chain[reached]], metric)
            expected.append(total)
        assert ticks.deliveries(chain, signals) == expected
        stored_whole = [expected[-1]] * len(expected)
        assert ticks.paths(chain, signals) == (stored_whole if metric == "params" else expected)


@given(paths())
def test_whole_steps_are_the_unit_again(
    asked: tuple[Tables, dict[str, Cost], list[int], list[int | None]],
) -> None:
    made, given_costs, _, _ = asked
    for metric, ticks in to_ticks(made, given_costs).items():
        for exit_ in range(made.exits):
            assert ticks.to_unit(ticks.exit[exit_]) == given_costs[metric].exit[exit_]
