"""The training loop: stages that step, a checkpoint that resumes, losses that must be finite."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mess.common.progress import Reporter
from mess.compute.processes import ALONE, Processes
from mess.config import Config, StageConfig, read_toml
from mess.errors import ConfigError, InterruptedWork, TrainingError
from mess.networks.network import OverprovisionedNetwork
from mess.training.best_epoch import BestEpoch, Unit
from mess.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_divided
from mess.training.metrics_log import HOLDOUT, MetricsLog
from mess.training.stopping import stop_on_signal

Batch = tuple[Tensor, Tensor]
"""Images (B, 3, H, W) float32 and labels (B, H, W) int64."""

Batches = Callable[[str, int, int, Processes], Iterable[Batch]]
"""Batches by seed name, iterations in all, iteration to start from, and who shares each batch."""

_LOG_EVERY = 10

_SAVE = 1
"""What processes tell each other after a step: to save, or the larger number of a signal."""

_NETWORK, _STAGE = "network.", "stage."
"""Before the names of a checkpoint's tensors."""


class Judge(Protocol):
    """Measures exits on images held out of training."""

    def __call__(
        self, stage: str, iteration: int, exits: Sequence[str], mine: Sequence[str]
    ) -> Mapping[str, float]:
        """The mIoU of each of `exits` after `iteration` iterations; may leave eval mode behind.

        This process measures those in `mine`; the others are other processes'.
        """
        ...


class Stage(Protocol):
    """One stage of training over the shared network."""

    name: str

    @property
    def seed_name(self) -> str:
        """What its batches hang on."""
        ...

    @property
    def shares_batches(self) -> bool:
        """Whether processes divide each batch; else they divide the units."""
        ...

    @property
    def units(self) -> Mapping[str, Unit]:
        """What the stage trains, in parts that do not depend on each other."""
        ...

    @property
    def mine(self) -> Sequence[str]:
        """The units that this process trains."""
        ...

    @property
    def settings(self) -> StageConfig: ...

    def begin(self) -> None:
        """Put the network into the stage's mode."""

    def step(self, images: Tensor, labels: Tensor, iteration: int) -> dict[str, Tensor]:
        """Do iteration `iteration` (0-based); the losses by the name of the exit."""
        ...

    def end(self) -> None:
        """Leave the network to the next stage; nothing is trained after it."""

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
    saver = _Saver(network, config, checkpoint, processes)
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


class _Saver:
    """Writes and reads the checkpoints of a training."""

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        path: Path,
        processes: Processes,
    ) -> None:
        self._network, self._path, self._processes = network, path, processes
        self._minutes = config.training.checkpoint_minutes
        self._configuration = config.of_weights()
        self._saved = time.monotonic()

    def resume(self, stages: Sequence[Stage], reporter: Reporter) -> tuple[int, int]:
        """The stage, and its iteration, to go on with; network and stage are as they were then."""
        checkpoint = load_checkpoint(self._path)
        # None may write the next one before all have read this one.
        self._processes.wait()
        if checkpoint is None:
            return 0, 0
        # Compared as values: another version may write the same configuration differently.
        if read_toml(checkpoint.configuration) != self._configuration:
            raise TrainingError(
                f"checkpoint {self._path} was reached under another configuration. Give the run "
                "another folder with --run, or the configuration it was begun with."
            )
        names = [stage.name for stage in stages]
        if checkpoint.stage not in names:
            raise TrainingError(
                f"checkpoint {self._path} is within {checkpoint.stage}, this training has "
                f"{', '.join(names)}. Keep training.stage2.groups as it was until stage 2 is done."
            )
        index = names.index(checkpoint.stage)
        stage = stages[index]
        self._network.load_state_dict(dict(_split(checkpoint.tensors, _NETWORK)))
        if checkpoint.iteration == stage.settings.iterations:
            return index + 1, 0
        stage.restore(dict(_split(checkpoint.tensors, _STAGE)))
        reporter.message(
            f"Resuming {checkpoint.stage} at iteration {checkpoint.iteration} "
            f"of {stage.settings.iterations}."
        )
        return index, checkpoint.iteration

    def save(self, stage: Stage, iteration: int) -> None:
        """Write the checkpoint; where processes divide the units, each its own."""
        divided = self._processes.count > 1 and not stage.shares_batches
        state = {_NETWORK + name: tensor for name, tensor in self._network.state_dict().items()}
        if divided:
            others = [unit for name, unit in stage.units.items() if name not in stage.mine]
            left_out = _prefixes(others)
            if not self._processes.is_first:
                own = _prefixes([stage.units[name] for name in stage.mine])
                state = {name: tensor for name, tensor in state.items() if name.startswith(own)}
            state = {name: t for name, t in state.items() if not name.startswith(left_out)}
        state |= {_STAGE + name: tensor for name, tensor in stage.state().items()}
        found = Checkpoint(stage.name, iteration, self._configuration.to_toml(), state)
        if divided:
            save_divided(self._path, found, self._processes)
        elif self._processes.is_first:
            save_checkpoint(self._path, found)
        self._processes.wait()
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than it should be."""
        return time.monotonic() - self._saved > 60 * self._minutes

    def gather(self) -> None:
        """Give this process what the others have trained."""
        if self._processes.count > 1:
            checkpoint = load_checkpoint(self._path)
            assert checkpoint is not None
            self._network.load_state_dict(dict(_split(checkpoint.tensors, _NETWORK)))
            self._processes.wait()


def _exits(stage: Stage, names: Iterable[str]) -> list[str]:
    """The exits that units serve, each once."""
    return list(dict.fromkeys(e for name in names for e in stage.units[name].exits))


def _prefixes(units: Iterable[Unit]) -> tuple[str, ...]:
    return tuple(_NETWORK + prefix for unit in units for prefix in unit.prefixes)


def _split(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor


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
