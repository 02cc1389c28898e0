"""IoU and its mean, whatever is predicted."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mess.common.metrics import VOID, label_counts, mean_iou

CLASSES = 4


@st.composite
def pairs_of_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A predicted map and the truth, of the same size; the truth has void pixels."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    predicted = draw(arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1)))
    truth = draw(arrays(np.uint8, shape, elements=st.sampled_from([*range(CLASSES), VOID])))
    return predicted, truth


def counted(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersection, predicted and label counts."""
    seen = truth != VOID
    hits, chosen = (
        label_counts(np.where(kept, predicted, VOID).astype(np.uint8), CLASSES)
        for kept in (seen & (predicted == truth), seen)
    )
    return hits, chosen, label_counts(truth, CLASSES)


@given(pairs_of_maps())
def test_mean_iou_is_that_of_sets_of_pixels(maps: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = maps
    ratios = []
    for label in range(CLASSES):
        ours = {p for p, value in np.ndenumerate(predicted) if value == label and truth[p] != VOID}
        theirs = {p for p, value in np.ndenumerate(truth) if value == label}
        if ours | theirs:
            ratios.append(Fraction(len(ours & theirs), len(ours | theirs)))
    found = mean_iou(*counted(predicted, truth))
    if ratios:
        assert found == pytest.approx(float(sum(ratios) / len(ratios)), rel=1e-14)
    else:
        assert np.isnan(found)


@given(st.lists(pairs_of_maps(), min_size=1, max_size=4))
def test_images_are_summed_before_the_ratio_is_taken(
    images: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    """As if they were one large image."""
    totals = np.sum([counted(*maps) for maps in images], axis=0)
    whole = [np.concatenate([maps[side].ravel() for maps in images])[None] for side in (0, 1)]
    np.testing.assert_array_equal(mean_iou(*totals), mean_iou(*counted(*whole)))


@given(pairs_of_maps(), st.permutations(range(CLASSES)))
def test_the_order_of_classes_does_not_matter(
    maps: tuple[np.ndarray, np.ndarray], order: list[int]
) -> None:
    counts = counted(*maps)
    shuffled = (count[list(order)] for count in counts)
    np.testing.assert_allclose(mean_iou(*shuffled), mean_iou(*counts), rtol=1e-14)
