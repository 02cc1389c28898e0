"""Standard errors are those of the jackknife, intervals cover the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mess.common.metrics import mean_iou
from mess.errors import ConfigError, DataError
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.sampling_error import (
    Counts,
    Estimate,
    error_estimate,
    mean_estimate,
    miou_estimate,
)
from tests.seeds import seeded


def random_counts(rng: np.random.Generator, images: int, classes: int) -> Counts:
    """As those of a network: classes have frequencies and accuracies of their own."""
    label = rng.poisson(rng.uniform(5, 200, classes), (images, classes))
    hits = rng.binomial(label, rng.beta(6, 2, (images, 1)) * rng.uniform(0.6, 1, classes))
    predicted = hits + rng.poisson(rng.uniform(1, 20, classes), (images, classes))
    return Counts.of(hits, predicted, label)


def weighted_miou(counts: Counts, weight_I: np.ndarray) -> float:
    hits, union = weight_I @ counts.hits_IC, weight_I @ counts.union_IC
    return float((hits[union > 0] / union[union > 0]).mean())


def test_miou_is_that_of_the_metrics() -> None:
    rng = np.random.default_rng(seeded(0))
    label = rng.integers(0, 9, (5, 4)) * [1, 1, 1, 0]
    hits = rng.binomial(label, 0.7)
    predicted = hits + rng.integers(0, 3, (5, 4)) * [1, 1, 0, 0]
    found = Counts.of(hits, predicted, label)
    assert found.present_C.tolist() == [True, True, True, False]
    assert found.miou == mean_iou(hits.sum(axis=0), predicted.sum(axis=0), label.sum(axis=0))


def test_without_a_group_miou_is_that_of_the_others() -> None:
    """Also of a class that one group alone has, and with groups of different sizes."""
    rng = np.random.default_rng(seeded(1))
    counts = random_counts(rng, images=60, classes=5)
    groups = Groups.of([f"g{number}" for number in np.sqrt(rng.integers(225, size=60)).astype(int)])
    alone = groups.of_image == 0
    counts.hits_IC[~alone, 4] = counts.union_IC[~alone, 4] = 0
    expected = [
        weighted_miou(counts, (groups.of_image != group).astype(float))
        for group in range(len(groups))
    ]
    np.testing.assert_allclose(counts.without_G(groups), expected, rtol=1e-12)
    assert Groups.alone(60).images == len(counts.without_G(Groups.alone(60)))


def test_one_group_with_all_pixels_says_nothing_about_others() -> None:
    hits = np.array([[3, 1], [0, 0], [0, 0]])
    with pytest.raises(DataError, match="one group has all pixels"):
        Counts(hits, hits).without_G(Groups.alone(3))


def test_the_standard_error_is_the_jackknifes() -> None:
    rng = np.random.default_rng(seeded(2))
    final, answer = (random_counts(rng, images=90, classes=4) for _ in range(2))
    groups = Groups.of([f"g{number}" for number in np.sqrt(rng.integers(400, size=90)).astype(int)])
    left_out = []
    for group in range(len(groups)):
        weight = (groups.of_image != group).astype(float)
        left_out.append(weighted_miou(final, weight) - weighted_miou(answer, weight))
    spread, size = np.square(np.array(left_out) - np.mean(left_out)).sum(), len(groups)
    found = error_estimate(final, answer, groups)
    assert found.value == final.miou - answer.miou
    assert found.groups == size
    assert found.standard_error == pytest.approx(np.sqrt((size - 1) / size * spread), rel=1e-9)
    assert found.skewness == pytest.approx(stats.skew(-np.array(left_out)), rel=1e-9)


def test_variances_are_averaged_over_divisions() -> None:
    """Not moves: their mean would vary less than what it stands for."""
    moves_RG = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    assert Estimate.of_moves(0.0, moves_RG).standard_error == pytest.approx(np.sqrt(2 * 2 / 3))
    one = Estimate.of_moves(0.0, moves_RG[:1])
    assert one.standard_error == pytest.approx(np.sqrt(2 * 2 / 3))


def test_what_samples_lack_widens_one_side() -> None:
    """Where few groups lose much the figure of all may be larger, and hardly smaller."""
    moves_G = np.array([9.0, *[-1.0] * 9])
    found = Estimate.of_moves(0.5, moves_G[None])
    student = stats.t.ppf(0.9, 9)
    assert found.skewness == pytest.approx(stats.skew(moves_G))
    widened = found.skewness * (2 * student**2 + 1) / (6 * np.sqrt(10))
    assert found.upper(0.9) == pytest.approx(0.5 + (student + widened) * found.standard_error)
    assert found.lower(0.9) == pytest.approx(0.5 - student * found.standard_error)
    turned = found.negative()
    assert (turned.value, turned.lower(0.9)) == (-0.5, pytest.approx(-found.upper(0.9)))
    assert turned.upper(0.9) == pytest.approx(-found.lower(0.9))
    assert found.is_skewed
    assert turned.is_skewed
    assert not Estimate.of_moves(0.5, np.array([[1.0, -1.0] * 5])).is_skewed


def test_a_mean_has_the_textbooks_interval() -> None:
    values = np.random.default_rng(seeded(3)).normal(3, 2, 40)
    found = mean_estimate(values, Groups.alone(40))
    assert found.skewness == pytest.approx(stats.skew(values))
    found = found._replace(skewness=0.0)
    expected = stats.t.interval(0.9, 39, values.mean(), stats.sem(values))
    assert found.interval(0.9) == pytest.approx(expected, rel=1e-9)
    assert found.upper(0.95) == pytest.approx(expected[1], rel=1e-9)
    assert found.lower(0.95) == pytest.approx(expected[0], rel=1e-9)


def test_copies_of_images_make_nothing_more_certain() -> None:
    """Where they are one group; as images of their own they would halve the error."""
    counts = random_counts(np.random.default_rng(seeded(4)), images=30, classes=3)
    copies = Counts(np.repeat(counts.hits_IC, 4, 0), np.repeat(counts.union_IC, 4, 0))
    alone = miou_estimate(counts, Groups.alone(30))
    together = miou_estimate(copies, Groups.of([str(i // 4) for i in range(120)]))
    assert together.value == pytest.approx(alone.value, rel=1e-12)
    assert together.standard_error == pytest.approx(alone.standard_error, rel=1e-12)
    apart = miou_estimate(copies, Groups.alone(120))
    assert apart.standard_error == pytest.approx(alone.standard_error / 2, rel=0.05)


def test_what_answers_alike_loses_nothing_for_certain() -> None:
    counts = random_counts(np.random.default_rng(seeded(5)), images=10, classes=3)
    found = error_estimate(counts, counts, Groups.alone(10))
    assert (found.value, found.standard_error, found.upper(0.99)) == (0, 0, 0)


def images_of(rng: np.random.Generator, classes: int) -> tuple[Counts, Counts]:
    """A population of 20,000: the final exit's counts, and an answer's that few images are lost by.

    Each class is in a share of the images, the rarest in one of forty; what an image loses is all
    but nothing for most and much for some, as where an early exit takes an image that it cannot do.
    """
    present = rng.random((20_000, classes)) < np.geomspace(1, 0.025, classes)
    label = present * rng.poisson(rng.uniform(20, 200, classes), present.shape)
    hits = rng.binomial(label, rng.beta(6, 2, (len(label), 1)) * rng.uniform(0.6, 1, classes))
    final = Counts.of(hits, hits + rng.poisson(rng.uniform(1, 20, classes), label.shape), label)
    lost = np.minimum(1, rng.gamma(0.4, 0.06, (len(label), 1)))
    return final, replace(final, hits_IC=rng.binomial(final.hits_IC, 1 - lost))


@pytest.mark.parametrize(
    ("classes", "images", "fewest"), [(5, 400, 835), (5, 100, 790), (20, 100, 810)]
)
def test_bounds_hold_as_often_as_they_say(classes: int, images: int, fewest: int) -> None:
    """Of 1,000 samples from a population whose error is known.

    900 are expected; of so skewed losses it is 820 to 850 with 100 images, which is what makes a
    certificate weak. Without the widening it would be 40 less, and three deviations are 35.
    """
    rng = np.random.default_rng(seeded(7))
    final, answer = images_of(rng, classes)
    truth, groups, held = final.miou - answer.miou, Groups.alone(images), 0
    for _ in range(1000):
        drawn = rng.integers(20_000, size=images)
        some, answers = (Counts(c.hits_IC[drawn], c.union_IC[drawn]) for c in (final, answer))
        held += error_estimate(some, answers, groups).upper(0.9) >= truth
    assert fewest <= held <= 970


def test_one_group_says_nothing_about_others() -> None:
    with pytest.raises(DataError, match="all images are of one group.*more groups"):
        Estimate.of_moves(0.5, np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("confidence", "words"), [(0.5, "got 0.5$"), (1.0, "got 1$"), (95.0, "did you mean 0.95")]
)
def test_what_is_no_confidence_is_refused(confidence: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Estimate(0.5, 0.1, 10).upper(confidence)


def test_without_a_pixel_there_is_no_miou() -> None:
    nothing = np.zeros((2, 3), dtype=np.int64)
    with pytest.raises(DataError, match="no class has a pixel"):
        _ = Counts(nothing, nothing).miou
