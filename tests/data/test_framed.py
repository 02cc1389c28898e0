"""Data sets of images that are padded, or cut into tiles."""

from __future__ import annotations

import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mess.data.files
from mess.common.images import read_image, thumbnail
from mess.common.metrics import VOID, label_counts
from mess.config import DataConfig
from mess.data import ClassTable, SegmentationData, Unlabelled, open_split, open_unlabelled
from mess.data.base import image_of
from mess.data.sets import EvaluationSet, TrainingSet
from mess.errors import DataError

Make = Callable[[str], DataConfig]

SIZE = (16, 20)
"""Smaller than the images, of 30 to 40 rows and 42 columns or 30 by 40."""


def opened(config: DataConfig, split: str = "train", **changes: Any) -> SegmentationData:
    return open_split(config.model_copy(update={"size": SIZE} | changes), split, seed=1)


def sums(data: SegmentationData) -> np.ndarray:
    classes = data.classes.num_classes
    return np.sum([label_counts(data.sized(i)[1], classes) for i in range(len(data))], axis=0)


@pytest.mark.parametrize("kind", ["folder", "voc", "sbd", "voc-aug", "coco", "shapes"])
def test_tiles_of_every_kind_count_each_pixel_once(make: Make, kind: str) -> None:
    config = make(kind)
    whole = opened(config, fit="stretch")
    tiles = opened(config, fit="tile")
    classes = whole.classes.num_classes
    masks = [whole.read(index)[1] for index in range(len(whole))]
    expected = np.sum([label_counts(mask, classes) for mask in masks], axis=0)
    np.testing.assert_array_equal(sums(tiles), expected)
    assert {image_of(item) for item in tiles.ids} == set(whole.ids)
    # In the order of the images, and row by row.
    order = list(dict.fromkeys(map(image_of, tiles.ids)))
    assert order == whole.ids
    for index in range(len(tiles)):
        image, mask = tiles.sized(index)
        assert image.shape == (*SIZE, 3)
        assert mask.shape == SIZE
        assert not mask.flags.writeable


def test_masks_alone_are_of_images_and_not_of_tiles(make: Make) -> None:
    config = make("folder")
    whole, tiles = opened(config, fit="stretch"), opened(config, fit="tile")
    assert len(tiles) > len(tiles.image_ids)
    assert tiles.image_ids == whole.ids
    for mask, index in zip(tiles.masks(), range(len(whole)), strict=True):
        np.testing.assert_array_equal(mask, whole.read(index)[1])


def test_tiles_have_names_of_their_place(make: Make) -> None:
    tiles = opened(make("folder"), "test", fit="tile", overlap=0.0)
    # 40 rows and 42 columns make 3 by 3 tiles of 16 by 20.
    assert tiles.ids[:9] == [f"test_0@{row}-{column}" for row in range(3) for column in range(3)]
    image, _ = tiles.read(5)
    np.testing.assert_array_equal(tiles.sized(5)[0], image[12:28, 22:42])
    assert tiles.image_id(5) == "test_0"


def test_training_sees_whole_tiles_and_evaluation_their_cores(make: Make) -> None:
    config = make("folder").model_copy(
        update={"size": SIZE, "fit": "tile", "crop": 1.0, "scale": (1.0, 1.0), "flip": 0.0}
    )
    data = open_split(config, "train", seed=1)
    trained, evaluated = TrainingSet(data, config), EvaluationSet(data, config)
    for index in range(6):
        whole, core = trained[(index, 3)][1].numpy(), evaluated[index][1].numpy()
        left_out = core == VOID
        np.testing.assert_array_equal(core[~left_out], whole[~left_out])
        assert left_out.sum() > (whole == VOID).sum()
        np.testing.assert_array_equal(trained[(index, 3)][0], evaluated[index][0])


def test_images_are_held_out_whole(make: Make) -> None:
    config = make("folder")
    train, holdout = (opened(config, split, fit="tile") for split in ("train", "holdout"))
    images = [set(map(image_of, data.ids)) for data in (train, holdout)]
    assert not images[0] & images[1]
    assert [len(each) for each in images] == [8, 2]


def test_sizes_are_told_without_reading_pixels_and_images_are_read_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> np.ndarray:
        read.append(path.stem)
        return read_image(path)

    monkeypatch.setattr(mess.data.files, "read_image", counted)
    tiles = opened(make("folder"), "test", fit="tile")
    assert read == []
    for index in range(len(tiles)):
        tiles.sized(index)
        tiles.thumbnail(index)
    assert read == ["test_0", "test_1", "test_2"]


