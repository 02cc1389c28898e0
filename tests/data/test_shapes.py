"""`shapes`: all classes, a wide and known range of difficulty, and drawing that never varies."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest

from mess.config import DataConfig
from mess.data import open_split
from mess.data.shapes import CLASSES, Scene, Shapes

CONFIG = DataConfig(size=(96, 128), shapes=(120, 60, 60), holdout=0.0)


@pytest.fixture(scope="module")
def data() -> Shapes:
    opened = open_split(CONFIG, "train", seed=0)
    assert isinstance(opened, Shapes)
    return opened


def test_all_classes_take_a_share_of_the_pixels(data: Shapes) -> None:
    masks = np.stack([data.sized(index)[1] for index in range(len(data))])
    shares = np.bincount(masks.ravel(), minlength=256) / masks.size
    assert 0.5 < shares[0] < 0.9
    assert all(share > 0.02 for share in shares[1 : CLASSES.num_classes])
    assert 0 < shares[255] < 0.03
    with_void = float((masks == 255).any(axis=(1, 2)).mean())
    assert 0.1 < with_void < 0.35


def test_difficulty_covers_its_range(data: Shapes) -> None:
    difficulties = [data.difficulty(index) for index in range(len(data))]
    assert all(0 <= difficulty <= 1 for difficulty in difficulties)
    assert np.histogram(difficulties, bins=5, range=(0, 1))[0].min() >= 10


def test_scenes_get_harder() -> None:
    easy, hard = Scene.of(0.0), Scene.of(1.0)
    assert (easy.objects, hard.objects) == (1, 12)
    assert easy.radius > hard.radius
    assert easy.contrast > hard.contrast
    assert easy.tint > hard.tint
    assert (easy.texture, easy.noise, easy.blur) < (hard.texture, hard.noise, hard.blur)


def test_harder_images_have_more_boundary(data: Shapes) -> None:
    order = sorted(range(len(data)), key=data.difficulty)

    def boundary(index: int) -> float:
        mask = data.sized(index)[1].astype(int)
        return float((np.diff(mask, axis=1) != 0).mean())

    easy, hard = ([boundary(i) for i in part] for part in (order[:40], order[-40:]))
    assert np.mean(hard) > 2 * np.mean(easy)


def test_colour_alone_does_not_give_the_class(data: Shapes) -> None:
    """Giving each colour the object class it is most often elsewhere is right for few pixels."""
    colours, labels = [], []
    for index in range(len(data)):
        image, mask = data.sized(index)
        inside = (mask > 0) & (mask < CLASSES.num_classes)
        colours.append((image[inside] // 43).astype(np.intp) @ np.array([36, 6, 1]))
        labels.append(mask[inside].astype(np.intp))
    counts = np.zeros((216, CLASSES.num_classes))
    np.add.at(counts, (np.concatenate(colours[::2]), np.concatenate(labels[::2])), 1)
    guesses = counts.argmax(axis=1)[np.concatenate(colours[1::2])]
    accuracy = (guesses == np.concatenate(labels[1::2])).mean()
    assert 0.25 < accuracy < 0.6


def test_splits_and_seeds_draw_different_images() -> None:
    images = [
        open_split(CONFIG, split, seed=seed).read(0)[0].tobytes()
        for split in ("train", "calibration", "test")
        for seed in (0, 1, -1)
    ]
    assert len(set(images)) == 9


def test_an_image_depends_on_its_number_only(data: Shapes) -> None:
    fewer = open_split(CONFIG.model_copy(update={"shapes": (7, 1, 1)}), "train", seed=0)
    assert len(fewer) == 7
    np.testing.assert_array_equal(fewer.read(6)[0], data.read(6)[0])
    np.testing.assert_array_equal(fewer.read(6)[1], data.read(6)[1])


def test_another_process_draws_the_same(data: Shapes) -> None:
    code = (
        "import hashlib; from mess.config import DataConfig; from mess.data import open_split\n"
        "data = open_split(DataConfig(size=(96, 128), shapes=(120, 60, 60), holdout=0.0), "
        "'train', 0)\n"
        "print(data.fingerprint())\n"
        "for array in data.read(5): print(hashlib.sha256(array.tobytes()).hexdigest())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [sha256(array.tobytes()).hexdigest() for array in data.read(5)]
    assert run.stdout.split() == [data.fingerprint(), *expected]


@pytest.mark.parametrize("size", [(1, 1), (8, 5), (33, 200), (240, 180)])
def test_any_size(size: tuple[int, int]) -> None:
    data = open_split(CONFIG.model_copy(update={"size": size}), "test", seed=3)
    for index in range(20):
        image, mask = data.read(index)
        assert image.shape == (*size, 3)
        assert mask.shape == size
