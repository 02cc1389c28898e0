"""Failure prediction against plain loops and its known ends."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest

from mess.search.answers.failure_prediction import (
    area_under_risk,
    failure_prediction,
    image_mious,
    ranking,
)
from mess.search.problem.tables import Tables
from tests.search.test_policies import with_pairs
from tests.seeds import first_drawn, seeded


def plain_area(order: list[int], risk: list[float]) -> float:
    means = [sum(risk[i] for i in order[:n]) / n for n in range(1, len(order) + 1)]
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(5))
def test_areas_are_means_over_all_orders_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seeded(seed))
    signal = rng.integers(0, 3, 6).astype(np.float32)
    risk = rng.random(6)
    orders = [
        list(order)
        for order in permutations(range(6))
        if all(signal[a] >= signal[b] for a, b in pairwise(order))
    ]
    assert len(orders) > 1
    expected = np.mean([plain_area(order, risk.tolist()) for order in orders])
    assert area_under_risk(signal, risk) == pytest.approx(expected, abs=1e-12)


def test_ends_are_a_guess_and_an_oracle() -> None:
    risk = np.array([0.1, 0.9, 0.4, 0.4])
    assert failure_prediction(-risk, risk) == pytest.approx(1)
    assert failure_prediction(np.zeros(4), risk) == pytest.approx(0)
    assert failure_prediction(risk, risk) < 0
    assert np.isnan(failure_prediction(risk, np.full(4, 0.5)))


def test_image_mious_are_those_of_single_images(make_cache: Any) -> None:
    tables, _ = make_cache(np.random.default_rng(seeded(1)), images=5, classes=4)
    found = image_mious(tables)
    for e in range(tables.exits):
        for i in range(tables.images):
            if not tables.label[i].sum():
                assert np.isnan(found[e, i])
                continue
            ious = []
            for c in range(4):
                hits = int(tables.intersection[e, i, c])
                union = int(tables.predicted[e, i, c]) + int(tables.label[i, c]) - hits
                if union:
                    ious.append(hits / union)
            assert found[e, i] == pytest.approx(sum(ious) / len(ious))


def knowing(tables: Tables) -> Tables:
    """The first signal is what it is to predict, the second its opposite."""
    quality = np.nan_to_num(image_mious(tables)).astype(np.float32)
    return Tables(
        **{
            **vars(tables),
            "signals": np.stack([-quality, quality], axis=2),
            "signal_names": ("wrong", "right"),
        }
    )


def test_a_signal_that_knows_is_an_oracle(make_cache: Any) -> None:
    tables, _ = make_cache(np.random.default_rng(seeded(3)), images=30, classes=4)
    found = ranking(knowing(tables))
    assert found["right"] == pytest.approx(1)
    assert found["wrong"] < 0


def test_pairs_are_ranked_over_all_pairs(make_cache: Any) -> None:
    tables = first_drawn(
        4,
        lambda rng: with_pairs(rng, make_cache(rng, images=20, classes=4, signals=1)[0]),
        lambda tables: tables.exits > 5 and len(set(tables.point.tolist())) == 3,
    )
    assert tables.pairs is not None
    risk = 1 - image_mious(tables)
    labelled = ~np.isnan(risk[0])
    scores = [
        failure_prediction(tables.pairs[a, b][labelled], risk[b][labelled])
        for b in range(tables.exits)
        for a in range(tables.exits)
        if tables.point[a] < tables.point[b] < tables.points
    ]
    assert len(scores) > 1
    assert ranking(tables) == {"vi": pytest.approx(np.nanmean(scores))}
