"""The Semantic Boundaries Dataset: more masks for training on VOC's classes."""

from __future__ import annotations

import zlib
from collections.abc import Container
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mess.config import DataConfig
from mess.data.base import SegmentationData
from mess.data.files import FilePairs, Files, data_root, listed_files
from mess.data.voc import VOC_CLASSES, Voc, voc_files
from mess.errors import DataError

_ONE_FOLDER = "SegmentationClassAug"
"""SBD's masks and VOC's as PNGs side by side."""


class Sbd(FilePairs):
    """Train on SBD, calibrate and test on VOC 2012's val.

    ROOT/img, ROOT/cls (.mat) and ROOT/train_noval.txt as torchvision.datasets.SBDataset unpacks
    them, and ROOT/VOCdevkit/VOC2012 beside them. train_noval leaves out the images of VOC's val,
    which SBD's own train.txt does not. SBD marks no pixel void.
    """

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> SegmentationData:
        root = data_root(config, "img, cls and train_noval.txt of SBD, and VOCdevkit/VOC2012")
        if split != "train":
            return Voc.open(config, split, seed)
        where = f"split 'train' of SBD in {root}"
        files = sbd_files(root, root / "train_noval.txt", where)
        return cls(where=where, files=files, classes=VOC_CLASSES, size=config.size)

    def _read_mask(self, path: Path) -> NDArray[np.uint8]:
        try:
            return loadmat(path)["GTcls"][0]["Segmentation"][0].astype(np.uint8)
        except (OSError, ValueError, TypeError, LookupError, MatReadError, zlib.error) as error:
            raise DataError(
                f"mask {path} cannot be read as GTcls.Segmentation of SBD: {error}. "
                "Replace or remove it."
            ) from error


class VocAug(Sbd):
    """Train on VOC 2012's train and all of SBD but VOC's val, 10,582 images; the rest as `Sbd`.

    Laid out as for `Sbd`, with SBD's own ROOT/train.txt and ROOT/val.txt in the place of
    train_noval.txt. Masks of VOC's train are VOC's, which mark void. Where VOC2012 has a folder
    SegmentationClassAug, as many pass the same masks on, that is read with the list trainaug.txt,
    and SBD need not be there.
    """

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> SegmentationData:
        root = data_root(config, "img, cls, train.txt and val.txt of SBD, and VOCdevkit/VOC2012")
        if split != "train":
            return Voc.open(config, split, seed)
        where = f"split 'train' of VOC 2012 and SBD in {root}"
        files = _augmented_files(root, where)
        return cls(where=where, files=files, classes=VOC_CLASSES, size=config.size)

    def _read_mask(self, path: Path) -> NDArray[np.uint8]:
        return super()._read_mask(path) if path.suffix == ".mat" else self.encoding.read(path)


def _augmented_files(root: Path, where: str) -> list[Files]:
    val = {image_id for image_id, *_ in voc_files(root, "val")}
    if (root / "VOCdevkit" / "VOC2012" / _ONE_FOLDER).is_dir():
        return voc_files(root, "trainaug", _ONE_FOLDER, val)
    voc = voc_files(root, "train")
    left_out = val | {image_id for image_id, *_ in voc}
    more = [
        entry
        for listing in ("train.txt", "val.txt")
        for entry in sbd_files(root, root / listing, where, left_out)
    ]
    return [*voc, *more]


def sbd_files(root: Path, listing: Path, where: str, left_out: Container[str] = ()) -> list[Files]:
    """Image and mask of what SBD's `listing` names, those with the ids `left_out` aside."""
    return listed_files(
        listing,
        where,
        lambda image_id: (root / "img" / f"{image_id}.jpg", root / "cls" / f"{image_id}.mat"),
        left_out,
    )
