"""Intervals against closed forms, the jackknife and each other; and how often they hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mess.errors import ConfigError
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.intervals import (
    LEAST_OF_CLASS,
    Accuracies,
    Interval,
    drawn_ious,
    groups_of_classes,
    mean_interval,
    rare_classes,
    share_interval,
)
from mess.search.guarantees.sampling_error import Counts, Estimate, error_estimate, miou_estimate
from tests.search.guarantees.test_sampling_error import random_counts
from tests.seeds import seeded


def everywhere(counts: Counts) -> NDArray[np.int64]:
    """Labels by which every image has every class."""
    return np.maximum(counts.union_IC, 1)


def accuracies(*counts: Counts, groups: Groups, seed: int = 0, draws: int = 10_000) -> Accuracies:
    rng = np.random.default_rng(seeded(seed))
    return Accuracies.of(counts, everywhere(counts[0]), groups, 0.95, rng, draws)


def test_a_draw_is_the_iou_of_the_drawn_images() -> None:
    """Of both configurations, on the same images; a class without a labelled pixel has none."""
    hits, union = np.array([[4, 0], [1, 0], [2, 3]]), np.array([[5, 0], [4, 2], [4, 6]])
    label = np.array([[4, 0], [2, 0], [3, 4]])
    one, two = Counts(hits, union), Counts(hits // 2, union)
    found = drawn_ious((one, two), label, Groups.alone(3), np.random.default_rng(0), 50)
    drawn = np.random.default_rng(0).integers(3, size=(50, 3))
    assert found.shape == (50, 2, 2)
    for ious, images in zip(found, drawn, strict=True):
        for configuration, counts in enumerate((one, two)):
            weights = np.bincount(images, minlength=3)
            expected = weights @ counts.hits_IC / np.maximum(weights @ union, 1)
            assert ious[configuration, 0] == expected[0]
            assert (
                np.isnan(ious[configuration, 1])
                if 2 not in images
                else ious[configuration, 1] == expected[1]
            )


def test_bootstrap_delta_method_and_jackknife_agree() -> None:
    """Where there are many groups: of mIoU, of the error and of a class."""
    rng = np.random.default_rng(seeded(1))
    final = random_counts(rng, images=600, classes=5)
    answer = replace(final, hits_IC=rng.binomial(final.hits_IC, 0.97))
    groups = Groups.of([str(i // 3) for i in range(600)])
    found = accuracies(final, answer, groups=groups)
    one = Counts(answer.hits_IC[:, [2]], answer.union_IC[:, [2]])

    def influence_G(counts: Counts) -> NDArray[np.float64]:
        """By how much mIoU moves with the weight of each group, in a straight line."""
        hits, union = counts.hits_IC, counts.union_IC
        whole = union.sum(axis=0)
        return groups.sums(((hits - hits.sum(axis=0) / whole * union) / whole).mean(axis=1))

    lost = found.error(1, 0)
    assert lost is not None
    assert lost == error_estimate(final, answer, groups)
    for interval, estimate, moved_G in (
        (found.miou(1), miou_estimate(answer, groups), influence_G(answer)),
        (
            Interval(lost.value, *lost.interval(0.95)),
            lost,
            influence_G(final) - influence_G(answer),
        ),
        (found.iou(1, 2), miou_estimate(one, groups), influence_G(one)),
    ):
        delta = np.sqrt(200 / 199 * np.square(moved_G).sum())
        assert estimate.standard_error == pytest.approx(delta, rel=0.03)
        assert interval is not None
        # Ends of 10,000 draws are within 3% or so of the deviation.
        reach = stats.t.ppf(0.975, 199) * delta
        assert interval.high - interval.value == pytest.approx(reach, rel=0.1)
        assert interval.value - interval.low == pytest.approx(reach, rel=0.1)


def test_few_groups_have_students_percentiles() -> None:
    """An IoU whose union is the same in every image is a mean: it has the textbook's interval."""
    rng = np.random.default_rng(seeded(3))
    for count in (8, 30):
        hits = np.rint(rng.normal(500_000, 50_000, (count, 1))).astype(np.int64)
        counts = Counts(hits, np.full_like(hits, 1_000_000))
        found = accuracies(counts, groups=Groups.alone(count), draws=40_000).iou(0, 0)
        shares = hits[:, 0] / 1_000_000
        expected = stats.t.interval(0.95, count - 1, shares.mean(), stats.sem(shares))
        assert found is not None
        assert found.high - found.low == pytest.approx(expected[1] - expected[0], rel=0.1)
        plain = 2 * 1.96 * shares.std() / np.sqrt(count)
        assert found.high - found.low > plain * (1.2 if count == 8 else 1.02)


