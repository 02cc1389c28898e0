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
from mess.data.base import SegmentationData, parted
from mess.data.voc import VOC_CLASSES
from tests.data.conftest import write_image, write_mask

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


@pytest.mark.parametrize(
    ("kind", "share", "images"),
    [("voc", 0.5, [4, 3]), ("voc", 0.4, [3, 4]), ("voc", 0.01, [1, 6]), ("coco", 0.3, [2, 5])],
)
def test_val_is_parted(make: Make, kind: str, share: float, images: list[int]) -> None:
    config = make(kind).model_copy(update={"calibration_share": share})
    parts = [whole(config, split).ids for split in ("calibration", "test")]
    assert [len(ids) for ids in parts] == images
    if kind == "voc":
        listing = root(config) / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
        official = listing.read_text().split()
    else:
        official = [path.stem for path in (root(config) / "val2017").iterdir()]
    assert sorted(parts[0] + parts[1]) == sorted(official)


def test_a_single_image_calibrates() -> None:
    assert parted(1, 0.1) == parted(1, 0.9) == ([0], [])
    assert [len(part) for part in parted(1449, 0.4)] == [580, 869]


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


def test_voc_aug_is_voc_and_what_sbd_adds_to_it(make: Make) -> None:
    """The lists that papers use are made so: SBD's train and val without VOC's, and VOC's train."""
    config = make("voc-aug")
    data, base = whole(config), root(config)
    listed = base / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    voc, val = ((listed / f"{name}.txt").read_text().split() for name in ("train", "val"))
    sbd = [(base / f"{name}.txt").read_text().split() for name in ("train", "val")]
    assert set(sbd[0]) & set(voc)
    assert set(sbd[0]) & set(val)
    assert set(data.ids) == (set(sbd[0]) | set(sbd[1]) | set(voc)) - set(val)
    assert len(data) == 10
    references: dict[str, Any] = {}
    # VOC last: its masks mark void.
    for ids, reference in (
        (sbd[0], SBDataset(str(base), "train", "segmentation")),
        (sbd[1], SBDataset(str(base), "val", "segmentation")),
        (voc, VOCSegmentation(base, year="2012", image_set="train")),
    ):
        references |= {image_id: reference[index] for index, image_id in enumerate(ids)}
    for index, image_id in enumerate(data.ids):
        for found, known in zip(data.read(index), references[image_id], strict=True):
            np.testing.assert_array_equal(found, np.asarray(known))
    held = whole(config, "calibration").ids + whole(config, "test").ids
    assert sorted(held) == sorted(val)


def test_voc_aug_as_one_folder_of_masks(make: Make) -> None:
    config = make("voc-aug")
    of_sbd, base = whole(config), root(config)
    voc = base / "VOCdevkit" / "VOC2012"
    (voc / "SegmentationClassAug").mkdir()
    masks = [of_sbd.read(index)[1] for index in range(len(of_sbd))]
    for image_id, mask in zip(of_sbd.ids, masks, strict=True):
        write_image(voc / "JPEGImages" / f"{image_id}.jpg", mask)
        write_mask(voc / "SegmentationClassAug" / f"{image_id}.png", mask)
    listed = voc / "ImageSets" / "Segmentation"
    val = (listed / "val.txt").read_text().split()
    # Some lists have images of val.
    (listed / "trainaug.txt").write_text("\n".join([*of_sbd.ids, val[0]]))
    for file in ("img", "cls", "train.txt", "val.txt"):
        (base / file).rename(base / f"{file}-elsewhere")
    data = whole(config)
    assert data.ids == of_sbd.ids
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(data.read(index)[1], mask)


def test_coco_trains_on_what_torchvisions_references_keep(make: Make) -> None:
    config = make("coco")
    path = root(config) / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [
        {"image_id": image, "category_id": category, "segmentation": box, "iscrowd": crowd,
         "area": area}
        for image, category, crowd, area in [
            (1, 1, 0, 1000.0),  # not more than 1000
            (2, 1, 0, 1000.5),
            (3, 1, 0, 600.0), (3, 17, 0, 401.0),  # of two classes together
            (4, 1, 0, 600.0), (4, 11, 0, 5000.0),  # a fire hydrant is none of the classes
            (6, 1, 1, 1001.0),  # a crowd counts
            (7, 17, 0, 999.0), (7, 17, 1, 2.0),
        ]
        for box in [[[1, 1, 30, 1, 30, 20, 1, 20]]]
    ]  # fmt: skip
    path.write_text(json.dumps(content))

    def has_valid_annotation(annotations: list[dict[str, Any]]) -> bool:
        """torchvision, references/segmentation/coco_utils.py, with its list of categories."""
        kept = [5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]
        annotations = [obj for obj in annotations if obj["category_id"] in kept]
        if len(annotations) == 0:
            return False
        return sum(obj["area"] for obj in annotations) > 1000

    expected = [
        f"{number:012d}"
        for number in range(1, 13)
        if has_valid_annotation([a for a in content["annotations"] if a["image_id"] == number])
    ]
    assert whole(config).ids == expected == [f"{number:012d}" for number in (2, 3, 6, 7)]


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
        {"image_id": 1, "category_id": c, "segmentation": s, "iscrowd": crowd, "area": 501}
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
