"""Augmentation keeps image and mask together, pads with void, and follows the configuration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from mess.config import DataConfig
from mess.data.augment import ScaledCrop, augmentation
from tests.seeds import seeded

SIZE = (48, 64)
FILL = (124, 116, 104)

Array = NDArray[np.uint8]


def coded() -> tuple[Array, Array]:
    """A mask of 16-pixel blocks and an image whose three channels are its colour."""
    rng = np.random.default_rng(seeded(0))
    mask = np.kron(rng.permutation(12).reshape(3, 4), np.ones((16, 16))).astype(np.uint8)
    return np.repeat(20 * mask[..., None] + 20, 3, axis=2), mask


def augmented(transform: v2.Transform, seed: int) -> tuple[Array, Array]:
    image, mask = coded()
    torch.manual_seed(seeded(seed))
    pair = transform(
        tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
        tv_tensors.Mask(torch.from_numpy(mask)),
    )
    return pair[0].permute(1, 2, 0).numpy(), pair[1].numpy()


def build(crop: tuple[int, int] = SIZE, **changes: object) -> v2.Transform:
    values = {"size": SIZE, "scale": (1.0, 1.0), "flip": 0.0} | changes
    config = DataConfig.model_validate(values)
    return augmentation(config, crop, config.size)


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.7, 0.9), (1.0, 1.0), (1.3, 1.3), (0.5, 2.0)])
def test_image_and_mask_stay_aligned(scale: tuple[float, float]) -> None:
    """Inside blocks, where bilinear weights cannot mix two classes, the colour gives the class."""
    transform = build((40, 56), scale=scale, flip=0.5)
    compared = 0
    for seed in range(20):
        image, mask = augmented(transform, seed)
        assert image.shape == (40, 56, 3)
        assert mask.shape == (40, 56)
        padded = np.pad(mask, 2, mode="edge")
        views = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
        inner = (views == mask[..., None, None]).all(axis=(2, 3)) & (mask != 255)
        expected = np.repeat(20 * mask[inner][:, None] + 20, 3, axis=1)
        np.testing.assert_array_equal(image[inner], expected)
        compared += int(inner.sum())
    assert compared > 1000


def test_smaller_images_are_padded_with_void_and_mean_colour() -> None:
    places = set()
    for seed in range(10):
        image, mask = augmented(build(scale=(0.5, 0.5)), seed)
        void = mask == 255
        assert void.sum() == 48 * 64 - 24 * 32
        np.testing.assert_array_equal(image[void], np.broadcast_to(FILL, (void.sum(), 3)))
        rows, columns = np.nonzero(~void)
        assert (np.ptp(rows), np.ptp(columns)) == (23, 31)
        places.add((rows.min(), columns.min()))
    assert len(places) > 5


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.3, 1.55, 2.0])
def test_whole_images_are_scaled_as_pillow_scales_them(scale: float) -> None:
    """Data sets are rescaled by Pillow: both ways of scaling must place pixels alike."""
    height, width = target = round(48 * scale), round(64 * scale)
    image, mask = augmented(build(target, scale=(scale, scale)), seed=0)
    pixels, labels = (Image.fromarray(array) for array in coded())
    expected = np.asarray(labels.resize((width, height), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(mask, expected)
    smooth = np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(image - smooth).max() <= 1


def test_padding_has_the_mean_colour_of_what_the_network_takes() -> None:
    taken = {"mean": (10, 20, 300), "std": (1, 1, 1), "channels": "bgr", "range": 255.0}
    image, mask = augmented(build(scale=(0.5, 0.5), **taken), seed=0)
    assert np.unique(image[mask == 255], axis=0).tolist() == [[255, 20, 10]]


def test_without_variation_it_is_the_identity() -> None:
    image, mask = augmented(build(), seed=0)
    np.testing.assert_array_equal(image, coded()[0])
    np.testing.assert_array_equal(mask, coded()[1])


def test_flip_mirrors_both() -> None:
    image, mask = augmented(build(flip=1.0), seed=0)
    np.testing.assert_array_equal(image, coded()[0][:, ::-1])
    np.testing.assert_array_equal(mask, coded()[1][:, ::-1])


def test_crop_is_a_window_and_reaches_every_corner() -> None:
    _, whole = coded()
    windows = np.lib.stride_tricks.sliding_window_view(whole, (46, 61))
    places = set()
    for seed in range(200):
        _, mask = augmented(build((46, 61)), seed)
        found = np.argwhere((windows == mask).all(axis=(2, 3)))
        assert len(found) == 1
        places.add(tuple(found[0].tolist()))
    assert places == {(row, column) for row in range(3) for column in range(4)}


def test_enlarged_crop_shows_its_share_of_the_source() -> None:
    """At twice the scale, a crop of the whole size shows a quarter of the image."""
    transform = ScaledCrop((2.0, 2.0), SIZE, FILL, SIZE)
    image, _ = coded()
    params = transform.make_params([tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))])
    assert params["crop"][2:] == (24, 32)
    assert params["size"] == [48, 64]
    assert params["padding"] == [0, 0, 0, 0]


def test_an_enlarged_crop_of_a_larger_original_is_a_part_of_it() -> None:
    """At twice the scale, images of half the size in the run are as sharp as they were."""
    whole, _ = coded()
    transform = build((20, 30), size=(24, 32), scale=(2.0, 2.0))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (20, 30), axis=(0, 1))
    for seed in range(5):
        image, mask = augmented(transform, seed)
        found = np.argwhere((windows == image.transpose(2, 0, 1)).all(axis=(2, 3, 4)))
        assert len(found) == 1
        top, left = found[0]
        np.testing.assert_array_equal(mask, coded()[1][top : top + 20, left : left + 30])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_factors_are_of_the_size_in_the_run(scale: float) -> None:
    height, width = target = round(24 * scale), round(32 * scale)
    image, mask = augmented(build(target, size=(24, 32), scale=(scale, scale)), seed=0)
    pixels, labels = (Image.fromarray(array) for array in coded())
    expected = np.asarray(labels.resize((width, height), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(mask, expected)
    smooth = np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(image - smooth).max() <= 1


def test_jitter_changes_colours_only() -> None:
    image, mask = augmented(build(jitter=0.5), seed=1)
    assert not np.array_equal(image, coded()[0])
    np.testing.assert_array_equal(mask, coded()[1])


def test_same_seed_same_result() -> None:
    transform = build((40, 56), scale=(0.5, 2.0), flip=0.5, jitter=0.4)
    first, again, other = (augmented(transform, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