def test_what_ran_on_the_same_images_is_paired() -> None:
    """The error of what differs in few images is far more certain than either mIoU."""
    rng = np.random.default_rng(seeded(4))
    final = random_counts(rng, images=200, classes=4)
    worse = final.hits_IC.copy()
    worse[:20] //= 2
    found = accuracies(final, Counts(worse, final.union_IC), groups=Groups.alone(200))
    error, miou = found.error(1, 0), found.miou(1)
    assert error is not None
    assert miou is not None
    assert error.value == pytest.approx(final.miou - miou.value)
    assert error.lower(0.975) > 0
    whole = found.miou(0)
    assert whole is not None
    apart = np.hypot(miou.high - miou.low, whole.high - whole.low)
    low, high = error.interval(0.95)
    assert high - low < 0.7 * apart
    # Turned round it is the same with the other sign.
    back = found.error(0, 1)
    assert back is not None
    assert back.interval(0.95) == pytest.approx((-high, -low))
    lost = found.lost_iou(1, 2, 0)
    assert lost is not None
    assert lost.value == pytest.approx(found.iou_KC[0, 2] - found.iou_KC[1, 2])
    assert 0 < lost.low < lost.value < lost.high


def test_an_error_that_few_images_hold_is_called_uncertain() -> None:
    """Two of 40 lose all that is lost: of as many others none may, or five."""
    final = Counts(np.full((40, 2), 90), np.full((40, 2), 100))

    def error(losing: int, hits: int) -> Estimate:
        worse = final.hits_IC.copy()
        worse[:losing] = hits
        answer = Counts(worse, final.union_IC)
        found = accuracies(final, answer, groups=Groups.alone(40)).error(1, 0)
        assert found is not None
        return found

    assert error(2, 50).is_skewed
    assert not error(20, 86).is_skewed


