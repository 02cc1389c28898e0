"""Looking at data before it is used: what would fail or count for nothing later is told now."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mess.common.metrics import label_counts
from mess.common.progress import Reporter
from mess.data import SegmentationData
from mess.data.files import FilePairs
from mess.errors import DataError
from mess.sentences.data import absent_class_lines, left_out_lines


def check_masks(data: SegmentationData, name: str, reporter: Reporter) -> None:
    """Read every mask that is a file, and say what of the split is missing.

    Raises DataError for a mask that is faulty, and where none has a labelled pixel.
    """
    # Others are made from what was read when the data set was opened.
    if isinstance(data, FilePairs):
        images = len(data.image_ids)
        labelled = _counted(data, name, images, data.masks(), reporter)
        say_what_is_missing(data, labelled, reporter)


def check_images(data: SegmentationData, name: str, reporter: Reporter) -> None:
    """Read every image with its mask, as `check_masks`, and say what of the split is missing."""
    masks = (data.sized(index)[1] for index in range(len(data)))
    labelled = _counted(data, name, len(data), masks, reporter)
    say_what_is_missing(data, labelled, reporter)


def say_what_is_missing(data: SegmentationData, labelled: ArrayLike, reporter: Reporter) -> None:
    """Name classes of which a split has no pixel, and files that were left out of it.

    labelled: pixels of each class in its masks.
    """
    lines = absent_class_lines(data.where, data.classes.names, np.asarray(labelled).tolist())
    for line in [*left_out_lines(data.where, data.others), *lines]:
        reporter.message(line)


def _counted(
    data: SegmentationData,
    name: str,
    steps: int,
    masks: Iterable[NDArray[np.uint8]],
    reporter: Reporter,
) -> NDArray[np.int64]:
    """Pixels of each class in all masks, one a step."""
    labelled = np.zeros(data.classes.num_classes, np.int64)
    with reporter.task(f"checking {name}", steps) as task:
        for mask_HW in masks:
            labelled += label_counts(mask_HW, len(labelled))
            task.advance()
    require_labels(data, labelled)
    return labelled


def labelled_pixels(data: SegmentationData) -> NDArray[np.int64]:
    """Of each class in all masks, shape (C,); raises DataError where no pixel has a label."""
    classes = data.classes.num_classes
    labelled = np.sum([label_counts(mask_HW, classes) for mask_HW in data.masks()], axis=0)
    require_labels(data, labelled)
    return labelled


def require_labels(data: SegmentationData, labelled: ArrayLike) -> None:
    """Raise DataError where masks have no labelled pixel of any class."""
    if not np.any(labelled):
        raise DataError(
            f"{data.where} has no labelled pixel: all {len(data.image_ids)} masks are void (255), "
            "and mIoU is undefined. Label some, or say what the masks hold by `values` in "
            "classes.json."
        )
