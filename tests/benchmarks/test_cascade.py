"""Per-pixel exits on small random maps, against loops over pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.cascade.maps import Maps, cheapest, shown_counts
from mess.common.metrics import VOID, mean_iou
from mess.common.resizing import nearest
from tests.seeds import seeded

CLASSES, LEVELS = 3, 6


def drawn(seed: int, natives: list[tuple[int, int]], size: tuple[int, int]) -> tuple[
    list[NDArray[np.uint8]], list[NDArray[np.uint8]], NDArray[np.uint8], Maps
]:  # fmt: skip
    """Label maps, confidences and labels of two images, and what is made of them."""
    rng = np.random.default_rng(seeded(seed))
    labels = [rng.integers(0, CLASSES, (2, *native), dtype=np.uint8) for native in natives]
    confidences = [rng.integers(0, LEVELS, (2, *native), dtype=np.uint8) for native in natives[:-1]]
    truth = rng.integers(0, CLASSES, (2, *size), dtype=np.uint8)
    truth[rng.random(truth.shape) < 0.2] = VOID
    return labels, confidences, truth, Maps.of(labels, confidences, truth, CLASSES, LEVELS)


def shown(map_hw: NDArray[np.uint8], row: int, column: int, size: tuple[int, int]) -> int:
    """What a native map shows at a pixel of another size."""
    row, column = row * len(map_hw) // size[0], column * len(map_hw[0]) // size[1]
    return int(map_hw[row, column])


def by_pixels(
    labels: list[NDArray[np.uint8]],
    confidences: list[NDArray[np.uint8]],
    truth: NDArray[np.uint8],
    thresholds: tuple[int, ...],
    native: tuple[int, int],
) -> tuple[float, list[NDArray[np.bool_]]]:
    """MIoU, and which pixels of each later exit's own map are active, by plain loops."""
    images, *size = truth.shape
    counts = np.zeros((3, CLASSES), np.int64)
    active = [np.zeros(own.shape, np.bool_) for own in labels[1:]]
    answers = np.zeros((images, *native), np.int64)
    for image, row, column in np.ndindex(images, *native):
        answer = 0
        for own, threshold in zip(confidences, thresholds, strict=True):
            if shown(own[image], row, column, native) >= threshold:
                break
            mine = active[answer][image]
            mine[row * len(mine) // native[0], column * len(mine[0]) // native[1]] = True
            answer += 1
        answers[image, row, column] = shown(labels[answer][image], row, column, native)
    for image, row, column in np.ndindex(*truth.shape):
        true = truth[image, row, column]
        if true == VOID:
            continue
        said = shown(answers[image].astype(np.uint8), row, column, (size[0], size[1]))
        counts[0, said] += said == true
        counts[1, said] += 1
        counts[2, true] += 1
    return float(mean_iou(*counts)), active


SIZES = {
    "equal": ([(4, 5), (4, 5), (4, 5)], (9, 11)),
    "one early exit": ([(4, 5), (4, 5)], (8, 10)),
    "unequal": ([(4, 6), (2, 3), (2, 3)], (9, 13)),
    "deeper is larger": ([(2, 3), (3, 5)], (7, 11)),
}


@pytest.mark.parametrize("name", SIZES)
def test_every_choice_of_thresholds_is_what_pixels_one_by_one_give(name: str) -> None:
    natives, size = SIZES[name]
    labels, confidences, truth, maps = drawn(1, natives, size)
    common = (max(h for h, _ in natives), max(w for _, w in natives))
    found = maps.mious()
    assert found.shape == (LEVELS + 1,) * (len(natives) - 1)
    assert len(np.unique(found)) > LEVELS // 2
    for thresholds in np.ndindex(*found.shape):
        miou, active = by_pixels(labels, confidences, truth, thresholds, common)
        assert found[thresholds] == miou
        assert maps.miou(maps.composite(thresholds)) == miou
        mine = maps.active(thresholds, natives[1:])
        assert all(np.array_equal(a, b) for a, b in zip(mine, active, strict=True))


def test_a_pixel_leaves_where_its_confidence_equals_the_threshold() -> None:
    labels = [np.array([[[0, 0, 0]]]), np.array([[[1, 1, 1]]])]
    maps = Maps.of(labels, [np.array([[[3, 4, 5]]])], np.zeros((1, 1, 3), np.uint8), 2, LEVELS)
    assert maps.answering([4]).tolist() == [[[1, 0, 0]]]
    assert maps.composite([4]).tolist() == [[[1, 0, 0]]]
    assert maps.composite([0]).tolist() == [[[0, 0, 0]]]
    assert maps.composite([LEVELS]).tolist() == [[[1, 1, 1]]]


def test_counts_are_those_of_the_maps_at_the_size_of_the_labels() -> None:
    labels, _, truth, maps = drawn(2, [(4, 5), (4, 5)], (9, 11))
    intersection, predicted = maps.counts(labels[1])
    large = nearest(labels[1], (9, 11))
    for image, label in itertools.product(range(2), range(CLASSES)):
        said, true = large[image] == label, truth[image] == label
        assert intersection[image, label] == (said & true).sum()
        assert predicted[image, label] == (said & (truth[image] != VOID)).sum()
        assert maps.label[image, label] == true.sum()


def test_cells_hold_every_labelled_pixel_once() -> None:
    truth = np.array([[[0, 1, 1], [VOID, 1, 2], [0, 0, 2]]], np.uint8)
    cells = shown_counts(truth, (2, 2), CLASSES)
    # Rows 0 and 1 show row 0; columns 0 and 1 show column 0.
    assert cells[0].tolist() == [[[1, 2, 0], [0, 1, 1]], [[2, 0, 0], [0, 0, 1]]]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_cheapest_choice_is_among_those_that_are_left(dimensions: int) -> None:
    rng = np.random.default_rng(seeded(dimensions))
    for _ in range(30):
        mious = rng.integers(0, 8, (5,) * dimensions) / 10
        left = cheapest(mious, 0.5)
        feasible = [tuple(map(int, index)) for index in np.argwhere(mious >= 0.5)]
        expected = [
            choice
            for choice in feasible
            if not any(
                other != choice and all(a <= b for a, b in zip(other, choice, strict=True))
                for other in feasible
            )
        ]
        assert sorted(left) == sorted(expected)
        assert dimensions > 1 or len(left) == bool(feasible)


def test_a_rounding_error_decides_nothing() -> None:
    assert cheapest(np.array([0.3, 0.1]), 0.3) == [(0,)]
    assert cheapest(np.array([0.3]), 0.1 + 0.2) == [(0,)]
    assert cheapest(np.array([np.nextafter(0.3, 0.0)]), 0.3) == [(0,)]
    assert cheapest(np.array([0.299999999]), 0.3) == []