def test_tiles_pickle_and_are_selected(make: Make) -> None:
    tiles = opened(make("folder"), "test", fit="tile")
    expected = [tiles.sized(index) for index in range(len(tiles))]
    copy = pickle.loads(pickle.dumps(tiles))
    some = copy.select([7, 2], "some")
    assert some.ids == [tiles.ids[7], tiles.ids[2]]
    for index, at in enumerate([7, 2]):
        for found, known in zip(some.sized(index), expected[at], strict=True):
            np.testing.assert_array_equal(found, known)
    assert some.image_fingerprints() == {
        item: tiles.image_fingerprints()[item] for item in some.ids
    }


def test_fingerprints_tell_ways_of_fitting_apart_and_tiles(make: Make) -> None:
    config = make("folder")
    before = opened(config).image_fingerprints()
    assert opened(config, overlap=0.5).image_fingerprints() == before
    ways: list[dict[str, Any]] = [
        {"fit": "pad"}, {"fit": "tile"}, {"fit": "tile", "overlap": 0.25},
    ]  # fmt: skip
    seen = list(before.values())
    for way in ways:
        seen += opened(config, **way).image_fingerprints().values()
    assert len(set(seen)) == len(seen)


def test_a_file_is_hashed_once_for_all_its_tiles(make: Make) -> None:
    tiles, hashed = opened(make("folder"), "test", fit="tile"), list[Path]()

    def hash_file(path: Path) -> str:
        hashed.append(path)
        return "ab" * 32

    tiles.image_fingerprints(hash_file=hash_file)
    assert len(hashed) == len(set(hashed)) == 6


def test_an_image_that_changed_its_size_is_named(make: Make) -> None:
    config = make("folder")
    tiles = opened(config, "test", fit="tile")
    assert config.root is not None
    for folder in ("images", "masks"):
        (path,) = (config.root / "test" / folder).glob("test_0.*")
        small = np.zeros((9, 9) if folder == "masks" else (9, 9, 3), np.uint8)
        Image.fromarray(small).save(path)
    with pytest.raises(DataError, match=r"'test_0' had 40 x 42 pixels when .* has 9 x 9 now"):
        tiles.sized(0)


def test_padding_is_void_on_the_mean_colour(make: Make) -> None:
    config = make("folder")
    data = opened(config, "test", fit="pad", mean=(1.0, 0.0, 0.0))
    for index in range(len(data)):
        shape = data.read(index)[1].shape
        scale = min(16 / shape[0], 20 / shape[1])
        height, width = (round(scale * side) for side in shape)
        top, left = (16 - height) // 2, (20 - width) // 2
        inside = slice(top, top + height), slice(left, left + width)
        pixels, judged = data.sized(index)
        outside = np.ones(SIZE, np.bool_)
        outside[inside] = False
        assert outside.any()
        assert (judged[outside] == VOID).all()
        assert (pixels[outside] == (255, 0, 0)).all()
        assert (judged[inside] != VOID).any()
        (_, trained), size = data.trained(index)
        # Without the padding, and of its own size where that is not too large for any crop.
        assert size == (height, width)
        most = [math.ceil(2.0 * side) for side in size]
        assert trained.shape == tuple(map(min, shape, most))
        shown = thumbnail(np.ascontiguousarray(pixels[inside]))
        np.testing.assert_array_equal(data.thumbnail(index), shown)


# ---- Pictures without masks

CLASSES = ClassTable(names=("a", "b"), colors=((0, 0, 0), (1, 1, 1)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(30, 42), (10, 12)]):
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def unlabelled(folder: Path, **changes: Any) -> Unlabelled:
    return open_unlabelled(folder, CLASSES, SIZE).framed(DataConfig(size=SIZE, **changes))


@pytest.mark.parametrize(
    ("fit", "counted"), [("stretch", 2 * 320), ("pad", 14 * 20 + 16 * 19), ("tile", 1260 + 120)]
)
def test_what_nobody_labelled_is_judged_where_it_counts(
    folder: Path, fit: str, counted: int
) -> None:
    data = unlabelled(folder, fit=fit)
    items = range(len(data))
    assert all((data.sized(index)[1] == VOID).all() for index in items)
    assert sum(int((data.judged(index)[1] == 0).sum()) for index in items) == counted


def test_a_picture_that_is_there_twice_is_refused_in_tiles_too(folder: Path) -> None:
    data = unlabelled(folder, fit="tile")
    data.require_distinct(data.image_fingerprints())
    shutil.copy(folder / "0.png", folder / "copy.png")
    data = unlabelled(folder, fit="tile")
    with pytest.raises(DataError, match=r"0\.png and .*copy\.png are the same picture \(1 such"):
        data.require_distinct(data.image_fingerprints())
