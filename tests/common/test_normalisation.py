"""What a network takes, against its definition pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mess.common.normalisation import IMAGENET, Normalisation
from tests.seeds import seeded

IMAGE = np.random.default_rng(seeded(0)).integers(0, 256, (5, 7, 3), dtype=np.uint8)

ESPNET = Normalisation(
    mean=(72.39, 82.91, 73.16), std=(255 * 45.32, 255 * 46.15, 255 * 44.91),
    channels="bgr", range=255.0,
)  # fmt: skip
"""Statistics such as ESPNet's: BGR in 0..255, (x - mean) / std / 255."""

TAKEN = (IMAGENET, ESPNET, Normalisation(channels="bgr"), Normalisation(range=2.0, std=(1, 2, 3)))


@pytest.mark.parametrize("taken", TAKEN)
def test_each_pixel_is_as_the_definition_says(taken: Normalisation) -> None:
    found = taken.apply(IMAGE)
    assert found.dtype == np.float32
    assert found.shape == (3, 5, 7)
    assert found.flags.c_contiguous
    order = (2, 1, 0) if taken.channels == "bgr" else (0, 1, 2)
    for channel in range(3):
        for row in range(5):
            for column in range(7):
                level = IMAGE[row, column, order[channel]] / 255 * taken.range
                expected = (level - taken.mean[channel]) / taken.std[channel]
                assert found[channel, row, column] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_levels_up_to_255_are_not_rounded() -> None:
    same = Normalisation(mean=(0, 0, 0), std=(1, 1, 1), range=255.0)
    np.testing.assert_array_equal(same.apply(IMAGE), IMAGE.transpose(2, 0, 1))


def test_espnet_takes_what_its_authors_compute() -> None:
    means, deviations = (np.array(values, np.float32) for values in (ESPNET.mean, ESPNET.std))
    theirs = (IMAGE[..., ::-1].astype(np.float32) - means) / (deviations / 255) / 255
    np.testing.assert_allclose(ESPNET.apply(IMAGE), theirs.transpose(2, 0, 1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("taken", TAKEN)
def test_the_fill_is_the_mean_colour(taken: Normalisation) -> None:
    """Half a level off at most, by rounding."""
    filled = taken.apply(np.full((1, 1, 3), taken.fill, np.uint8))
    half = 0.5 * taken.range / 255 / np.array(taken.std)
    assert (np.abs(filled[:, 0, 0]) <= half + 1e-6).all()


def test_the_fill_is_rgb_and_a_colour() -> None:
    assert IMAGENET.fill == (124, 116, 104)
    assert ESPNET.fill == (73, 83, 72)
    assert Normalisation(mean=(-1, 0.5, 7)).fill == (0, 128, 255)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"mean": (0.5,)}, "three means.*got 1"),
        ({"std": (1, 1, 1, 1)}, "three deviations.*got 4"),
        ({"std": (1, 0, 1)}, "above 0, got 0"),
        ({"range": 0.0}, "above 0, got 0"),
        ({"channels": "grb"}, "'grb'"),
    ],
)
def test_what_cannot_be_is_refused(fault: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Normalisation(**fault)
