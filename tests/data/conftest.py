"""Small data sets of every kind, written in the layout in which the real ones come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

import mess.data.nuclei
from mess.config import DataConfig
from mess.data.voc import VOC_CLASSES
from tests.seeds import seeded

SIZE = (24, 32)
KINDS = ("shapes", "nuclei", "folder", "voc", "sbd", "voc-aug", "coco")

Mask = NDArray[np.uint8]
Make = Callable[[str], DataConfig]


def random_mask(number: int, classes: int, void: bool = True) -> Mask:
    """A mask of blocks, its size differing from image to image, with some void."""
    rng = np.random.default_rng(seeded(number))
    blocks = rng.integers(0, classes, (5, 7)).astype(np.uint8)
    mask = np.kron(blocks, np.ones((6 + number % 3, 6), np.uint8))
    if void:
        mask[0] = 255
    return mask


def write_image(path: Path, mask: Mask) -> None:
    """An image whose red channel is ten times the class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*mask.shape, 3), 90, np.uint8)
    image[..., 0] = np.minimum(mask, 25) * 10
    Image.fromarray(image).save(path)


def write_mask(path: Path, mask: Mask) -> None:
    """A PNG with VOC's palette, as VOC's own masks are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png = Image.fromarray(mask)
    png.putpalette([value for color in VOC_CLASSES.colors for value in color])
    png.save(path)


def folder_classes(count: int = 3, ignore_index: int = 255) -> dict[str, Any]:
    classes = [{"id": i, "name": f"class{i}", "color": [i, 2 * i, 3 * i]} for i in range(count)]
    return {"num_classes": count, "ignore_index": ignore_index, "classes": classes}


def write_folder(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(folder_classes()))
    for start, (split, count) in enumerate((("train", 10), ("val", 4), ("test", 3))):
        for number in range(count):
            mask = random_mask(100 * start + number, 3)
            suffix = "png" if number % 2 else "jpg"
            write_image(root / split / "images" / f"{split}_{number}.{suffix}", mask)
            write_mask(root / split / "masks" / f"{split}_{number}.png", mask)


def write_voc(root: Path, splits: dict[str, int] | None = None) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    for start, (split, count) in enumerate((splits or {"train": 10, "val": 7}).items()):
        ids = [f"2007_{start}{number:05d}" for number in range(count)]
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for number, image_id in enumerate(ids):
            mask = random_mask(100 * start + number, 21)
            write_image(base / "JPEGImages" / f"{image_id}.jpg", mask)
            write_mask(base / "SegmentationClass" / f"{image_id}.png", mask)


def write_sbd(root: Path) -> None:
    write_voc(root, {"val": 7})
    ids = [f"2008_{number:06d}" for number in range(10)]
    (root / "train_noval.txt").write_text("\n".join(ids) + "\n")
    (root / "cls").mkdir()
    for number, image_id in enumerate(ids):
        mask = random_mask(number, 21, void=False)
        write_image(root / "img" / f"{image_id}.jpg", mask)
        savemat(root / "cls" / f"{image_id}.mat", {"GTcls": {"Segmentation": mask}})


def write_voc_aug(root: Path) -> None:
    """VOC with 4 and 7 images, and SBD with 6 of its own, 2 of that train and 3 of that val."""
    write_voc(root, {"train": 4, "val": 7})
    own = [f"2008_{number:06d}" for number in range(6)]
    train, val = (
        [f"2007_{start}{number:05d}" for number in numbers]
        for start, numbers in ((0, (0, 3)), (1, (1, 4, 6)))
    )
    (root / "cls").mkdir()
    listings = {
        "train.txt": [*own[:4], train[0], *val[:2]],
        "val.txt": [train[1], *own[4:], val[2]],
    }
    for start, (listing, ids) in enumerate(listings.items()):
        (root / listing).write_text("\n".join(ids) + "\n")
        for number, image_id in enumerate(ids):
            mask = random_mask(300 + 100 * start + number, 21, void=False)
            write_image(root / "img" / f"{image_id}.jpg", mask)
            savemat(root / "cls" / f"{image_id}.mat", {"GTcls": {"Segmentation": mask}})


def box(top: int, left: int, height: int, width: int) -> list[list[float]]:
    """COCO's polygon of a box."""
    bottom, right = top + height, left + width
    return [[left, top, right, top, right, bottom, left, bottom]]


def coco_item(
    image: int, category: int, segmentation: Any, crowd: int = 0, area: float = 600.0
) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": crowd,
        "area": area,
    }


def write_coco(root: Path) -> None:
    """Cats (17), persons (1) and, in every fifth image, nothing but a fire hydrant (11)."""
    (root / "annotations").mkdir(parents=True)
    for split, first, count in (("train2017", 1, 12), ("val2017", 101, 7)):
        images, annotations = [], []
        for number in range(first, first + count):
            name = f"{number:012d}.jpg"
            images.append({"id": number, "file_name": name, "height": 30, "width": 40})
            write_image(root / split / name, np.zeros((30, 40), np.uint8))
            if number % 5:
                annotations.append(coco_item(number, 17, box(1, 1, 16, 38), area=608.0))
                annotations.append(coco_item(number, 1, box(18, 1, 11, 38), area=418.0))
            else:
                annotations.append(coco_item(number, 11, box(1, 1, 28, 38), area=1064.0))
        content = {"images": images, "annotations": annotations, "categories": []}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


WRITERS: dict[str, Callable[[Path], None]] = {
    "folder": write_folder,
    "voc": write_voc,
    "sbd": write_sbd,
    "voc-aug": write_voc_aug,
    "coco": write_coco,
}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a small data set of a kind below tmp_path; its configuration."""

    def build(kind: str) -> DataConfig:
        if kind == "coco":
            pytest.importorskip("pycocotools")
        root = None
        if kind in WRITERS:
            root = tmp_path / kind
            WRITERS[kind](root)
        if kind == "nuclei":
            # Those that are shipped are many.
            write_folder(tmp_path / kind)
            monkeypatch.setattr(mess.data.nuclei, "IMAGES", tmp_path / kind)
        return DataConfig(
            kind=kind, root=root, size=SIZE, shapes=(10, 4, 3), holdout=0.2, workers=0
        )

    return build


@pytest.fixture(scope="session")
def kinds() -> tuple[str, ...]:
    """The kinds that the contract tests run on."""
    return KINDS


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest, make: Make) -> DataConfig:
    """A small data set of each kind in turn."""
    return make(request.param)
