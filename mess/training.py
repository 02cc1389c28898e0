"""The training loop: stages that step, a checkpoint that resumes, losses that must be finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mess.best_epoch import BestEpoch, Unit
from mess.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mess.config import Config, StageConfig, read_toml
from mess.errors import InterruptedWork, TrainingError
from mess.metrics_log import MetricsLog
from mess.network import OverprovisionedNetwork
from mess.progress import Reporter
from mess.stopping import stop_on_signal

Batch = tuple[Tensor, Tensor]
"""Images (B, 3, H, W) float32 and labels (B, H, W) int64."""

Batches = Callable[[str, int, int], Iterable[Batch]]
"""Batches of a stage: its name, its iterations in all, and the iteration to start from."""

_LOG_EVERY = 10

HOLDOUT = "-holdout"
"""Behind a stage's name in the metrics log: mIoU on held-out images."""


class Judge(Protocol):
    """Measures exits on images held out of training."""

    def __call__(self, stage: str, iteration: int, exits: Sequence[str]) -> Mapping[str, float]:
        """The mIoU of each of `exits` after `iteration` iterations; may leave eval mode behind."""
        ...


class Stage(Protocol):
    """One stage of training over the shared network."""

    name: str

    @property
    def units(self) -> Mapping[str, Unit]:
        """What the stage trains, in parts that do not depend on each other."""
        ...

    @property
    def settings(self) -> StageConfig: ...

    def begin(self) -> None:
        """Put the network into the stage's mode."""

    def step(self, images: Tensor, labels: Tensor, iteration: int) -> dict[str, Tensor]:
        """Do iteration `iteration` (0-based); the losses by the name of the exit."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the network's weights."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""


def poly_rate(settings: StageConfig, iteration: int, power: float) -> float:
    """Share of the initial learning rate: (1 - iteration / iterations) ** power."""
    return (1.0 - iteration / settings.iterations) ** power


def train(
    network: OverprovisionedNetwork,
    stages: list[Stage],
    config: Config,
    batches: Batches,
    *,
    checkpoint: Path,
    log: MetricsLog,
    reporter: Reporter,
    device: torch.device,
    judge: Judge | None = None,
    best: Path | None = None,
    epoch: int | None = None,
) -> None:
    """Run the stages in order, going on from `checkpoint` where there is one.

    `judge` is asked at the end of each stage, of the exits that it trained. With `best`, which
    needs one, it is asked after every `epoch` iterations too, and a stage ends with the weights
    that it found best, kept in that file meanwhile. Raises TrainingError when a loss is not finite;
    the last checkpoint stays. Ctrl-C or SIGTERM end it after the step, with a checkpoint, by an
    InterruptedWork.
    """
    first, iteration = _resume(network, stages, config, checkpoint, reporter)
    for index in range(first, len(stages)):
        stage = stages[index]
        stage.begin()
        log.rewind(stage.name, iteration)
        log.rewind(f"{stage.name}{HOLDOUT}", iteration)
        done = iteration
        exits = list(dict.fromkeys(e for unit in stage.units.values() for e in unit.exits))
        keeper = None
        if best is not None:
            configuration = config.of_weights().to_toml()
            keeper = BestEpoch(best, network, stage.name, stage.units, configuration)
        with (
            reporter.task(stage.name, stage.settings.iterations, done) as task,
            stop_on_signal() as stop,
        ):
            saved = time.monotonic()
            for images, labels in batches(stage.name, stage.settings.iterations, iteration):
                images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
                losses = stage.step(images, labels.to(device, non_blocking=True), done)
                done += 1
                figures = _finite(losses, stage.name, done)
                rate = stage.settings.learning_rate
                rate *= poly_rate(stage.settings, done - 1, config.training.poly_power)
                task.advance(1, loss=figures["mean"], rate=rate)
                if done % _LOG_EVERY == 0 or done == stage.settings.iterations:
                    log.append(stage.name, done, learning_rate=rate, **figures)
                if done == stage.settings.iterations:
                    break
                if judge and keeper and epoch and done % epoch == 0:
                    keeper.offer(done, judge(stage.name, done, exits))
                    stage.begin()
                if stop.signal:
                    _save(checkpoint, network, stage, done, config)
                    raise InterruptedWork(
                        f"stopped by {stop.signal.name} after iteration {done} of {stage.name}. "
                        "Run the same command again to go on from there.",
                        stop.signal,
                    )
                if time.monotonic() - saved > 60 * config.training.checkpoint_minutes:
                    _save(checkpoint, network, stage, done, config)
                    saved = time.monotonic()
        if keeper is None:
            _save(checkpoint, network, stage, done, config)
        miou = judge(stage.name, done, exits) if judge else {}
        if keeper:
            # Not before: a checkpoint of the last iteration is that of a finished stage.
            keeper.offer(done, miou)
            keeper.restore()
            _save(checkpoint, network, stage, done, config)
        iteration = 0


def _resume(
    network: OverprovisionedNetwork,
    stages: list[Stage],
    config: Config,
    path: Path,
    reporter: Reporter,
) -> tuple[int, int]:
    checkpoint = load_checkpoint(path)
    if checkpoint is None:
        return 0, 0
    # Compared as values: another version may write the same configuration differently.
    if read_toml(checkpoint.configuration) != config.of_weights():
        raise TrainingError(
            f"checkpoint {path} was reached under another configuration. Give the run another "
            "folder with --run, or the configuration it was begun with."
        )
    names = [stage.name for stage in stages]
    index = names.index(checkpoint.stage)
    state = dict(_split(checkpoint.tensors, "network."))
    network.load_state_dict(state)
    if checkpoint.iteration == stages[index].settings.iterations:
        return index + 1, 0
    stages[index].restore(dict(_split(checkpoint.tensors, "stage.")))
    reporter.message(
        f"Resuming {checkpoint.stage} at iteration {checkpoint.iteration} "
        f"of {stages[index].settings.iterations}."
    )
    return index, checkpoint.iteration


def _save(
    path: Path, network: OverprovisionedNetwork, stage: Stage, iteration: int, config: Config
) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"stage.{name}": tensor for name, tensor in stage.state().items()}
    save_checkpoint(path, Checkpoint(stage.name, iteration, config.of_weights().to_toml(), tensors))


def _split(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor


def _finite(losses: Mapping[str, Tensor], stage: str, iteration: int) -> dict[str, float]:
    # One transfer for all exits: reading each loss alone would stop the GPU once an exit.
    values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    for name, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"{stage}: the loss of exit {name} is {value} at iteration {iteration}. The last "
                "checkpoint is kept; lower the learning rate and start a new run."
            )
    return {"mean": sum(values) / len(values), **dict(zip(losses, values, strict=True))}
