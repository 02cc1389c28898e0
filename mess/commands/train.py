"""Training the overprovisioned network of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from mess.cache.parquet import write_rows
from mess.cache.schema import EXITS
from mess.common.files import remove_leftovers, write_json
from mess.common.metrics import mean_iou
from mess.common.progress import Reporter
from mess.common.seeds import derive
from mess.compute.memory import keep_memory
from mess.compute.processes import ALONE, Processes, local_device
from mess.config import Config
from mess.data import SegmentationData, open_split
from mess.data.loader import evaluation_loader, training_loader
from mess.errors import DataError
from mess.exits import FINAL
from mess.export.segments import require_exportable
from mess.networks.candidates import KEPT, TRAINED, Candidate, candidates
from mess.networks.network import OverprovisionedNetwork, build_network, load_weights, save_weights
from mess.prediction.predict import label_counts, predict
from mess.runs.network import pick_device, without_weights
from mess.runs.run import Run, find_run
from mess.runs.tables import CALIBRATION
from mess.signals.registry import configured_signals
from mess.training.best_epoch import remove_best_epochs
from mess.training.checkpoint import remove_checkpoint
from mess.training.loop import Judge, train
from mess.training.metrics_log import HOLDOUT, MetricsLog
from mess.training.recipes import keeps_best, stages_of
from mess.training.tensorboard_log import TensorBoardLog


def train_network(
    place: Run, device_name: str, reporter: Reporter, processes: Processes = ALONE
) -> None:
    """All stages, from the checkpoint where there is one; then exits.parquet and the weights.

    Several processes train one network together; the first one writes what is not divided.
    """
    keep_memory()
    config = place.config()
    best = keeps_best(config)
    log = _open_log(place, config)
    device = local_device(pick_device(device_name))
    data = open_split(config.data, "train", config.seed)
    held_out = open_split(config.data, "holdout", config.seed) if config.data.holdout else None
    if processes.is_first:
        for file in place.written_by_training():
            remove_leftovers(file)
        if not place.checkpoint.exists():
            _check(open_split(config.data, CALIBRATION, config.seed), reporter)
        write_json(place.classes, data.classes.to_json())
    classes = data.classes.num_classes
    # What would fail after training fails before it.
    require_exportable(configured_signals(config.memoise), config.data.size, classes)
    rows = candidates(config, classes)
    # A checkpoint holds what the backbone started from; its file may be gone.
    resumed = place.checkpoint.exists()
    start = config.training.start
    fresh = resumed or start is not None
    network = build_network(without_weights(config) if fresh else config, rows, classes)
    if start is not None and not resumed:
        load_weights(network, find_run(start).require_weights(), "backbone.")
    network.backbone.to(device)  # exits go there when they are trained

    def batches(
        seed_name: str, iterations: int, start: int, sharing: Processes
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader = training_loader(
            data,
            config.data,
            seed=derive(config.seed, seed_name),
            iterations=iterations,
            batch_size=config.training.batch_size,
            start=start,
            rank=sharing.rank,
            world=sharing.count,
        )
        for images, labels, _ in loader:
            yield images, labels

    train(
        network,
        stages_of(network, config, rows, classes, device, processes),
        config,
        batches,
        checkpoint=place.checkpoint,
        log=log,
        reporter=reporter,
        device=device,
        judge=(
            _judge(network, held_out, config, device, log, reporter, processes)
            if held_out
            else None
        ),
        best=place.best_epoch if best else None,
        epoch=math.ceil(len(data) / config.training.batch_size),
        processes=processes,
    )
    if processes.is_first:
        _finish(place, network, rows)
    processes.wait()


def _finish(place: Run, network: OverprovisionedNetwork, rows: Sequence[Candidate]) -> None:
    trained = [replace(row, status=TRAINED) if row.status == KEPT else row for row in rows]
    write_rows(place.exits, [asdict(row) for row in trained], EXITS)
    save_weights(network, place.weights)
    remove_progress(place)


def remove_progress(place: Run) -> None:
    """Delete what only a training that is not finished needs."""
    remove_best_epochs(place.best_epoch)
    remove_checkpoint(place.checkpoint)


def _judge(
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


def _open_log(place: Run, config: Config) -> MetricsLog:
    if config.training.tensorboard:
        return TensorBoardLog(place.metrics, place.tensorboard)
    return MetricsLog(place.metrics)


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
