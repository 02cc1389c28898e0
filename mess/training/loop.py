"""The training loop: stages that step, a checkpoint that resumes, losses that must be finite."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mess.common.progress import Reporter
from mess.compute.processes import ALONE, Processes
from mess.config import Config
from mess.errors import ConfigError, InterruptedWork, TrainingError
from mess.networks.network import OverprovisionedNetwork
from mess.training.best_epoch import BestEpoch
from mess.training.logs import HOLDOUT, MetricsLog
from mess.training.resume import Saver
from mess.training.stage import Batches, Judge, Stage, poly_rate
from mess.training.stopping import stop_on_signal

_LOG_EVERY = 10

_SAVE = 1
"""What processes tell each other after a step: to save, or the larger number of a signal."""


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
    processes: Processes = ALONE,
) -> None:
    """Run the stages in order, going on from `checkpoint` where there is one.

    `judge` is asked at the end of each stage, of the exits that it trained. With `best`, which
    needs one, it is asked after every `epoch` iterations too, and a stage ends with the weights
    that it found best, kept in that file meanwhile. Raises TrainingError when a loss is not finite;
    the last checkpoint stays. Ctrl-C or SIGTERM end it after the step, with a checkpoint, by an
    InterruptedWork.

    Several processes call it alike. Where they divide the units of a stage, each ends with those of
    all; the number of processes may change when a run goes on.
    """
    saver = Saver(network, config, checkpoint, processes)
    first, iteration = saver.resume(stages, reporter)
    batch_size = config.training.batch_size
    sharing = [s for s in stages[first:] if s.shares_batches and s.settings.iterations]
    if sharing and batch_size % processes.count:
        raise ConfigError(
            f"training.batch_size {batch_size} does not divide among {processes.count} processes "
            f"in {sharing[0].name}. Start as many as divide it."
        )
    for index in range(first, len(stages)):
        stage = stages[index]
        stage.begin()
        if processes.is_first:
            for logged in (stage.name, stage.name + HOLDOUT):
                # A stage without iterations is judged at iteration 0.
                log.rewind(logged, iteration or -1)
        done = iteration
        exits = _exits(stage, stage.units)
        # Of a unit that all train alike, the first process takes care.
        mine = {
            name: stage.units[name]
            for name in stage.mine
            if processes.is_first or not stage.shares_batches
        }
        keeper = None
        if best is not None:
            configuration = config.of_weights().to_toml()
            keeper = BestEpoch(best, network, stage.name, mine, configuration, processes)
        with (
            reporter.task(stage.name, stage.settings.iterations, done) as task,
            stop_on_signal(patient=processes.count > 1) as stop,
        ):
            whose = processes if stage.shares_batches else ALONE
            left = done < stage.settings.iterations
            for images, labels in (
                batches(stage.seed_name, stage.settings.iterations, done, whose) if left else ()
            ):
                images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
                losses = stage.step(images, labels.to(device, non_blocking=True), done)
                done += 1
                figures = _finite(losses, stage.name, done)
                rate = stage.settings.learning_rate
                rate *= poly_rate(stage.settings, done - 1, config.training.poly_power)
                mean = sum(figures.values()) / max(len(figures), 1)
                task.advance(1, loss=mean, rate=rate)
                if done % _LOG_EVERY == 0 or done == stage.settings.iterations:
                    if not stage.shares_batches:
                        figures = processes.merge(figures, exits)
                        mean = sum(figures.values()) / len(figures)
                    if processes.is_first:
                        log.append(stage.name, done, learning_rate=rate, mean=mean, **figures)
                if done == stage.settings.iterations:
                    break
                if judge and keeper and epoch and done % epoch == 0:
                    keeper.offer(done, judge(stage.name, done, exits, _exits(stage, mine)))
                    stage.begin()
                request = processes.most(stop.signal or (_SAVE if saver.is_due() else 0))
                if request:
                    saver.save(stage, done)
                if request > _SAVE:
                    raise _stopped(request, stage, done)
            miou = judge(stage.name, done, exits, _exits(stage, mine)) if judge else {}
            if keeper:
                keeper.offer(done, miou)
                keeper.restore()
            stage.end()
            # Not before: a checkpoint of the last iteration is that of a finished stage.
            saver.save(stage, done)
            saver.gather()
            if number := processes.most(stop.signal or 0):
                raise _stopped(number, stage, done)
        iteration = 0


def _stopped(number: int, stage: Stage, iteration: int) -> InterruptedWork:
    return InterruptedWork(
        f"stopped by {signal.Signals(number).name} after iteration {iteration} of {stage.name}. "
        "Run the same command again to go on from there.",
        number,
    )


def _exits(stage: Stage, names: Iterable[str]) -> list[str]:
    """The exits that units serve, each once."""
    return list(dict.fromkeys(e for name in names for e in stage.units[name].exits))


def _finite(losses: Mapping[str, Tensor], stage: str, iteration: int) -> dict[str, float]:
    # One transfer for all exits: reading each loss alone would stop the GPU once an exit.
    values = torch.stack(list(losses.values())).tolist() if losses else []
    for name, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"{stage}: the loss of exit {name} is {value} at iteration {iteration}. The last "
                "checkpoint is kept; lower the learning rate and start a new run."
            )
    return dict(zip(losses, values, strict=True))
