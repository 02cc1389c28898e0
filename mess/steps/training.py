"""Training the overprovisioned network of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from mess.assembly import CALIBRATION
from mess.cache.parquet import write_rows
from mess.cache.schema import EXITS
from mess.candidates import KEPT, TRAINED, candidates
from mess.config import Config
from mess.data import SegmentationData, open_split
from mess.data.loader import evaluation_loader, training_loader
from mess.exits import FINAL
from mess.files import write_json
from mess.metrics import mean_iou
from mess.metrics_log import MetricsLog
from mess.network import OverprovisionedNetwork, build_network, save_weights
from mess.prediction import label_counts, predict
from mess.progress import Reporter
from mess.run import Run
from mess.seeds import derive
from mess.stages import mess_stages
from mess.steps.networks import pick_device, without_weights
from mess.training import train


def train_network(place: Run, device_name: str, reporter: Reporter) -> None:
    """Both stages, from the checkpoint where there is one; then exits.parquet and the weights."""
    config = place.config()
    device = pick_device(device_name)
    data = open_split(config.data, "train", config.seed)
    held_out = open_split(config.data, "holdout", config.seed) if config.data.holdout else None
    if not place.checkpoint.exists():
        _check(open_split(config.data, CALIBRATION, config.seed), reporter)
    classes = data.classes.num_classes
    rows = candidates(config, classes)
    # A checkpoint holds what the backbone started from; its file may be gone.
    start = without_weights(config) if place.checkpoint.exists() else config
    network = build_network(start, rows, classes).to(device)
    write_json(place.classes, data.classes.to_json())
    log = MetricsLog(place.metrics)

    def batches(stage: str, iterations: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = training_loader(
            data,
            config.data,
            seed=derive(config.seed, stage),
            iterations=iterations,
            batch_size=config.training.batch_size,
            start=start,
        )
        for images, labels, _ in loader:
            yield images, labels

    def after_stage(stage: str, iterations: int) -> None:
        if held_out is None:
            return
        exits = [FINAL] if stage == "stage1" else [*network.exits, FINAL]
        miou = exit_mious(network, held_out, config, exits, device)
        log.append(f"{stage}-holdout", iterations, **miou)
        reporter.message(
            f"{stage}: mIoU of the final exit on {len(held_out)} held-out images {miou[FINAL]:.3f}."
        )

    train(
        network,
        mess_stages(network, config, rows, classes, device),
        config,
        batches,
        checkpoint=place.checkpoint,
        log=log,
        reporter=reporter,
        device=device,
        after_stage=after_stage,
    )
    trained = [replace(row, status=TRAINED) if row.status == KEPT else row for row in rows]
    write_rows(place.exits, [asdict(row) for row in trained], EXITS)
    save_weights(network, place.weights)
    place.checkpoint.unlink(missing_ok=True)


def _check(data: SegmentationData, reporter: Reporter) -> None:
    """Read every image now: a damaged one should not show after hours of training."""
    with reporter.task("checking calibration", len(data)) as task:
        for index in range(len(data)):
            data.read(index)
            task.advance()


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
    sums = {exit_id: np.zeros((2, classes), np.int64) for exit_id in exits}
    loader = evaluation_loader(data, config.data, batch_size=config.memoise.batch_size)
    for _, predictions in predict(network, loader, [], device=device, exits=exits):
        for exit_id, prediction in predictions.items():
            sums[exit_id] += [prediction.intersection.sum(0), prediction.predicted.sum(0)]
    return {
        exit_id: float(mean_iou(intersection, predicted, label))
        for exit_id, (intersection, predicted) in sums.items()
    }
