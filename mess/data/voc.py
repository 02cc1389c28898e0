"""PASCAL VOC 2012 segmentation, and the 21 classes that SBD and COCO share with it."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from mess.config import DataConfig
from mess.data.base import ClassTable, parted
from mess.data.files import FilePairs, Files, data_root, listed_files

_CLASSES = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "diningtable": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tvmonitor": (0, 64, 128),
}

VOC_CLASSES = ClassTable(names=tuple(_CLASSES), colors=tuple(_CLASSES.values()))
"""Background and the 20 classes of VOC in its order, with its palette."""


class Voc(FilePairs):
    """VOC 2012 as torchvision.datasets.VOCSegmentation unpacks it below `data.root`.

    ROOT/VOCdevkit/VOC2012 holds JPEGImages, SegmentationClass and ImageSets/Segmentation. Train is
    its train.txt. Of its val.txt a random `data.calibration_share`, the same in every run,
    calibrates; the rest tests, for the labels of the real test set are not public.
    """

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> Voc:
        root = data_root(config, "VOCdevkit/VOC2012")
        files = voc_files(root, "train" if split == "train" else "val")
        if split != "train":
            # False is 0: the first part calibrates.
            part = parted(len(files), config.calibration_share)[split == "test"]
            files = [files[index] for index in part]
        root = root / "VOCdevkit" / "VOC2012"
        where = f"split {split!r} of VOC 2012 in {root}"
        return cls(where=where, files=files, classes=VOC_CLASSES, size=config.size)


def voc_files(
    root: Path, official: str, masks: str = "SegmentationClass", left_out: Container[str] = ()
) -> list[Files]:
    """Image and mask of what VOC's list `official` names, such as "train", but of `left_out`."""
    folder = root / "VOCdevkit" / "VOC2012"
    return listed_files(
        folder / "ImageSets" / "Segmentation" / f"{official}.txt",
        f"{official} of VOC 2012",
        lambda image_id: (
            folder / "JPEGImages" / f"{image_id}.jpg",
            folder / masks / f"{image_id}.png",
        ),
        left_out,
    )
