"""Measuring exits on images held out of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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
from mess.training.stage import Judge


def holdout_judge(
    network: OverprovisionedNetwork,
    held_out: SegmentationData,
    config: Config,
    device: torch.device,
    log: MetricsLog,
    reporter: Reporter,
    processes: Processes,
) -> Judge:
    """Measures exits on the held-out images, and says and logs what it found."""

    def judge(
        stage: str, iteration: int, exits: Sequence[str], mine: Sequence[str]
    ) -> dict[str, float]:
        mine = list(dict.fromkeys([*mine, FINAL])) if processes.is_first else list(mine)
        measured = exit_mious(network, held_out, config, mine, device) if mine else {}
        miou = processes.merge(measured, list(dict.fromkeys([*exits, FINAL])))
        if not processes.is_first:
            return miou
        log.append(stage + HOLDOUT, iteration, **miou)
        early = [miou[exit_id] for exit_id in exits if exit_id != FINAL]
        others = f", of {len(early)} exits {np.mean(early):.3f} on average" if early else ""
        reporter.message(
            f"{stage}, iteration {iteration}: mIoU of the final exit {miou[FINAL]:.3f}{others}, on "
            f"{len(held_out)} held-out images."
        )
        return miou

    return judge


def exit_mious(
    network: OverprovisionedNetwork,
    data: SegmentationData,
    config: Config,
    exits: list[str],
    device: torch.device,
) -> dict[str, float]:
    """The mIoU of each exit on a split."""
    classes = data.classes.num_classes
    label = np.zeros(classes, np.int64)
    for index in range(len(data)):
        label += label_counts(data.sized(index)[1], classes)
    if not label.any():
        raise DataError(f"{data.where} has no labelled pixel, so mIoU is undefined.")
    sums = {exit_id: np.zeros((2, classes), np.int64) for exit_id in exits}
    loader = evaluation_loader(data, config.data, batch_size=config.memoise.batch_size)
    for _, predictions in predict(network, loader, [], device=device, exits=exits):
        for exit_id, counts in sums.items():
            prediction = predictions[exit_id]
            counts += [prediction.intersection.sum(0), prediction.predicted.sum(0)]
    return {
        exit_id: float(mean_iou(intersection, predicted, label))
        for exit_id, (intersection, predicted) in sums.items()
    }