def test_copies_of_images_make_nothing_more_certain() -> None:
    counts = random_counts(np.random.default_rng(seeded(5)), images=40, classes=3)
    copies = Counts(np.repeat(counts.hits_IC, 5, 0), np.repeat(counts.union_IC, 5, 0))
    alone = accuracies(counts, groups=Groups.alone(40)).miou(0)
    together = accuracies(copies, groups=Groups.of([str(i // 5) for i in range(200)])).miou(0)
    # The draws are the same.
    assert together == alone


def test_a_class_of_five_groups_is_rare_and_one_of_six_is_not() -> None:
    label = np.zeros((40, 3), dtype=np.int64)
    label[:, 0] = 5
    # Of class 1 five groups of two images, of class 2 six: the second image of a pair is enough.
    label[:10, 1] = 1
    label[1:12:2, 2] = 1
    groups = Groups.of([str(i // 2) for i in range(40)])
    assert groups_of_classes(label, groups).tolist() == [20, 5, 6]
    assert rare_classes(label, groups).tolist() == [False, True, False]
    assert LEAST_OF_CLASS == 6
    final = Counts(label, label + 1)
    answer = Counts(label // 2, label + 1)
    rng = np.random.default_rng(0)
    found = Accuracies.of((final, answer), label, groups, 0.95, rng, 500)
    assert found.iou(0, 1) is None
    assert found.lost_iou(1, 1, 0) is None
    # Means are over the others.
    miou, error = found.miou(0), found.error(1, 0)
    assert miou is not None
    assert error is not None
    assert miou.value == pytest.approx(found.iou_KC[0, [0, 2]].mean())
    assert error.value == pytest.approx((found.iou_KC[0] - found.iou_KC[1])[[0, 2]].mean())


def test_where_every_class_is_rare_nothing_is_said() -> None:
    label = np.zeros((20, 2), dtype=np.int64)
    label[:5] = 3
    found = Accuracies.of(
        (Counts(label, label),) * 2, label, Groups.alone(20), 0.95, np.random.default_rng(0), 100
    )
    assert (found.miou(0), found.error(1, 0), found.iou(0, 0)) == (None, None, None)


@pytest.mark.parametrize("hits", [0, 1])
def test_what_no_group_showed_may_still_be(hits: int) -> None:
    """An IoU of 0 in all of 12 groups: at most 1 - 0.025^(1/12) of all."""
    union = np.full((12, 1), 9)
    found = accuracies(Counts(hits * union, union), groups=Groups.alone(12)).iou(0, 0)
    reach = 1 - 0.025 ** (1 / 12)
    expected = (0.0, reach) if hits == 0 else (1 - reach, 1.0)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(expected)


def test_shares_of_single_images_have_clopper_and_pearsons_interval() -> None:
    """Of one image less: the deviation is estimated, too."""
    is_in = np.arange(50) < 8
    found = share_interval(is_in, Groups.alone(50), 0.95)
    share, count = 8 / 50, 49
    low = stats.beta.ppf(0.025, share * count, count - share * count + 1)
    high = stats.beta.ppf(0.975, share * count + 1, count - share * count)
    assert (found.value, found.low, found.high) == pytest.approx((share, low, high))
    exact = stats.binomtest(8, 50).proportion_ci(0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.004)


@pytest.mark.parametrize("everything", [False, True])
def test_shares_of_none_and_all_have_the_rule_of_three(everything: bool) -> None:
    found = share_interval(
        np.full(60, everything), Groups.of([str(i // 2) for i in range(60)]), 0.9
    )
    reach = 1 - 0.05 ** (1 / 30)
    assert (found.low, found.high) == pytest.approx((1 - reach, 1) if everything else (0, reach))


def test_shares_of_groups_that_are_alike_tell_as_much_as_their_groups() -> None:
    is_in = np.arange(30) < 11
    alone = share_interval(is_in, Groups.alone(30), 0.95)
    copies = share_interval(np.repeat(is_in, 4), Groups.of([str(i // 4) for i in range(120)]), 0.95)
    # But for Student's percentiles: groups are fewer than images.
    count = 29 * (stats.t.ppf(0.975, 119) / stats.t.ppf(0.975, 29)) ** 2
    hits = count * 11 / 30
    expected = stats.beta.ppf([0.025, 0.975], [hits, hits + 1], [count - hits + 1, count - hits])
    assert (copies.low, copies.high) == pytest.approx(tuple(expected))
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    apart = share_interval(np.repeat(is_in, 4), Groups.alone(120), 0.95)
    assert apart.high - apart.low < 0.6 * (alone.high - alone.low)


def test_groups_that_balance_out_tell_no_more_than_single_images() -> None:
    """Half of each group: by chance, not because all groups are so."""
    is_in = np.arange(40) % 2 == 0
    found = share_interval(is_in, Groups.of([str(i // 4) for i in range(40)]), 0.95)
    exact = stats.binomtest(20, 40).proportion_ci(0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_a_mean_has_the_textbooks_interval() -> None:
    """Of values that lie as far above their mean as below: others are widened."""
    half = np.random.default_rng(seeded(6)).normal(0, 2, 20)
    values = 3 + np.concatenate([half, -half])
    found = mean_interval(values, Groups.alone(40), 0.9)
    expected = stats.t.interval(0.9, 39, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share", [0.03, 0.4])
def test_shares_hold_as_often_as_they_say(share: float) -> None:
    """Groups of four images that go together in half of the cases; 2,000 draws of 30 groups."""
    rng = np.random.default_rng(seeded(7))
    groups = Groups.of([str(i // 4) for i in range(120)])
    held = 0
    for _ in range(2000):
        own, common = rng.random((30, 4)) < share, rng.random((30, 1)) < share
        is_in = np.where(rng.random((30, 1)) < 0.5, common, own).ravel()
        found = share_interval(is_in, groups, 0.95)
        held += found.low <= share <= found.high
    # 1,900 are expected at least, less five standard deviations of 10; never all.
    assert 1850 <= held < 2000


def test_intervals_hold_as_often_as_they_say() -> None:
    """Of mIoU, error and a class that one image in four has: 400 draws of 40 groups of 2 images."""
    rng = np.random.default_rng(seeded(8))
    whole = random_counts(rng, images=20_000, classes=4)
    there = np.ones((20_000, 4), dtype=np.int64)
    there[:, 3] = np.arange(20_000) % 8 < 2
    final = Counts(whole.hits_IC * there, whole.union_IC * there)
    answer = replace(final, hits_IC=rng.binomial(final.hits_IC, 0.97))
    ious = [c.hits_IC.sum(axis=0) / c.union_IC.sum(axis=0) for c in (final, answer)]
    truths = (ious[1].mean(), (ious[0] - ious[1]).mean(), ious[1][3])
    groups, held = Groups.of([str(i // 2) for i in range(80)]), np.zeros(3)
    for _ in range(400):
        drawn = (rng.integers(10_000, size=40)[:, None] * 2 + np.arange(2)).ravel()
        some = [Counts(c.hits_IC[drawn], c.union_IC[drawn]) for c in (final, answer)]
        found = Accuracies.of(some, some[0].union_IC, groups, 0.95, rng, 1000)
        lost = found.error(1, 0)
        assert lost is not None
        error = Interval(lost.value, *lost.interval(0.95))
        for index, interval in enumerate((found.miou(1), error, found.iou(1, 3))):
            # Ten of 40 groups have the class, seldom fewer than six.
            held[index] += interval is None or interval.low <= truths[index] <= interval.high
    # 380 are expected; five standard deviations of 400 draws are 22.
    assert (held >= 358).all(), held
    assert (held < 400).all(), held


def test_what_is_no_confidence_is_refused() -> None:
    counts = random_counts(np.random.default_rng(0), images=8, classes=2)
    with pytest.raises(ConfigError, match=r"did you mean 0\.95"):
        Accuracies.of((counts,), counts.union_IC, Groups.alone(8), 95, np.random.default_rng(0), 10)
    with pytest.raises(ConfigError, match=r"got 0\.5"):
        share_interval(np.array([True] * 8), Groups.alone(8), 0.5)
