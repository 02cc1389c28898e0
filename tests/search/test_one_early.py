"""Two exits, where most are ruled out by rounded counts, against every configuration one by one."""

from __future__ import annotations

import numpy as np
import pytest

from mess.search.answers.answer import search
from mess.search.problem.costs import to_ticks
from mess.search.problem.front import Front, FrontPoint
from mess.search.problem.goal import Goal, miou_steps
from mess.search.problem.request import Request
from tests.search.spaces import space_of
from tests.search.test_realistic import network


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("target", "stat"), [("macs", "mean"), ("latency", "p90"), ("params", "mean")]
)
def test_front_and_answer_are_those_of_every_configuration(
    seed: int, target: str, stat: str
) -> None:
    tables, costs = network(seed)
    request = Request(target=target, max_error=0.02, max_exits=2, latency_stat=stat)
    goal, front = Goal.of(tables, to_ticks(tables, costs), request), Front[int]()
    for order, configuration in enumerate(space_of(tables, request)):
        found = goal.evaluate(configuration)
        front.insert(FrontPoint(found.totals[target], miou_steps(found.miou), order, order))
    answer = search(tables, costs, request)
    assert [point[:2] for point in answer.front] == [point[:2] for point in front.points]
    reached = next(point for point in front.points if point.miou >= goal.miou_limit)
    assert answer.evaluation.totals[target] == reached.cost
    assert answer.pruned["by_bound"] > answer.evaluated > 0
    assert answer.evaluated + answer.pruned["by_bound"] == answer.configurations


def test_a_class_that_nobody_labels_counts_where_it_is_predicted() -> None:
    tables, costs = network(4)
    stray = np.flatnonzero(tables.label.sum(axis=0) == 0)
    tables.predicted[::2, :, stray] += 1
    request = Request(target="macs", max_error=0.02, max_exits=2)
    goal, front = Goal.of(tables, to_ticks(tables, costs), request), Front[int]()
    for order, configuration in enumerate(space_of(tables, request)):
        found = goal.evaluate(configuration)
        front.insert(FrontPoint(found.totals["macs"], miou_steps(found.miou), order, order))
    assert len(stray)
    found = [point[:2] for point in search(tables, costs, request).front]
    assert found == [point[:2] for point in front.points]
