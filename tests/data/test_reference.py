"""VOC, SBD and COCO against torchvision's and pycocotools' own reading of the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import SBDataset, VOCSegmentation

from mess.config import DataConfig
from mess.data import open_split
from mess.data.base import SegmentationData
from mess.data.voc import VOC_CLASSES

Make = Callable[[str], DataConfig]


def whole(config: DataConfig, split: str = "train") -> SegmentationData:
    return open_split(config.model_copy(update={"holdout": 0.0}), split, seed=0)


def root(config: DataConfig) -> Path:
    assert config.root is not None
    return config.root


def test_voc_palette_is_the_published_one() -> None:
    """VOC derives colour i by spreading the bits of i over the channels, highest bits first."""
    for label, color in enumerate(VOC_CLASSES.colors):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
        assert color == tuple(channels)
    assert VOC_CLASSES.num_classes == 21


def test_voc_reads_as_torchvision(make: Make) -> None:
    config = make("voc")
    data = whole(config)
    reference = VOCSegmentation(root(config), year="2012", image_set="train")
    assert len(data) == len(reference)
    for index in range(len(data)):
        image, mask = reference[index]
        np.testing.assert_array_equal(data.read(index)[0], np.asarray(image))
        np.testing.assert_array_equal(data.read(index)[1], np.asarray(mask))


def test_voc_val_is_halved(make: Make) -> None:
    config = make("voc")
    halves = [whole(config, split).ids for split in ("calibration", "test")]
    assert [len(ids) for ids in halves] == [4, 3]
    official = root(config) / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    assert sorted(halves[0] + halves[1]) == official.read_text().split()


def test_sbd_reads_as_torchvision(make: Make) -> None:
    config = make("sbd")
    data = whole(config)
    reference = SBDataset(str(root(config)), image_set="train_noval", mode="segmentation")
    assert len(data) == len(reference)
    for index in range(len(data)):
        image, mask = reference[index]
        np.testing.assert_array_equal(data.read(index)[0], np.asarray(image))
        np.testing.assert_array_equal(data.read(index)[1], np.asarray(mask))


def test_sbd_tests_on_voc(make: Make) -> None:
    config = make("sbd")
    ids = whole(config, "calibration").ids + whole(config, "test").ids
    official = root(config) / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    assert sorted(ids) == official.read_text().split()


def test_coco_drops_background_from_train_only(make: Make) -> None:
    config = make("coco")
    assert whole(config).ids == [f"{i:012d}" for i in range(1, 13) if i % 5]
    held = whole(config, "calibration").ids + whole(config, "test").ids
    assert sorted(held) == [f"{i:012d}" for i in range(101, 108)]


def test_coco_masks_by_hand(make: Make) -> None:
    """Polygons, both run-length codes, a crowd, a contested overlap and a foreign category."""
    pytest.importorskip("pycocotools")
    from pycocotools import mask as api

    config = make("coco")
    base = root(config)

    def box(top: int, left: int, height: int, width: int) -> list[list[int]]:
        bottom, right = top + height, left + width
        return [[left, top, right, top, right, bottom, left, bottom]]

    def runs(top: int, left: int, height: int, width: int) -> Any:
        inside = np.zeros((30, 40), np.uint8)
        inside[top : top + height, left : left + width] = 1
        columns = inside.ravel(order="F")
        changes = np.flatnonzero(np.diff(columns)) + 1
        lengths = np.diff(np.concatenate([[0], changes, [columns.size]])).tolist()
        # The first run is of pixels outside, and may be empty.
        return {"counts": [0] * int(columns[0]) + lengths, "size": [30, 40]}

    packed = api.frPyObjects(runs(20, 0, 5, 10), 30, 40)
    packed["counts"] = packed["counts"].decode()
    items = [
        (1, box(2, 2, 6, 10), 0),  # person: polygon
        (17, box(4, 6, 6, 10), 0),  # cat over part of it: contested
        (1, runs(2, 30, 4, 5), 0),  # person: uncompressed runs
        (72, packed, 0),  # tvmonitor: compressed runs
        (1, runs(0, 0, 8, 40), 1),  # a crowd of persons behind all
        (11, box(26, 20, 3, 10), 0),  # fire hydrant: background
        (11, runs(27, 0, 2, 3), 1),
    ]
    annotations = [
        {"image_id": 1, "category_id": c, "segmentation": s, "iscrowd": crowd}
        for c, s, crowd in items
    ]
    image = {"id": 1, "file_name": "000000000001.jpg", "height": 30, "width": 40}
    content = {"images": [image], "annotations": annotations}
    (base / "annotations/instances_train2017.json").write_text(json.dumps(content))
    Image.new("RGB", (40, 30)).save(base / "train2017/000000000001.jpg")

    expected = np.zeros((30, 40), np.uint8)
    expected[0:8] = 255
    expected[2:6, 30:35] = 15
    expected[2:8, 2:12] = 15
    expected[4:10, 6:16] = 8
    expected[4:8, 6:12] = 255
    expected[20:25, 0:10] = 20
    np.testing.assert_array_equal(whole(config).read(0)[1], expected)
