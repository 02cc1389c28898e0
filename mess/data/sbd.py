"""The Semantic Boundaries Dataset: 5,623 more masks for training on VOC's classes."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from mess.config import DataConfig
from mess.data.base import SegmentationData
from mess.data.files import FilePairs, data_root, listed_files
from mess.data.voc import VOC_CLASSES, Voc
from mess.errors import DataError


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
        files = listed_files(
            root / "train_noval.txt",
            where,
            lambda image_id: (root / "img" / f"{image_id}.jpg", root / "cls" / f"{image_id}.mat"),
        )
        return cls(where=where, files=files, classes=VOC_CLASSES, size=config.size)

    def _read_mask(self, path: Path) -> NDArray[np.uint8]:
        try:
            return loadmat(path)["GTcls"][0]["Segmentation"][0].astype(np.uint8)
        except (OSError, ValueError, TypeError, LookupError, MatReadError, zlib.error) as error:
            raise DataError(
                f"mask {path} cannot be read as GTcls.Segmentation of SBD: {error}. "
                "Replace or remove it."
            ) from error
