"""What the user gets: result, front, infeasible messages, the same answer on any machine."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from mess.errors import InfeasibleError
from mess.search.answers.answer import search
from mess.search.answers.infeasible import round_up
from mess.search.problem.costs import Cost
from mess.search.problem.definition import Choice
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables
from tests.seeds import first_drawn

Cache = tuple[Tables, dict[str, Cost]]


@pytest.fixture(scope="module")
def cache(make_cache: Any) -> Any:
    """Several rounds of work: up to 20 exits of 24 thresholds; the cheapest is not the best."""

    def draw(rng: np.random.Generator) -> Cache:
        return make_cache(rng, points=5, per_point=5, images=25, classes=9, signals=2)

    def wanted(cache: Cache) -> bool:
        cheapest = search(*cache, Request(setting="budgeted", target="macs"))
        error = cheapest.goal.baseline.miou - cheapest.evaluation.miou
        return error > 0.02 and 15 <= cache[0].exits <= 20

    return first_drawn(28, draw, wanted)


@pytest.mark.parametrize("setting", ["input-dependent", "anytime"])
@pytest.mark.parametrize("target", ["latency", "accuracy"])
def test_threads_do_not_matter(cache: Cache, setting: str, target: str) -> None:
    request = Request(setting=setting, target=target, thresholds=4, max_error=0.5)
    one, two = (search(*cache, request, threads=threads) for threads in (1, 2))
    results = [answer.to_result() for answer in (one, two)]
    for result in results:
        assert result["search"].pop("seconds") > 0
    assert results[0] == results[1]
    assert one.front_rows() == two.front_rows()


class Colleague:
    """A team of threads."""

    def __init__(self, rank: int, contents: list[bytes], barrier: Barrier) -> None:
        self.rank, self.count = rank, len(contents)
        self.here = self.count
        self._contents, self._barrier = contents, barrier

    def gather(self, content: bytes) -> list[bytes]:
        self._contents[self.rank] = content
        self._barrier.wait()
        every = list(self._contents)
        self._barrier.wait()
        return every


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("setting", ["input-dependent", "anytime"])
@pytest.mark.parametrize("target", ["latency", "accuracy"])
def test_processes_do_not_matter(cache: Cache, setting: str, target: str, count: int) -> None:
    request = Request(setting=setting, target=target, thresholds=4, max_error=0.5)
    alone = search(*cache, request, threads=1)
    contents, barrier = [b""] * count, Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        answers = [
            pool.submit(search, *cache, request, threads=1, team=Colleague(rank, contents, barrier))
            for rank in range(count)
        ]
    expected = alone.to_result()
    expected["search"].pop("seconds")
    for answer in (future.result() for future in answers):
        result = answer.to_result()
        result["search"].pop("seconds")
        assert result == expected
        assert answer.front_rows() == alone.front_rows()


def test_result_has_the_published_keys(cache: Cache) -> None:
    request = Request(target="latency", max_error=0.3, min_miou=0.01, thresholds=4)
    answer = search(*cache, request)
    result = json.loads(json.dumps(answer.to_result()))
    assert list(result) == [
        "setting",
        "target",
        "constraints",
        "exits",
        "predicted",
        "baseline",
        "error",
        "search",
        "explanation",
    ]
    assert result["constraints"] == {
        "max_error": 0.3,
        "min_miou": 0.01,
        "latency_stat": "mean",
        "max_exits": 3,
    }
    for row in result["exits"]:
        assert list(row) == ["exit_id", "signal", "threshold", "exit_rate"]
    assert result["exits"][-1]["signal"] is None
    assert result["exits"][-1]["threshold"] is None
    assert sum(row["exit_rate"] for row in result["exits"]) == pytest.approx(1)
    for name in ("predicted", "baseline"):
        assert list(result[name]) == ["miou", "macs", "latency_ms", "params"]
    assert result["error"] == result["baseline"]["miou"] - result["predicted"]["miou"]
    run = result["search"]
    assert run["evaluated"] + sum(run["pruned"].values()) == run["configurations"]
    assert (run["algorithm"], run["optimal"], run["gap"]) == ("exhaustive", True, 0.0)
    assert run["space"]["thresholds"] == {"1": "all", "2": 4}


def test_latency_is_null_without_a_profile(cache: Cache) -> None:
    tables, costs = cache
    costs = {metric: costs[metric] for metric in ("macs", "params")}
    answer = search(tables, costs, Request(target="macs", max_exits=2))
    assert answer.to_result()["predicted"]["latency_ms"] is None
    assert all(row["latency_ms"] is None for row in answer.front_rows())


def test_front_rises_and_holds_the_answer(cache: Cache) -> None:
    answer = search(*cache, Request(target="macs", max_error=0.1, thresholds=4))
    rows = answer.front_rows()
    assert (np.diff([row["macs"] for row in rows]) > 0).all()
    assert (np.diff([row["miou"] for row in rows]) > 0).all()
    best = [row for row in rows if row["macs"] == answer.evaluation.costs["macs"]]
    assert json.loads(best[0]["configuration"]) == answer.to_result()["exits"]
    assert all(row["proven"] for row in rows)


def test_anytime_result_says_what_is_delivered_when(cache: Cache) -> None:
    request = Request(setting="anytime", target="accuracy", checkpoints=((0.2, 0.0), (0.4, 0.0)))
    result = search(*cache, request).to_result()
    assert result["exits"][-1]["exit_id"] == "final"
    times = [row["delivered"]["latency_ms"] for row in result["exits"]]
    assert times == sorted(times)
    assert times[-1] == result["predicted"]["latency_ms"]
    for point in result["checkpoints"]:
        assert point["metric"] == "latency"
        in_time = [
            row["miou"]
            for row in result["exits"]
            if row["delivered"]["latency_ms"] <= point["cost"]
        ]
        assert point["miou"] == max(in_time, default=0.0)


def test_limit_equal_to_a_reported_cost_admits_it(cache: Cache) -> None:
    free = search(*cache, Request(target="latency", max_error=0.02, thresholds=4))
    cost, miou = free.evaluation.costs["latency"], free.evaluation.miou
    tight = Request(target="accuracy", max_latency_ms=cost, min_miou=miou, thresholds=4)
    again = search(*cache, tight)
    assert again.evaluation.costs["latency"] == cost
    assert again.evaluation.miou >= miou
    with pytest.raises(InfeasibleError):
        search(*cache, Request(max_latency_ms=cost - 1e-6, min_miou=miou, thresholds=4))


def number_after(words: str, text: str) -> float:
    found = re.search(words + r" ([\d.e+-]+\d)", text)
    assert found, f"{words!r} not in {text!r}"
    return float(found[1])


def test_infeasible_cost_names_the_fastest(cache: Cache) -> None:
    fastest = search(*cache, Request(setting="budgeted", target="latency"))
    name = fastest.goal.tables.exit_ids[fastest.configuration[0].exit]
    cost = fastest.evaluation.costs["latency"]
    error = fastest.goal.baseline.miou - fastest.evaluation.miou
    with pytest.raises(InfeasibleError) as caught:
        search(*cache, Request(setting="budgeted", max_latency_ms=cost / 2))
    message = str(caught.value)
    assert message.startswith(
        f"no configuration runs within {cost / 2:.6g} ms; the fastest, {name}"
    )
    assert f"at error {error:.4g}" in message
    assert number_after("raise --max-latency to", message.replace("Raise", "raise")) == round_up(
        cost
    )


def test_infeasible_miou_names_the_most_accurate(cache: Cache) -> None:
    best = search(*cache, Request(setting="budgeted", target="accuracy"))
    with pytest.raises(InfeasibleError, match=r"no configuration has mIoU >= 0\.999;") as caught:
        search(*cache, Request(setting="budgeted", min_miou=0.999))
    suggested = number_after("Lower --min-miou to", str(caught.value))
    assert 0 <= best.evaluation.miou - suggested < 1e-3 * best.evaluation.miou


@pytest.mark.parametrize("setting", ["budgeted", "input-dependent"])
def test_each_suggestion_of_an_infeasible_request_is_feasible(cache: Cache, setting: str) -> None:
    asked: dict[str, Any] = {"setting": setting, "target": "macs", "thresholds": 3}
    cheapest = search(*cache, Request(**asked)).evaluation.costs
    limits: dict[str, Any] = {"max_macs": 1.01 * cheapest["macs"], "max_error": 0.0}
    with pytest.raises(InfeasibleError) as caught:
        search(*cache, Request(**asked, **limits))
    message = str(caught.value).replace("Raise", "raise")
    assert f"needs at most {limits['max_macs']:.6g} MACs at error <= 0;" in message
    for option, name in (("--max-macs", "max_macs"), ("--max-error", "max_error")):
        value = number_after(f"raise {option} to", message)
        relaxed: dict[str, Any] = asked | limits | {name: value}
        answer = search(*cache, Request(**relaxed))
        assert answer.evaluation.costs["macs"] <= relaxed["max_macs"]
        # No smaller value would do: it is the optimum rounded up to four digits.
        relaxed[name] = value * 0.998
        with pytest.raises(InfeasibleError):
            search(*cache, Request(**relaxed))


def test_infeasible_checkpoints(cache: Cache) -> None:
    request = Request(setting="anytime", target="latency", checkpoints=((0.001, 0.9),))
    with pytest.raises(InfeasibleError, match=r"by 0.001 ms; .*Replace --checkpoint 0.001=0.9 "):
        search(*cache, request)


def test_accuracy_without_limits_is_the_best_miou(cache: Cache) -> None:
    tables, _ = cache
    answer = search(*cache, Request(setting="final-only", target="accuracy"))
    points = {int(tables.point[choice.exit]) for choice in answer.configuration}
    assert points == {tables.points}
    assert answer.evaluation.miou >= answer.goal.baseline.miou
    assert answer.configuration[0] == Choice(answer.configuration[0].exit)


def test_round_up_admits_the_value() -> None:
    for value in (9.1, 0.21034, 1.23456e9, 9.9999, 1e-5, 123.4):
        up = round_up(value)
        assert value <= up <= value * 1.001
    assert round_up(9.1) == 9.1
    assert round_up(1.23456e9) == 1.235e9
    assert -round_up(-0.61239) == 0.6123
