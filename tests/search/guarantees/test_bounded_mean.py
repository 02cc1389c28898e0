"""Bounds on the mean of bounded losses: closed forms, and how often they hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from mess.errors import DataError
from mess.search.guarantees.bounded_mean import (
    betting_bound,
    hoeffding_bentkus_bound,
    losses_needed,
)
from tests.seeds import seeded

BOUNDS = [betting_bound, hoeffding_bentkus_bound]

Bound = Callable[[np.ndarray, float], float]


@pytest.mark.parametrize("images", [1, 20, 1000])
def test_hoeffding_of_no_loss_is_that_of_a_coin(images: int) -> None:
    """Nothing lost in n images: (1 - m)^n = 1 - confidence; Bentkus has e times that."""
    found = hoeffding_bentkus_bound(np.zeros(images), 0.9)
    assert found == pytest.approx(1 - 0.1 ** (1 / images), rel=1e-9)


def test_bentkus_is_e_times_the_binomial() -> None:
    """Where losses are whole and neither few nor many it is the smaller one."""
    losses = np.repeat([0.0, 1.0], [60, 40])
    found = hoeffding_bentkus_bound(losses, 0.99)
    assert np.e * stats.binom.cdf(40, 100, found) == pytest.approx(0.01, rel=1e-6)


def test_bets_by_a_plain_loop() -> None:
    rng = np.random.default_rng(seeded(0))
    losses, confidence = rng.beta(1, 30, 300), 0.95
    found = betting_bound(losses, confidence)

    def fortune(mean: float) -> float:
        richest, now, total, squares, before = 0.0, 1.0, 0.5, 0.25, 0.25
        for number, loss in enumerate(losses, start=1):
            bet = min(np.sqrt(2 * np.log(1 / (1 - confidence)) / (len(losses) * before)), 0.9)
            now *= 1 + bet * (mean - loss)
            richest = max(richest, now)
            total += loss
            squares += (loss - total / (number + 1)) ** 2
            before = squares / (number + 1)
        return richest

    assert fortune(found - 1e-9) < 20 <= fortune(found + 1e-9)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.beta(0.5, 9.5, 150),  # mean 0.05
        lambda rng: (rng.random(150) < 0.05).astype(float),
        lambda rng: np.full(150, 0.05),
    ],
    ids=["beta", "coin", "constant"],
)
def test_a_bound_is_broken_no_oftener_than_it_says(
    bound: Bound, draw: Callable[[np.random.Generator], np.ndarray]
) -> None:
    rng = np.random.default_rng(seeded(1))
    broken = sum(bound(draw(rng), 0.9) < 0.05 for _ in range(400))
    # 40 of 400 are allowed; five standard deviations are 30.
    assert broken <= 70


@pytest.mark.parametrize("bound", BOUNDS)
def test_more_images_and_less_confidence_bound_closer(bound: Bound) -> None:
    losses = np.random.default_rng(seeded(2)).beta(0.5, 9.5, 2000)
    assert losses.mean() < bound(losses, 0.9) < bound(losses, 0.99) < 1
    assert bound(losses, 0.95) < bound(losses[:100], 0.95)


def test_betting_knows_that_losses_hardly_vary() -> None:
    """Losses of 10% ± 1%, of which the other bound knows the mean alone."""
    losses = np.random.default_rng(seeded(3)).beta(90, 810, 400)
    assert betting_bound(losses, 0.9) - 0.1 < (hoeffding_bentkus_bound(losses, 0.9) - 0.1) / 2


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_is_no_loss_is_refused(bound: Bound) -> None:
    with pytest.raises(DataError, match=r"in \[0, 1\], got 1\.5"):
        bound(np.array([0.5, 1.5]), 0.9)
    with pytest.raises(DataError, match="got nan"):
        bound(np.array([np.nan]), 0.9)
    with pytest.raises(DataError, match="N >= 1"):
        bound(np.array([]), 0.9)


@pytest.mark.parametrize("images", [2, 10, 25])
def test_the_whole_of_few_images_is_bet_where_nothing_is_lost(images: int) -> None:
    """Up to 29 losses the bet is the largest there is throughout: (1 + 0.9 m)^n = 1 / (1 - c)."""
    assert betting_bound(np.zeros(images), 0.95) == pytest.approx(
        min(1.0, (20 ** (1 / images) - 1) / 0.9), rel=1e-9
    )


def test_losses_of_one_size_are_bounded_by_a_closed_form() -> None:
    """Two losses of 0.2 at 60%: both bets are 0.9 and (1 + 0.9 (m - 0.2))^2 = 2.5."""
    found = betting_bound(np.full(2, 0.2), 0.6)
    assert found == pytest.approx((np.sqrt(2.5) - 1) / 0.9 + 0.2, rel=1e-9)


def test_so_many_losses_are_needed_and_no_fewer() -> None:
    """Where nothing is lost; and as a bound of as many of the same."""
    for losses in (np.zeros(40), np.random.default_rng(seeded(4)).beta(0.5, 99.5, 40)):
        count = losses_needed(losses, 0.02, 0.95)
        assert betting_bound(np.resize(losses, int(count)), 0.95) <= 0.02
        assert betting_bound(np.resize(losses, int(0.97 * count)), 0.95) > 0.02
    assert losses_needed(np.zeros(40), 0.5, 0.95) == 40
    assert losses_needed(np.full(40, 0.02), 0.02, 0.95) == np.inf
    assert losses_needed(np.full(40, 0.01999), 0.02, 0.95) == np.inf


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("images", [10, 60])
def test_a_bound_holds_for_few_images_that_seldom_lose_much(bound: Bound, images: int) -> None:
    """What a normal limit gets wrong: of 10 images often none is one that loses nearly all."""
    rng = np.random.default_rng(seeded(5))
    broken = normal = 0
    for _ in range(400):
        losses = 0.9 * (rng.random(images) < 0.1) + rng.beta(1, 99, images)
        losses = losses.clip(max=1)
        broken += bound(losses, 0.9) < 0.1
        spread = losses.std(ddof=1) / np.sqrt(images)
        normal += losses.mean() + stats.t.ppf(0.9, images - 1) * spread < 0.1
    # 40 of 400 are allowed; five standard deviations are 30.
    assert broken <= 70
    # Without such an image, a third of the draws of 10, it bounds what the others lose.
    assert normal > 70 or images == 60
