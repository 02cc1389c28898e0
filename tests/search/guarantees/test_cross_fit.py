"""Cross-fitting is honest about a search that the calibration images flatter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from mess.search.guarantees.claims import Claim, Ran
from mess.search.guarantees.cross_fit import Outcome, cross_fit, narrowest, outcomes_on
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.sampling_error import (
    Counts,
    Estimate,
    error_estimate,
    mean_estimate,
    miou_estimate,
)
from tests.seeds import seeded

CONFIGURATIONS = 40

Images = NDArray[np.intp]


class Population:
    """Images whose configurations lose less the more they cost, neighbours hardly differing.

    Of many that are nearly equal a search takes the luckiest. hits: shape (X, I, C).
    """

    def __init__(self, rng: np.random.Generator, images: int) -> None:
        self.label = rng.poisson(60, (images, 4)) + 1
        final = rng.binomial(self.label, 0.8)
        scale = np.linspace(0.03, 0.01, CONFIGURATIONS)[:, None, None]
        lost = rng.gamma(0.5, scale, (CONFIGURATIONS, images, 1))
        self.hits = rng.binomial(final, 1 - np.minimum(lost, 1))
        self.hits[-1] = final
        self.costs = np.linspace(1, 2, CONFIGURATIONS)

    def counts(self, configuration: int, images: Images) -> Counts:
        hits = self.hits[configuration, images]
        return Counts.of(hits, self.label[images], self.label[images])

    def final(self, images: Images) -> Counts:
        return self.counts(CONFIGURATIONS - 1, images)

    def pick(self, images: Images, limits: Sequence[float]) -> list[int]:
        """The cheapest within each limit, else what loses least."""
        baseline = self.final(images).miou
        errors = [baseline - self.counts(x, images).miou for x in range(CONFIGURATIONS)]
        return [
            next((x for x, error in enumerate(errors) if error <= limit), int(np.argmin(errors)))
            for limit in limits
        ]

    def search(self, drawn: Images, limits: Sequence[float]) -> Callable[[Images], list[int]]:
        return lambda images: self.pick(drawn[images], limits)

    def run(self, drawn: Images) -> Callable[[int, Images], Ran]:
        def run(configuration: int, images: Images) -> Ran:
            costs = np.full(len(images), self.costs[configuration])
            return Ran((self.counts(configuration, drawn[images]),), costs)

        return run


def outcomes(deviation: float, *errors: float) -> list[Outcome]:
    """One claim, on an error."""
    figures = [Estimate(error, deviation, 30) for error in errors]
    return [Outcome((figure,), figure, figure, figure) for figure in figures]


AT_MOST_001 = (Claim(0.01, against_final=True),)


def test_margins_are_tested_from_the_widest_to_the_first_that_fails() -> None:
    # The last would pass, but comes after one that fails.
    assert narrowest(outcomes(0.0, 0.001, 0.005, 0.011, 0.004), AT_MOST_001, 0.95) == 1
    assert narrowest(outcomes(0.0, 0.02, 0.0), AT_MOST_001, 0.95) is None
    # The bound counts, not the figure: with 30 groups 95% are 1.7 deviations away.
    assert narrowest(outcomes(0.0028, 0.005), AT_MOST_001, 0.95) == 0
    assert narrowest(outcomes(0.0030, 0.005), AT_MOST_001, 0.95) is None


def test_every_claim_has_to_hold() -> None:
    both = (Claim(0.01, against_final=True), Claim(-0.7, against_final=False))
    low, high = Estimate(0.0, 0.0, 30), Estimate(-0.6, 0.0, 30)
    assert not Outcome((low, high), low, high, low).holds(both, 0.95)
    assert Outcome((low, Estimate(-0.8, 0.0, 30)), low, high, low).holds(both, 0.95)


def test_cross_fitting_by_a_plain_loop() -> None:
    rng = np.random.default_rng(seeded(0))
    population, images = Population(rng, 60), np.arange(60)
    final, limits = population.final(images), (-0.002, 0.01, 0.05)
    groups = Groups.of([str(i // 2) for i in range(60)])
    claims = (Claim(0.01, against_final=True), Claim(-0.5, against_final=False))
    heard: list[float] = []
    found = cross_fit(
        population.search(images, limits), population.run(images), final, groups, claims,
        folds=3, repeats=2, rng=np.random.default_rng(5), done=heard.append,
    )  # fmt: skip
    assert heard == [(n + 1) / 6 for n in range(6)]
    again = np.random.default_rng(5)
    divisions = [groups.folds(3, again) for _ in range(2)]
    for position, each in enumerate(found):
        errors, mious, costs = [], [], []
        for fold_I in divisions:
            hits, union, paid = np.zeros_like(final.hits_IC), np.zeros_like(final.union_IC), []
            for i in range(60):
                seen = np.flatnonzero(fold_I != fold_I[i])
                chosen = population.pick(seen, limits)[position]
                of_image = population.counts(chosen, np.array([i]))
                hits[i], union[i] = of_image.hits_IC[0], of_image.union_IC[0]
                paid.append(population.costs[chosen])
            answer = Counts(hits, union)
            errors.append(error_estimate(final, answer, groups))
            mious.append(miou_estimate(answer, groups).value)
            costs.append(mean_estimate(np.array(paid), groups))
        for estimate, parts in ((each.error, errors), (each.cost, costs)):
            mean = np.mean([part.value for part in parts])
            assert estimate.value == pytest.approx(mean, rel=1e-9, abs=1e-15)
            variance = np.mean([part.standard_error**2 for part in parts])
            assert estimate.standard_error == pytest.approx(np.sqrt(variance), rel=1e-9)
        assert each.figures[0] == each.error
        assert each.miou.value == pytest.approx(np.mean(mious), rel=1e-12)
        assert each.figures[1].value == pytest.approx(-np.mean(mious), rel=1e-12)


def test_promises_hold_where_the_search_alone_breaks_them() -> None:
    """A population whose truth is known, 100 draws of 80 images, promised 0.008 at 90%."""
    rng = np.random.default_rng(seeded(1))
    population = Population(rng, 4000)
    everything, claims = np.arange(4000), (Claim(0.008, against_final=True),)
    baseline = population.final(everything).miou
    truth = [baseline - population.counts(x, everything).miou for x in range(CONFIGURATIONS)]
    limits = np.linspace(-0.008, 0.008, 12).tolist()
    naive = cross = fresh = 0
    for _ in range(100):
        drawn, other = rng.integers(4000, size=(2, 80))
        picks = population.pick(drawn, limits)
        naive += truth[picks[-1]] > 0.008
        results = cross_fit(
            population.search(drawn, limits), population.run(drawn), population.final(drawn),
            Groups.alone(80), claims, folds=4, repeats=1, rng=rng,
        )  # fmt: skip
        index = narrowest(results, claims, 0.9)
        cross += index is not None and truth[picks[index]] > 0.008
        results = outcomes_on(
            picks, population.run(other), population.final(other), Groups.alone(80), claims
        )
        index = narrowest(results, claims, 0.9)
        fresh += index is not None and truth[picks[index]] > 0.008
    # 10 of 100 may be broken; five standard deviations more are 25.
    assert cross <= 25
    assert fresh <= 25
    assert naive > max(cross, fresh)
