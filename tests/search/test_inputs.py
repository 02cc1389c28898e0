"""Tables, costs and requests refuse what cannot be searched, naming value, limit and next move."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from mess.errors import CacheError, ConfigError, DataError, MessError
from mess.search.answers.answer import search
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables
from tests.search.conftest import MakeCache
from tests.seeds import seeded


@pytest.fixture
def tables() -> Tables:
    """Two exits, two images, two classes, one signal."""
    return Tables(
        exit_ids=("p1-crm1-b0-fcn", "final"),
        point=np.array([1, 2]),
        label=np.array([[4, 0], [2, 2]]),
        intersection=np.array([[[3, 0], [1, 1]], [[4, 0], [2, 1]]], dtype=np.int32),
        predicted=np.array([[[3, 1], [2, 2]], [[4, 0], [2, 2]]], dtype=np.int32),
        signals=np.array([[[0.5], [0.25]], [[0.5], [0.5]]], dtype=np.float32),
        signal_names=("top1",),
    )


@pytest.fixture
def costs() -> dict[str, Cost]:
    """MACs and parameters that fit `tables`."""

    def cost(exit_: list[float]) -> Cost:
        return Cost(
            backbone=np.array([0.0, 10.0, 20.0]),
            exit=np.array(exit_),
            signal=np.zeros((2, 1)),
            answer=np.zeros(2),
            resume=np.zeros(2),
            compared=np.zeros(2),
        )

    return {"macs": cost([2.0, 4.0]), "params": cost([1.0, 3.0])}


def changed(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    copy = array.copy()
    copy[index] = value
    return copy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: {"exit_ids": ("a", "b")}, CacheError, "not 'final'"),
        (lambda t: {"exit_ids": ("final", "final")}, CacheError, "'final' more than once"),
        (lambda t: {"signals": t.signals[:1]}, CacheError, r"\(2, 2, 1\), got \(1, 2, 1\)"),
        (lambda t: {"signal_names": ()}, CacheError, r"\(2, 2, 0\), got \(2, 2, 1\)"),
        (lambda t: {"label": t.label[0]}, CacheError, r"got \(2,\)"),
        (lambda t: {"point": np.array([3, 2])}, CacheError, r"1\.\.2.*got 2\.\.3"),
        (lambda t: {"point": np.array([0, 2])}, CacheError, r"1\.\.2.*got 0\.\.2"),
        (
            lambda t: {"label": t.label * 0, "intersection": t.intersection * 0},
            DataError,
            "none of",
        ),
        (
            lambda t: {"intersection": changed(t.intersection, (0, 1, 0), 5)},
            CacheError,
            "5 exceeds",
        ),
        (lambda t: {"label": changed(t.label, (1, 1), 0)}, CacheError, "1 exceeds label 0"),
        (
            lambda t: {"label": changed(t.label, (0, 0), 2**24)},
            CacheError,
            "up to 16777215 exactly",
        ),
        (lambda t: {"predicted": changed(t.predicted, (0, 0, 1), -1)}, CacheError, "negat"),
        (lambda t: {"signals": changed(t.signals, (0, 1, 0), np.nan)}, CacheError, "top1.*nan"),
        (lambda t: {"signals": t.signals.astype(np.float64)}, CacheError, "float32, got float64"),
        (lambda t: {"predicted": t.predicted * 1.0}, CacheError, "integers, got float64"),
    ],
)
def test_bad_tables(tables: Tables, change: Any, error: type[MessError], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(tables, **change(tables))


@pytest.mark.parametrize(
    ("metric", "part", "value", "message"),
    [
        ("macs", "backbone", [0, 10], r"\(3,\), got \(2,\)"),
        ("macs", "backbone", [1, 10, 20], "start at 0"),
        ("macs", "backbone", [0, 20, 10], "never fall"),
        ("macs", "exit", [2.5, 4], "whole numbers, got 2.5"),
        ("params", "exit", [-1, 4], ">= 0, got -1"),
        ("params", "exit", [np.nan, 4], "finite.*got nan"),
        ("macs", "signal", [[0], [7]], "must be 0, got 7"),
        ("params", "answer", [3, 0], "must be 0, got 3"),
        ("macs", "exit", [2e18, 1], "64-bit"),
        ("macs", "exit", [1e19, 1], "below 2"),
    ],
)
def test_bad_costs(
    tables: Tables, costs: dict[str, Cost], metric: str, part: str, value: list, message: str
) -> None:
    costs[metric] = replace(costs[metric], **{part: np.array(value, dtype=np.float64)})
    with pytest.raises(ConfigError, match=message):
        to_ticks(tables, costs)


def test_missing_and_unknown_metrics(tables: Tables, costs: dict[str, Cost]) -> None:
    with pytest.raises(ConfigError, match="'params'"):
        to_ticks(tables, {"macs": costs["macs"]})
    with pytest.raises(ConfigError, match="'watts'"):
        to_ticks(tables, costs | {"watts": costs["macs"]})
    with pytest.raises(ConfigError, match="needs latency, but only macs, params"):
        search(tables, costs, Request(target="latency"))
    with pytest.raises(ConfigError, match="needs latency"):
        search(tables, costs, Request(target="macs", max_latency_ms=3))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"min_miou": 65}, r"in \[0, 1\], got 65; did you mean 0.65\?"),
        ({"max_error": 1.5}, r"got 1.5; did you mean 0.015\?"),
        ({"max_error": -0.1}, r"\[0, 1\], got -0.1$"),
        ({"min_miou": float("nan")}, "got nan"),
        ({"setting": "anytim"}, "'anytim'.*did you mean 'anytime'"),
        ({"target": "flops"}, "'flops'; known: accuracy, latency, macs, params"),
        ({"latency_stat": "median"}, "'median'"),
        ({"max_latency_ms": 0}, "above 0, got 0"),
        ({"max_macs": float("inf")}, "finite number above 0, got inf"),
        ({"max_exits": 0}, "whole number >= 1, got 0"),
        ({"thresholds": 1.5}, "whole number >= 1, got 1.5"),
        ({"setting": "anytime", "checkpoints": ((0, 0.5),)}, "above 0, got 0"),
        (
            {"setting": "anytime", "checkpoints": ((float("inf"), 0.5),)},
            "above 0, got inf; without a deadline ask for an early exit, early=0.5",
        ),
        ({"setting": "anytime", "checkpoints": ((None, 50),)}, "did you mean 0.5"),
        ({"setting": "anytime", "checkpoints": ((1, 50),)}, "did you mean 0.5"),
    ],
)
def test_bad_requests(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request(**request_)


def test_more_exits_than_the_exhaustive_search_covers(make_cache: MakeCache) -> None:
    tables, costs = make_cache(np.random.default_rng(seeded(0)), points=5, per_point=1, images=3)
    with pytest.raises(ConfigError, match=r"at most 4 exits in all, got max_exits=5"):
        search(tables, costs, Request(target="macs", max_exits=5))
    # With fewer points than that, more exits cannot be chosen anyway.
    tables, costs = make_cache(np.random.default_rng(seeded(0)), points=2, images=3)
    assert search(tables, costs, Request(target="macs", max_exits=9)).gap == 0


def test_inputs_are_frozen_and_keyword_only(tables: Tables) -> None:
    for kind in (Tables, Request, Cost):
        assert all(field.kw_only for field in fields(kind))
    with pytest.raises(AttributeError, match="point"):
        Tables.__setattr__(tables, "point", np.array([2, 1]))
