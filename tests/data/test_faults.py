"""Every fault in a data set is refused with the file, the value, the limit and the next move."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mess.config import DataConfig
from mess.data import open_split
from mess.data.base import SegmentationData
from mess.errors import ConfigError, DataError

Make = Callable[[str], DataConfig]


@pytest.fixture
def folder(make: Make) -> DataConfig:
    return make("folder").model_copy(update={"holdout": 0.0})


def root(config: DataConfig) -> Path:
    assert config.root is not None
    return config.root


def train(config: DataConfig) -> SegmentationData:
    return open_split(config, "train", seed=0)


def read(config: DataConfig) -> None:
    data = train(config)
    for index in range(len(data)):
        data.read(index)


@pytest.mark.parametrize("kind", ["folder", "voc", "sbd", "voc-aug", "coco"])
def test_root_is_needed_and_a_folder(make: Make, kind: str) -> None:
    config = make(kind)
    with pytest.raises(ConfigError, match=rf"data\.kind = '{kind}' needs data\.root"):
        train(config.model_copy(update={"root": None}))
    with pytest.raises(DataError, match=r"data\.root .*/nowhere is no folder; it should hold"):
        train(config.model_copy(update={"root": root(config) / "nowhere"}))


def test_image_without_mask(folder: DataConfig) -> None:
    (root(folder) / "train/masks/train_3.png").unlink()
    with pytest.raises(DataError, match=r"image 'train_3' has no mask .*train_3\.png \(1 such"):
        train(folder)


def test_mask_without_image(folder: DataConfig) -> None:
    (root(folder) / "train/images/train_3.png").unlink()
    with pytest.raises(DataError, match=r"mask 'train_3' has no image .*train_3\.\(jpg\|png\)"):
        train(folder)


def test_two_images_of_one_id(folder: DataConfig) -> None:
    images = root(folder) / "train/images"
    (images / "train_3.jpg").write_bytes((images / "train_3.png").read_bytes())
    with pytest.raises(DataError, match=r"train_3\.jpg and train_3\.png share the id 'train_3'"):
        train(folder)


def test_unreadable_image(folder: DataConfig) -> None:
    (root(folder) / "train/images/train_3.png").write_text("no image")
    with pytest.raises(DataError, match=r"image .*train_3\.png cannot be read.*Replace or remove"):
        read(folder)


def test_truncated_image(folder: DataConfig) -> None:
    path = root(folder) / "train/images/train_2.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"image .*train_2\.jpg cannot be read"):
        read(folder)


def test_value_outside_the_classes(folder: DataConfig) -> None:
    path = root(folder) / "train/masks/train_3.png"
    mask = np.array(Image.open(path))
    mask[2, 4:40] = 3
    Image.fromarray(mask).save(path)
    with pytest.raises(
        DataError,
        match=r"not void: 3 \(0\.\d% of .*, in 1 of 10 masks\)\. Class ids are 0\.\.2, and 255",
    ):
        read(folder)


def test_colour_mask(folder: DataConfig) -> None:
    path = root(folder) / "train/masks/train_3.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match=r"train_3\.png has mode RGB; .*such as to mode L"):
        read(folder)


def test_sizes_that_differ(folder: DataConfig) -> None:
    path = root(folder) / "train/masks/train_3.png"
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(path)
    with pytest.raises(
        DataError, match=r"image 'train_3' is \d+ x 42 pixels but its mask is 9 x 8 \(height"
    ):
        read(folder)


def test_images_in_folders_below_are_counted(folder: DataConfig) -> None:
    images, masks = (root(folder) / "train" / kind for kind in ("images", "masks"))
    (images / "night").mkdir()
    for name in ("0001.jpg", "0002.jpg", ".hidden.jpg"):
        (images / "night" / name).touch()
    (masks / "Thumbs.db").touch()
    data = train(folder)
    assert len(data) == 10
    assert [path.name for path in data.others] == ["0001.jpg", "0002.jpg", "Thumbs.db"]
    holdout = folder.model_copy(update={"holdout": 0.2})
    assert len(open_split(holdout, "train", seed=0).others) == 3
    assert not open_split(holdout, "holdout", seed=0).others


def test_a_split_whose_images_are_all_in_folders_below(folder: DataConfig) -> None:
    for kind in ("images", "masks"):
        files = list((root(folder) / "train" / kind).iterdir())
        (root(folder) / "train" / kind / "night").mkdir()
        for path in files:
            path.rename(path.parent / "night" / path.name)
    with pytest.raises(
        DataError, match=r"is empty: 20 files there are left out, such as .*give data\.pairs"
    ):
        train(folder)


def test_images_and_masks_of_other_kinds_are_read(folder: DataConfig) -> None:
    before = len(train(folder))
    for suffix in ("bmp", "tif", "TIFF", "webp"):
        Image.new("RGB", (6, 4)).save(root(folder) / f"train/images/x{suffix}.{suffix}")
        kind = suffix if suffix != "webp" else "png"
        Image.new("L", (6, 4), 2).save(root(folder) / f"train/masks/x{suffix}.{kind}")
    data = train(folder)
    assert len(data) == before + 4
    for name in ("xbmp", "xtif", "xTIFF", "xwebp"):
        image, mask = data.read(data.ids.index(name))
        assert image.shape == (4, 6, 3)
        assert (mask == 2).all()


def test_missing_split(folder: DataConfig) -> None:
    (root(folder) / "val").rename(root(folder) / "valid")
    with pytest.raises(
        DataError,
        match=r"split 'calibration' is missing: .* no folder 'calibration' or 'val', only test, tr",
    ):
        open_split(folder, "calibration", seed=0)


def test_calibration_folder_comes_before_val(folder: DataConfig) -> None:
    (root(folder) / "test").rename(root(folder) / "calibration")
    assert open_split(folder, "calibration", seed=0).ids[0] == "test_0"


def test_missing_images_folder(folder: DataConfig) -> None:
    (root(folder) / "test/images").rename(root(folder) / "test/pictures")
    with pytest.raises(DataError, match=r"folder .*test/images is missing"):
        open_split(folder, "test", seed=0)


def test_empty_split(folder: DataConfig) -> None:
    for path in (*root(folder).glob("test/images/*"), *root(folder).glob("test/masks/*")):
        path.unlink()
    with pytest.raises(DataError, match=r"split 'test' in .* is empty; it needs at least one"):
        open_split(folder, "test", seed=0)


def test_other_ignore_index_is_read_as_255(folder: DataConfig) -> None:
    expected = train(folder).read(0)[1]
    path = root(folder) / "classes.json"
    path.write_text(path.read_text().replace("255", "7"))
    for mask in root(folder).glob("*/masks/*.png"):
        values = np.array(Image.open(mask))
        values[values == 255] = 7
        Image.fromarray(values).save(mask)
    after = train(folder)
    np.testing.assert_array_equal(after.read(0)[1], expected)
    assert after.classes.ignore_index == 255


def test_fingerprint_follows_ignore_index(folder: DataConfig) -> None:
    before = train(folder).fingerprint()
    path = root(folder) / "classes.json"
    path.write_text(path.read_text().replace("255", "7"))
    assert train(folder).fingerprint() != before


CLASS = {"id": 0, "name": "road", "color": [1, 2, 3]}
TWO = [CLASS, CLASS | {"id": 1, "name": "sky"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list; it should be an object"),
        ({"num_classes": 1}, "it has no key 'classes'; the keys are: num_classes"),
        ({"classes": [CLASS]}, "it has no key 'num_classes'"),
        (
            {"num_classes": "1", "classes": [CLASS]},
            "num_classes of it is '1'; it should be of type int",
        ),
        ({"num_classes": 2, "classes": [CLASS]}, "num_classes is 2 and `classes` has 1 entries"),
        ({"num_classes": 0, "classes": []}, "num_classes is 0 .* same number in 2..255"),
        (
            {"num_classes": 2, "classes": TWO, "ignore_index": 1},
            "ignore_index is 1; it is a mask value in 2..255",
        ),
        (
            {"num_classes": 2, "classes": TWO, "ignore_index": 256},
            "ignore_index is 256; it is a mask value in 2..255",
        ),
        ({"num_classes": 1, "classes": [CLASS]}, "'road' is the only class, .* such as background"),
        ({"num_classes": 1, "classes": ["road"]}, "entry 0 of `classes` is 'road'"),
        ({"num_classes": 1, "classes": [CLASS | {"id": 4}]}, "has id 4; ids count up from 0"),
        ({"num_classes": 1, "classes": [CLASS | {"name": 5}]}, "name of entry 0 .* is 5"),
        (
            {"num_classes": 1, "classes": [CLASS | {"color": [1, 2, 300]}]},
            r"color of entry 0 of `classes` is \[1, 2, 300\]; it should be \[r, g, b\] in 0..255",
        ),
    ],
)
def test_faulty_classes(folder: DataConfig, content: Any, message: str) -> None:
    path = root(folder) / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{message}"):
        train(folder)


def test_missing_classes(folder: DataConfig) -> None:
    (root(folder) / "classes.json").unlink()
    with pytest.raises(DataError, match=r'classes\.json is missing; .*"num_classes": 2'):
        train(folder)


@pytest.mark.parametrize(
    ("kind", "listing", "file"),
    [
        (
            "voc",
            "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt",
            "VOCdevkit/VOC2012/SegmentationClass/2007_000003.png",
        ),
        ("sbd", "train_noval.txt", "cls/2008_000003.mat"),
    ],
)
def test_listed_files_that_are_missing(make: Make, kind: str, listing: str, file: str) -> None:
    config = make(kind)
    (root(config) / file).unlink()
    with pytest.raises(DataError, match=rf"{file} is missing \(1 of 20 files are\); complete"):
        train(config)
    path = root(config) / listing
    text = path.read_text()
    path.write_text(text + text.splitlines()[0])
    with pytest.raises(DataError, match="is missing"):
        train(config)
    path.write_text("\n".join(line for line in text.split() if not line.endswith("3")) + "\n\n")
    assert len(train(config)) == 7
    path.write_text(2 * path.read_text())
    with pytest.raises(DataError, match=r"lists image '200._000000' more than once \(9 such ids\)"):
        train(config)
    path.unlink()
    with pytest.raises(DataError, match=rf"{listing} is missing; it lists one image id a line"):
        train(config)


def test_sbd_without_voc_still_trains(make: Make) -> None:
    config = make("sbd")
    (root(config) / "VOCdevkit").rename(root(config) / "elsewhere")
    read(config)
    with pytest.raises(DataError, match=r"VOCdevkit/VOC2012/ImageSets/Segmentation/val\.txt is mi"):
        open_split(config, "test", seed=0)


@pytest.mark.parametrize("fault", ["text", "truncated", "key"])
def test_unreadable_sbd_mask(make: Make, fault: str) -> None:
    config = make("sbd").model_copy(update={"holdout": 0.0})
    path = root(config) / "cls/2008_000003.mat"
    if fault == "text":
        path.write_text("no matlab file")
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    else:
        savemat(path, {"GTcls": {"Boundaries": np.zeros((2, 2), np.uint8)}})
    with pytest.raises(DataError, match=r"mask .*2008_000003\.mat cannot be read as GTcls"):
        read(config)


def test_coco_needs_pycocotools(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make("coco")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r"run: pip install mess\[coco\]"):
        train(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{", "is not valid JSON"),
        (lambda text: text.replace('"iscrowd"', '"crowd"'), "KeyError.'iscrowd'"),
        (lambda text: "[]", "does not follow COCO's instance annotations"),
        (lambda text: text.replace("[[", "[[1],["), "image '0000000000..' cannot be decoded"),
    ],
)
def test_faulty_coco(make: Make, change: Callable[[str], str], message: str) -> None:
    config = make("coco")
    path = root(config) / "annotations/instances_train2017.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read(config)


def test_missing_coco_files(make: Make) -> None:
    config = make("coco")
    (root(config) / "train2017/000000000003.jpg").unlink()
    with pytest.raises(DataError, match=r"000000000003\.jpg is missing \(1 of 10 files are\)"):
        train(config)
    (root(config) / "annotations/instances_train2017.json").unlink()
    with pytest.raises(DataError, match=r"instances_train2017\.json is missing"):
        train(config)
