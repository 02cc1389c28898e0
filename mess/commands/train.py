"""Training the overprovisioned network of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from mess.cache.parquet import write_rows
from mess.cache.schema import EXITS
from mess.commands.adopt import judge_adopted, require_adopted
from mess.commands.check_data import check_images, check_masks
from mess.common.files import remove_leftovers, write_json
from mess.common.progress import Reporter
from mess.common.seeds import derive
from mess.compute.device import local_device, pick_device
from mess.compute.memory import keep_memory
from mess.compute.processes import ALONE, Processes
from mess.config import Config
from mess.data import ClassTable, SegmentationData, open_split
from mess.data.loader import Batch, training_loader
from mess.export.programs import require_exportable, require_exportable_backbone
from mess.networks.adoption import adopt_weights
from mess.networks.candidates import (
    KEPT,
    TRAINED,
    Candidate,
    candidates,
    require_early_exit,
)
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.networks.weight_files import read_weights
from mess.networks.weights import load_weights, save_weights
from mess.runs.network import without_weights
from mess.runs.results import CALIBRATION
from mess.runs.run import Run, find_run
from mess.signals.registry import configured_signals
from mess.training.best_epoch import remove_best_epochs
from mess.training.checkpoint import remove_checkpoint
from mess.training.holdout import HoldoutJudge
from mess.training.logs import MetricsLog, TensorBoardLog
from mess.training.loop import Training
from mess.training.stage import Batches
from mess.training.stages.recipes import keeps_best, stages_of


def train_network(
    place: Run,
    device_name: str,
    reporter: Reporter,
    processes: Processes = ALONE,
    adopt: Path | None = None,
) -> None:
    """All stages, from the checkpoint where there is one; then exits.parquet and the weights.

    `adopt` are the weights that a run which adopts a network begins with.
    Several processes train one network together; the first one writes what is not divided.
    """
    keep_memory()
    config = place.config
    best = place.best_epoch if keeps_best(config) else None
    log = _open_log(place, config)
    device = local_device(pick_device(device_name))
    data = open_split(config.data, "train", config.seed)
    held_out = open_split(config.data, "holdout", config.seed) if config.data.holdout else None
    classes = data.classes
    if processes.is_first:
        _prepare(place, config, data, held_out, reporter)
    # What would fail after training fails before it.
    require_exportable(configured_signals(config.memoise), config.data.size, classes.num_classes)
    rows = candidates(config, classes.num_classes)
    require_early_exit(rows)
    require_exportable_backbone(config, classes.num_classes)
    network = _starting_network(place, config, rows, classes, adopt)
    network.backbone.to(device)  # exits go there when they are trained
    if adopt and processes.is_first and not place.checkpoint.exists():
        judge_adopted(place, network, adopt, device, reporter)
    judge = None
    if held_out:
        judge = HoldoutJudge(
            network=network, held_out=held_out, config=config, device=device, log=log,
            reporter=reporter, processes=processes,
        )  # fmt: skip
    Training(
        network=network, config=config, batches=_batches(data, config),
        checkpoint=place.checkpoint, log=log, reporter=reporter, device=device, judge=judge,
        best=best, epoch=math.ceil(len(data) / config.training.batch_size), processes=processes,
    ).run(stages_of(network, config, rows, classes.num_classes, device, processes))  # fmt: skip
    if processes.is_first:
        _finish(place, network, rows)
    processes.wait()


def remove_progress(place: Run) -> None:
    """Delete what only a training that is not finished needs."""
    remove_best_epochs(place.best_epoch)
    remove_checkpoint(place.checkpoint)


def _open_log(place: Run, config: Config) -> MetricsLog:
    if config.training.tensorboard:
        return TensorBoardLog(place.metrics, place.tensorboard)
    return MetricsLog(place.metrics)


def _prepare(
    place: Run,
    config: Config,
    data: SegmentationData,
    held_out: SegmentationData | None,
    reporter: Reporter,
) -> None:
    """Clear up after a kill, look at all the data, name the classes."""
    for file in place.written_by_training():
        remove_leftovers(file)
    # A run that goes on has been checked when it began.
    if not place.checkpoint.exists():
        # Of a training that was killed before its first checkpoint, maybe on other images.
        remove_best_epochs(place.best_epoch)
        check_masks(data, "train", reporter)
        if held_out:
            check_masks(held_out, "holdout", reporter)
        # Training reads none of it: a damaged image should not show after hours.
        check_images(open_split(config.data, CALIBRATION, config.seed), CALIBRATION, reporter)
    write_json(place.classes, data.classes.to_json())


def _starting_network(
    place: Run,
    config: Config,
    rows: Sequence[Candidate],
    classes: ClassTable,
    adopt: Path | None,
) -> OverprovisionedNetwork:
    """The network before its first step, or for a checkpoint to be read into."""
    resumes, start = place.checkpoint.exists(), config.training.start
    adopts = config.training.adopted is not None
    # A checkpoint holds what the backbone started from, whose file may be gone.
    own = without_weights(config) if resumes or adopts or start else config
    network = build_network(own, rows, classes.num_classes, classes.names)
    if resumes:
        return network
    # The backbone with its own head; exits start from this run's seed.
    if adopts:
        file = require_adopted(place, adopt)
        adopt_weights(network.backbone, read_weights(file), file)
    elif start is not None:
        load_weights(network, find_run(start).require_weights(), "backbone.")
    return network


def _batches(data: SegmentationData, config: Config) -> Batches:
    """The augmented batches of any stage."""

    def batches(
        seed_name: str, iterations: int, start: int, sharing: Processes, every: int = 1
    ) -> Iterator[Batch]:
        return training_loader(
            data,
            config.data,
            seed=derive(config.seed, seed_name),
            iterations=iterations,
            batch_size=config.training.batch_size,
            start=start,
            every=every,
            rank=sharing.rank,
            world=sharing.count,
        )

    return batches


def _finish(place: Run, network: OverprovisionedNetwork, rows: Sequence[Candidate]) -> None:
    """Write what training was for, and only then delete what could resume it."""
    # The weights after the exits: where they are, a run counts as trained and its exits are read.
    trained = [replace(row, status=TRAINED) if row.status == KEPT else row for row in rows]
    write_rows(place.exits, [asdict(row) for row in trained], EXITS)
    save_weights(network, place.weights)
    remove_progress(place)
