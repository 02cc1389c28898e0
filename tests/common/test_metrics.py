"""Mean IoU against plain loops over pixels and classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mess.common.metrics import chance_miou, iou, mean_iou
from tests.seeds import seeded


def counts(prediction: list[int], label: list[int], classes: int) -> tuple[list[int], ...]:
    """Intersection, predicted and label counts of the pixels that are not void."""
    valid = [(p, t) for p, t in zip(prediction, label, strict=True) if t != 255]
    return (
        [sum(1 for p, t in valid if p == t == c) for c in range(classes)],
        [sum(1 for p, _ in valid if p == c) for c in range(classes)],
        [sum(1 for _, t in valid if t == c) for c in range(classes)],
    )


def plain_mean_iou(prediction: list[int], label: list[int], classes: int) -> float:
    """Set by set: pixels in both over pixels in either, for classes that occur at all."""
    ratios = []
    for c in range(classes):
        ours = {i for i, p in enumerate(prediction) if p == c and label[i] != 255}
        theirs = {i for i, t in enumerate(label) if t == c}
        if ours | theirs:
            ratios.append(len(ours & theirs) / len(ours | theirs))
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize("seed", range(8))
def test_mean_iou_equals_plain_sets_of_pixels(seed: int) -> None:
    rng = np.random.default_rng(seeded(seed))
    classes = 6
    label = rng.choice([0, 1, 2, 255], 80).tolist()
    prediction = rng.choice([0, 1, 2, 4], 80).tolist()
    found = mean_iou(*counts(prediction, label, classes))
    assert found == pytest.approx(plain_mean_iou(prediction, label, classes), abs=1e-15)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    assert mean_iou([4, 0], [4, 2], [6, 0]) == pytest.approx((4 / 6 + 0) / 2)


def test_a_class_that_is_nowhere_does_not_count() -> None:
    assert mean_iou([3, 0, 0], [3, 0, 1], [4, 0, 0]) == pytest.approx((3 / 4 + 0) / 2)
    assert np.isnan(iou([3, 0], [3, 0], [4, 0])).tolist() == [False, True]


def test_without_any_union_the_mean_is_nan_and_nothing_warns() -> None:
    assert math.isnan(mean_iou([0, 0], [0, 0], [0, 0]))
    rows = mean_iou([[0, 0], [2, 0]], [[0, 0], [2, 0]], [[0, 0], [2, 0]])
    assert np.isnan(rows).tolist() == [True, False]


def test_a_perfect_prediction_has_mean_iou_one() -> None:
    assert mean_iou([5, 7], [5, 7], [5, 7]) == 1.0


def test_leading_axes_are_independent_problems() -> None:
    rng = np.random.default_rng(seeded(3))
    label = rng.integers(0, 9, (2, 3, 4))
    hits = rng.integers(0, label + 1)
    predicted = hits + rng.integers(0, 5, label.shape)
    together = mean_iou(hits, predicted, label)
    assert np.shape(together) == (2, 3)
    for i, j in np.ndindex(2, 3):
        alone = mean_iou(hits[i, j], predicted[i, j], label[i, j])
        np.testing.assert_equal(np.asarray(together)[i, j], alone)


def test_counts_beyond_int32_do_not_overflow() -> None:
    big = np.array([2**31 - 1], np.int32)
    assert mean_iou(big, big, big) == 1.0


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        # Seven of ten pixels right, of two classes that are there.
        ([0] * 7 + [2] * 3, 0.7 / 2),
        ([0, 1, 2, 1, 255], 1 / 3),
        ([1] * 5, 1.0),
    ],
)
def test_chance_is_one_class_everywhere_or_a_guess(label: list[int], expected: float) -> None:
    most = max(set(label), key=label.count)
    _, _, labels = counts([0] * len(label), label, 3)
    assert chance_miou(labels) == pytest.approx(expected, abs=1e-12)
    everywhere = plain_mean_iou([most] * len(label), label, 3)
    assert chance_miou(labels) == pytest.approx(max(everywhere, 1 / 3), abs=1e-12)
