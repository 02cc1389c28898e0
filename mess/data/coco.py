"""COCO 2017 with the 20 classes of VOC, from its instance annotations."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.common.images import read_image
from mess.common.metrics import VOID
from mess.config import DataConfig
from mess.data.base import Pair, SegmentationData, parted
from mess.data.files import data_root, require_files
from mess.data.voc import VOC_CLASSES
from mess.errors import ConfigError, DataError

_CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
"""COCO's category ids of VOC's classes 1..20."""

_LEAST_AREA = 1000
"""Train images have more annotated pixels of the classes, as torchvision's references have it."""

_LABELS = {category: label for label, category in enumerate(_CATEGORIES, start=1)}


class _Region(NamedTuple):
    label: int
    crowd: bool
    segmentation: Any
    """COCO's: a list of polygons, or a run-length code."""


class _Annotations(NamedTuple):
    """Of the images, in the order of the file: where they are, and what is of the 20 classes."""

    images: list[tuple[str, _Image]]
    regions: dict[str, list[_Region]]
    area: dict[str, float]
    """Annotated pixels of an image, crowds included."""


class _Image(NamedTuple):
    path: Path
    height: int
    width: int


class Coco(SegmentationData):
    """COCO 2017 in its own layout below `data.root`; needs `pip install mess[coco]`.

    ROOT/annotations/instances_(train|val)2017.json with ROOT/train2017 and ROOT/val2017. Train is
    the images with more than 1000 annotated pixels of the 20 classes, as in torchvision's
    references. Of val2017 a random `data.calibration_share`, the same in every run, calibrates, and
    the rest tests.
    Crowds, and pixels claimed by objects of different classes, are void; other categories are
    background.
    """

    _images: dict[str, _Image]
    _regions: dict[str, list[_Region]]

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> Coco:
        # Asked first: a missing extra is told before the annotations are read.
        _mask_api()
        root = data_root(config, "annotations, train2017 and val2017 of COCO")
        official = "train2017" if split == "train" else "val2017"
        where = f"split {split!r} of COCO in {root}"
        annotations = root / "annotations" / f"instances_{official}.json"
        found = _read_annotations(annotations, root / official)
        ids = [image_id for image_id, _ in found.images]
        if split == "train":
            ids = [image_id for image_id in ids if found.area[image_id] > _LEAST_AREA]
        else:
            part = parted(len(ids), config.calibration_share)[split == "test"]
            ids = [ids[index] for index in part]
        data = cls(where=where, ids=ids, classes=VOC_CLASSES, size=config.size)
        known = dict(found.images)
        data._images = {image_id: known[image_id] for image_id in ids}
        data._regions = {image_id: found.regions[image_id] for image_id in ids}
        require_files(where, [image.path for image in data._images.values()])
        return data

    def _shape(self, image_id: str) -> tuple[int, int]:
        image = self._images[image_id]
        return image.height, image.width

    def _load(self, image_id: str) -> Pair:
        return read_image(self._images[image_id].path), self._load_mask(image_id)

    def _load_mask(self, image_id: str) -> NDArray[np.uint8]:
        image = self._images[image_id]
        mask_HW = np.zeros((image.height, image.width), np.uint8)
        crowd_HW = np.zeros(mask_HW.shape, np.bool_)
        for region in self._regions[image_id]:
            inside_HW = self._inside(image_id, region)
            if region.crowd:
                crowd_HW |= inside_HW
                continue
            # Void is neither 0 nor a label, so what is contested once stays contested.
            contested_HW = inside_HW & (mask_HW != 0) & (mask_HW != region.label)
            mask_HW[inside_HW] = region.label
            mask_HW[contested_HW] = VOID
        # Last: a crowd hides no object that is outlined by itself.
        mask_HW[crowd_HW & (mask_HW == 0)] = VOID
        return mask_HW

    def _inside(self, image_id: str, region: _Region) -> NDArray[np.bool_]:
        api = _mask_api()
        image, code = self._images[image_id], region.segmentation
        try:
            if isinstance(code, list):
                code = api.merge(api.frPyObjects(code, image.height, image.width))
            elif isinstance(code["counts"], list):
                code = api.frPyObjects(code, image.height, image.width)
            with warnings.catch_warnings():
                # pycocotools 2.0.11 has yet to follow numpy 2 here.
                warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
                return api.decode(code).astype(np.bool_)
        except Exception as error:
            # pycocotools raises bare Exception among others.
            raise DataError(
                f"{self.where}: a segmentation of image {image_id!r} cannot be decoded: {error}. "
                "Correct or remove the annotation."
            ) from error

    def _content(self, image_id: str) -> Iterable[bytes | Path]:
        yield self._images[image_id].path
        yield json.dumps(self._regions[image_id]).encode()


def _mask_api() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise ConfigError(
            "data.kind = 'coco' needs pycocotools, which is not installed; "
            "run: pip install mess[coco]"
        ) from None
    return mask


def _read_annotations(path: Path, folder: Path) -> _Annotations:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; it is part of COCO's annotations.") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from None
    names: dict[int, str] = {}
    images: list[tuple[str, _Image]] = []
    regions, area = defaultdict[str, list[_Region]](list), defaultdict[str, float](float)
    try:
        for image in content["images"]:
            name = names[image["id"]] = Path(image["file_name"]).stem
            file = folder / image["file_name"]
            images.append((name, _Image(file, image["height"], image["width"])))
        for item in content["annotations"]:
            if label := _LABELS.get(item["category_id"]):
                region = _Region(label, bool(item["iscrowd"]), item["segmentation"])
                regions[names[item["image_id"]]].append(region)
                area[names[item["image_id"]]] += item["area"]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not follow COCO's instance annotations: {error!r} in an entry of "
            "`images` or `annotations`."
        ) from error
    return _Annotations(images, regions, area)
