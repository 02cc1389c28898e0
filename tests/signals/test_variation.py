"""Variation of information against scikit-image, and sizes against plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import variation_of_information

from mess.signals.variation import variation, variations
from tests.seeds import seeded

Map = NDArray[np.uint8]
Make = Callable[[np.random.Generator, tuple[int, int], int], Map]


def noise(rng: np.random.Generator, shape: tuple[int, int], classes: int) -> Map:
    """No two neighbours need be alike: maps are compared pixel by pixel."""
    return rng.integers(0, classes, shape, dtype=np.uint8)


def regions(rng: np.random.Generator, shape: tuple[int, int], classes: int) -> Map:
    """As networks answer: maps are compared run by run."""
    scores = gaussian_filter(rng.normal(size=(classes, *shape)), (0, 5, 5))
    return scores.argmax(axis=0).astype(np.uint8)


def plain_resize(some: Map, height: int, width: int) -> Map:
    """Pixel by pixel, as the module states it."""
    out = np.empty((height, width), np.uint8)
    for row in range(height):
        for column in range(width):
            out[row, column] = some[row * len(some) // height, column * len(some[0]) // width]
    return out


def reference(previous: Map, label: Map) -> float:
    height, width = np.maximum(previous.shape, label.shape)
    resized = [plain_resize(some, height, width) for some in (previous, label)]
    return float(variation_of_information(*resized).sum())


@pytest.mark.parametrize("make", [noise, regions])
@pytest.mark.parametrize(
    ("shape", "classes"),
    [((65, 65), 21), ((64, 65), 21), ((23, 30), 11), ((40, 60), 255), ((7, 9), 3), ((1, 1), 2)],
)
def test_it_is_that_of_scikit_image(make: Make, shape: tuple[int, int], classes: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seeded(seed))
        previous, label = make(rng, shape, classes), make(rng, shape, classes)
        found = variation(previous, label, classes)
        assert found == pytest.approx(reference(previous, label), abs=1e-6)
        # Maps that agree in most places, as those of exits do.
        label = np.where(rng.random(shape) < 0.9, previous, label)
        found = variation(previous, label, classes)
        assert found == pytest.approx(reference(previous, label), abs=1e-6)


def test_runs_and_pixels_may_meet() -> None:
    rng = np.random.default_rng(seeded(0))
    previous, label = regions(rng, (65, 65), 5), noise(rng, (65, 65), 21)
    for pair in ((previous, label), (label, previous)):
        assert variation(*pair, 21) == pytest.approx(reference(*pair), abs=1e-6)


def test_all_classes_that_there_can_be() -> None:
    rng = np.random.default_rng(seeded(0))
    previous, label = (rng.permutation(255 * 8).reshape(51, 40) % 255 for _ in range(2))
    previous, label = previous.astype(np.uint8), label.astype(np.uint8)
    assert len(np.unique(previous)) == len(np.unique(label)) == 255
    expected = reference(previous, label)
    assert variation(previous, label, 255) == pytest.approx(expected, abs=1e-6)


def test_maps_of_one_class() -> None:
    rng = np.random.default_rng(seeded(0))
    plain, label = np.full((65, 65), 3, np.uint8), noise(rng, (65, 65), 21)
    for pair in ((plain, label), (label, plain)):
        assert variation(*pair, 21) == pytest.approx(reference(*pair), abs=1e-6)
    assert variation(plain, np.zeros_like(plain), 21) == 0.0


@pytest.mark.parametrize("make", [noise, regions])
@pytest.mark.parametrize("shape", [(65, 65), (23, 31), (5, 3)])
def test_maps_that_say_the_same_give_zero_and_not_minus_zero(
    make: Make, shape: tuple[int, int]
) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seeded(seed))
        some = make(rng, shape, 21)
        renamed = rng.permutation(21).astype(np.uint8)[some]
        for other in (some.copy(), renamed):
            assert variation(some, other, 21) == 0.0
            assert math.copysign(1, variation(some, other, 21)) == 1
            (signal,) = next(variations([some[None], other[None]], np.array([[0, 1]]), 21))
            assert (signal, math.copysign(1, signal)) == (0, 1)


@pytest.mark.parametrize("make", [noise, regions])
@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((23, 30), (45, 60)),
        ((33, 33), (65, 65)),
        ((65, 65), (33, 33)),
        ((7, 31), (20, 9)),
        ((20, 9), (7, 31)),
        ((1, 1), (8, 5)),
        ((17, 40), (40, 40)),
    ],
)
def test_unequal_sizes_are_brought_to_the_larger(
    make: Make, shape: tuple[int, int], other: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seeded(1))
    previous, label = make(rng, shape, 6), make(rng, other, 6)
    found = variation(previous, label, 6)
    assert found == pytest.approx(reference(previous, label), abs=1e-6)


@pytest.mark.parametrize("threads", [1, 3, None])
def test_many_pairs_are_each_what_two_maps_give(threads: int | None) -> None:
    rng = np.random.default_rng(seeded(2))
    shapes = [(9, 12), (17, 24), (9, 12), (12, 9), (17, 24)]
    maps = [np.stack([regions(rng, shape, 7) for _ in range(6)]) for shape in shapes]
    pairs = rng.permutation([(a, b) for a in range(5) for b in range(5)])
    found = list(variations(maps, pairs, 7, threads))
    assert len(found) == 6
    for image, signals in enumerate(found):
        assert signals.dtype == np.float32
        expected = [-variation(maps[a][image], maps[b][image], 7) for a, b in pairs]
        np.testing.assert_array_equal(signals, np.array(expected, np.float32))


def test_maps_that_cannot_be_written_will_do() -> None:
    some = np.frombuffer(bytes([0, 1, 1, 0]), np.uint8).reshape(2, 2)
    assert variation(some, some.T, 2) == 0.0
    assert variation(some, some[::-1], 2) == 0.0
    assert variation(some[:, :1], some[:1], 2) == pytest.approx(2)


def test_other_maps_than_agreed_are_refused() -> None:
    some = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="has class 9, there are 3 classes"):
        variation(some, some + np.uint8(9), 3)
    with pytest.raises(ValueError, match="uint8.*got int64"):
        variation(some, some.astype(np.int64), 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="has class 200"):
        variations([some[None], some[None] + np.uint8(200)], np.array([[0, 1]]), 200)
