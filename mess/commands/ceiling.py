"""What mIoU each output stride can about reach on a data set, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mess.commands.check_data import labelled_pixels
from mess.common.metrics import VOID, iou, label_counts, mean_iou
from mess.common.progress import Reporter
from mess.config import Config
from mess.data import SegmentationData, open_split
from mess.data.ceiling import best_on_grid, grid_of
from mess.networks.candidates import KEPT, candidates

STRIDES = (2, 4, 8, 16, 32)

OUT_OF_REACH = 0.5
"""A class with less than this at the finest output stride of the exits is named."""


def ceilings(
    config: Config, sizes: Sequence[tuple[int, int]], split: str, reporter: Reporter
) -> dict[str, Any]:
    """By size and output stride the mIoU, and IoU by class, of the masks brought there and back.

    `sizes` are (height, width), the configuration's own where there are none. IoU is None for a
    class without a pixel.
    """
    data = open_split(config.data, split, config.seed)
    classes = data.classes.num_classes
    label = labelled_pixels(data)
    rows, own_strides = [], _output_strides(config, classes)
    strides = sorted({*STRIDES, *own_strides})
    for size in sizes or [config.data.size]:
        scaled = config.data.model_copy(update={"size": size})
        rows += _at_size(open_split(scaled, split, config.seed), strides, reporter)
    return {
        "split": split,
        "images": len(data),
        "classes": list(data.classes.names),
        "pixels": (label / label.sum()).tolist(),
        "size": list(config.data.size),
        "output_strides": own_strides,
        "ceilings": rows,
        "out_of_reach": _out_of_reach(rows, data.classes.names, own_strides[0]),
    }


def _output_strides(config: Config, num_classes: int) -> list[int]:
    """Of the exits that the configuration would train, the final one included, finest first."""
    rows = candidates(config, num_classes)
    return sorted({row.output_stride for row in rows if row.status == KEPT})


def _at_size(
    data: SegmentationData, strides: Sequence[int], reporter: Reporter
) -> list[dict[str, Any]]:
    classes = data.classes.num_classes
    height, width = data.size
    # Intersection, predicted and labelled pixels.
    counts = {stride: np.zeros((3, classes), np.int64) for stride in strides}
    with reporter.task(f"{height}×{width}", len(data)) as task:
        for index in range(len(data)):
            mask_HW = data.sized(index)[1]
            labelled = mask_HW != VOID
            for stride, sums in counts.items():
                best_HW = best_on_grid(mask_HW, grid_of(data.size, stride))
                right = labelled & (best_HW == mask_HW)
                for total, chosen in zip(
                    sums, (best_HW[right], best_HW[labelled], mask_HW), strict=True
                ):
                    total += label_counts(chosen, classes)
            task.advance()
    return [
        {
            "height": height,
            "width": width,
            "output_stride": stride,
            "miou": float(mean_iou(*sums)),
            "iou": [None if np.isnan(value) else float(value) for value in iou(*sums)],
        }
        for stride, sums in counts.items()
    ]


def _out_of_reach(
    rows: Sequence[dict[str, Any]], names: Sequence[str], output_stride: int
) -> list[dict[str, Any]]:
    """The classes that no exit can get right, by size."""
    return [
        {"height": row["height"], "width": row["width"], "class": name, "iou": value}
        for row in rows
        if row["output_stride"] == output_stride
        for name, value in zip(names, row["iou"], strict=True)
        if value is not None and value < OUT_OF_REACH
    ]
