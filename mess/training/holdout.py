"""Measuring exits on images held out of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mess.common.metrics import label_counts, mean_iou
from mess.common.progress import Reporter
from mess.compute.processes import Processes
from mess.config import Config
from mess.data import SegmentationData
from mess.data.loader import evaluation_loader
from mess.errors import DataError
from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork
from mess.prediction.predict import predict
from mess.training.logs import HOLDOUT, MetricsLog


@dataclass(frozen=True, kw_only=True)
class HoldoutJudge:
    """A `Judge` that measures exits on the held-out images, and says and logs what it found.

    The final exit is always among them: how far it has come is the measure of the others.
    """

    network: OverprovisionedNetwork
    held_out: SegmentationData
    config: Config
    device: torch.device
    log: MetricsLog
    reporter: Reporter
    processes: Processes

    def __call__(
        self, stage: str, iteration: int, exits: Sequence[str], mine: Sequence[str]
    ) -> dict[str, float]:
        """The mIoU of each of `exits` and of the final one."""
        first = self.processes.is_first
        # `merge` adds figures up, so exactly one process may measure the final exit.
        mine = list(dict.fromkeys([*mine, FINAL] if first else mine))
        measured = (
            miou_by_exit(self.network, self.held_out, self.config, mine, self.device)
            if mine
            else {}
        )
        miou = self.processes.merge(measured, list(dict.fromkeys([*exits, FINAL])))
        if first:
            self.log.append(stage + HOLDOUT, iteration, **miou)
            self._say(stage, iteration, miou)
        return miou

    def _say(self, stage: str, iteration: int, miou: Mapping[str, float]) -> None:
        early = [value for exit_id, value in miou.items() if exit_id != FINAL]
        others = f", of {len(early)} exits {np.mean(early):.3f} on average" if early else ""
        self.reporter.message(
            f"{stage}, iteration {iteration}: mIoU of the final exit {miou[FINAL]:.3f}{others}, on "
            f"{len(self.held_out)} held-out images."
        )


def miou_by_exit(
    network: OverprovisionedNetwork,
    data: SegmentationData,
    config: Config,
    exits: list[str],
    device: torch.device,
) -> dict[str, float]:
    """The mIoU of each of `exits` on a split; raises DataError where nothing in it is labelled."""
    label, counts = exit_counts(network, data, config, exits, device)
    return {
        exit_id: float(mean_iou(intersection, predicted, label))
        for exit_id, (intersection, predicted) in counts.items()
    }


def exit_counts(
    network: OverprovisionedNetwork,
    data: SegmentationData,
    config: Config,
    exits: list[str],
    device: torch.device,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """Pixels of a split by class: labels (C,), and (2, C) of each exit, correct and predicted.

    `advance` is told of every batch's images. Raises DataError where nothing is labelled.
    """
    classes = data.classes.num_classes
    label = np.zeros(classes, np.int64)
    for index in range(len(data)):
        label += label_counts(data.sized(index)[1], classes)
    if not label.any():
        raise DataError(f"{data.where} has no labelled pixel, so mIoU is undefined.")
    # Counts of the whole split, not a mean of images' mIoU: it is defined on the split.
    sums = {exit_id: np.zeros((2, classes), np.int64) for exit_id in exits}
    loader = evaluation_loader(data, config.data, batch_size=config.memoise.batch_size)
    for indices, predictions in predict(network, loader, [], device=device, exits=exits):
        for exit_id, counts in sums.items():
            prediction = predictions[exit_id]
            counts += [prediction.intersection.sum(0), prediction.predicted.sum(0)]
        advance(len(indices))
    return label, sums
