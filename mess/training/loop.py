"""The training loop: stages that step, a checkpoint that resumes, losses that must be finite."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mess.common.progress import Reporter, Task
from mess.compute.processes import ALONE, Processes
from mess.config import Config
from mess.data.loader import Batch
from mess.errors import ConfigError, InterruptedWork, TrainingError
from mess.networks.network import OverprovisionedNetwork
from mess.training.best_epoch import BestEpoch
from mess.training.logs import HOLDOUT, MetricsLog
from mess.training.resume import Saver
from mess.training.schedule import learning_rate
from mess.training.stage import Batches, Judge, Seen, Stage
from mess.training.stopping import Stop, stop_on_signal

_LOG_EVERY = 10

_SAVE = 1
"""What processes tell each other after a step: to save, or the larger number of a signal."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all stages of a training share.

    `judge` is asked at the end of each stage, of the exits that it trained. With `best`, which
    needs one, it is asked after every `epoch` iterations too, and a stage ends with the weights
    that it found best, kept in that file meanwhile.
    """

    network: OverprovisionedNetwork
    config: Config
    batches: Batches
    checkpoint: Path
    log: MetricsLog
    reporter: Reporter
    device: torch.device
    judge: Judge | None = None
    best: Path | None = None
    epoch: int | None = None
    processes: Processes = ALONE

    def run(self, stages: list[Stage]) -> None:
        """Run the stages in order, going on from the checkpoint where there is one.

        Raises TrainingError when a loss is not finite; the last checkpoint stays. Ctrl-C or SIGTERM
        end it after the step, with a checkpoint, by an InterruptedWork.

        Several processes call it alike. Where they divide the units of a stage, each ends with
        those of all; the number of processes may change when a run goes on.
        """
        saver = Saver(self.network, self.config, self.checkpoint, self.processes)
        first, iteration = saver.resume(stages, self.reporter)
        self._require_equal_shares(stages[first:])
        for stage in stages[first:]:
            _StageRun(self, stage, saver, iteration).run()
            iteration = 0

    def _require_equal_shares(self, stages: list[Stage]) -> None:
        sharing = [stage for stage in stages if stage.shares_batches and stage.settings.iterations]
        size, processes = self.config.training.batch_size, self.processes.count
        if sharing and size % processes:
            raise ConfigError(
                f"training.batch_size {size} does not divide among {processes} processes "
                f"in {sharing[0].name}. Start as many as divide it."
            )


class _StageRun:
    """One stage of a training from an iteration on: its steps, and what is done between them."""

    def __init__(self, training: Training, stage: Stage, saver: Saver, done: int) -> None:
        self._training, self._stage, self._saver = training, stage, saver
        self._processes = training.processes
        self._iterations = stage.settings.iterations
        self._done = done
        self._exits = _exits(stage, stage.units)
        # Of a unit that all train alike, the first process takes care.
        cares = self._processes.is_first or not stage.shares_batches
        self._mine = {name: stage.units[name] for name in (stage.mine if cares else ())}
        self._best_epoch = self._open_best_epoch()

    def run(self) -> None:
        training = self._training
        self._begin()
        with (
            training.reporter.task(self._stage.name, self._iterations, self._done) as task,
            stop_on_signal(patient=self._processes.count > 1) as stop,
        ):
            for seen in self._seen():
                self._step(seen, task)
                # The last step is judged and saved as the end of the stage, not of an epoch.
                if self._done == self._iterations:
                    break
                self._judge_epoch()
                self._save_if_asked(stop)
            self._end(stop)

    def _begin(self) -> None:
        self._stage.begin()
        if self._processes.is_first:
            # A stage without iterations is judged at iteration 0.
            reached = self._done or -1
            self._training.log.rewind(self._stage.name, reached)
            self._training.log.rewind(self._stage.name + HOLDOUT, reached)

    def _open_best_epoch(self) -> BestEpoch | None:
        training = self._training
        if training.best is None:
            return None
        configuration = training.config.of_weights().to_toml()
        return BestEpoch(
            training.best, training.network, self._stage.name, self._mine, configuration,
            self._processes,
        )  # fmt: skip

    def _seen(self) -> Iterator[Seen]:
        """What is left of the stage's batches; all of each where processes divide the units."""
        stage, processes, begun = self._stage, self._processes, self._done
        if begun == self._iterations:
            return
        batches, seed_name = self._training.batches, stage.seed_name
        # A GPU sees a batch sooner than features, which are many times an image's size, are sent.
        if stage.shares_batches or processes.count == 1 or self._training.device.type != "cpu":
            sharing = processes if stage.shares_batches else ALONE
            yield from map(self._see, batches(seed_name, self._iterations, begun, sharing))
            return
        # Whole batches, and no shares of each: convolutions round otherwise for fewer images.
        count, rank = processes.count, processes.rank
        own = iter(batches(seed_name, self._iterations, begun + rank, ALONE, count))
        for first in range(begun, self._iterations, count):
            mine = self._see(next(own)) if first + rank < self._iterations else None
            for turn in range(min(count, self._iterations - first)):
                yield processes.share(mine if turn == rank else None, turn)

    def _see(self, batch: Batch) -> Seen:
        images, labels, _ = batch
        device = self._training.device
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return self._stage.see(images, labels.to(device, non_blocking=True))

    def _step(self, seen: Seen, task: Task) -> None:
        """Do an iteration, and tell and log its losses."""
        losses = self._stage.step(seen, self._done)
        self._done += 1
        figures = _finite(losses, self._stage.name, self._done)
        settings, training = self._stage.settings, self._training.config.training
        rate = learning_rate(training, settings, settings.learning_rate, self._done - 1)
        task.advance(1, loss=_mean(figures), rate=rate)
        if self._done % _LOG_EVERY == 0 or self._done == self._iterations:
            self._log(figures, rate)

    def _log(self, figures: dict[str, float], rate: float) -> None:
        name = self._stage.name
        if not self._stage.shares_batches:
            figures = self._processes.merge(figures, self._exits)
        if self._processes.is_first:
            mean = _mean(figures)
            self._training.log.append(name, self._done, learning_rate=rate, mean=mean, **figures)

    def _judge_epoch(self) -> None:
        """At the end of an epoch, keep the weights of units that are better than before."""
        epoch = self._training.epoch
        if self._training.judge and self._best_epoch and epoch and self._done % epoch == 0:
            self._best_epoch.offer(self._done, self._judge())
            # Judging leaves the network in eval mode.
            self._stage.begin()

    def _judge(self) -> Mapping[str, float]:
        judge = self._training.judge
        if judge is None:
            return {}
        return judge(self._stage.name, self._done, self._exits, _exits(self._stage, self._mine))

    def _save_if_asked(self, stop: Stop) -> None:
        """Save where the clock or a signal asks any process to; a signal then ends them all."""
        # Agreed on: saving waits for all, but clocks and signals come to each at another time.
        request = self._processes.most(stop.signal or (_SAVE if self._saver.is_due() else 0))
        if request:
            self._saver.save(self._stage, self._done)
        if request > _SAVE:
            raise self._stopped(request)

    def _end(self, stop: Stop) -> None:
        miou = self._judge()
        if self._best_epoch:
            self._best_epoch.offer(self._done, miou)
            # This process's units alone; those of others come with the checkpoint, in `gather`.
            self._best_epoch.restore()
        self._stage.end()
        # Not before: a checkpoint of the last iteration is that of a finished stage.
        self._saver.save(self._stage, self._done)
        self._saver.gather()
        if request := self._processes.most(stop.signal or 0):
            raise self._stopped(request)

    def _stopped(self, number: int) -> InterruptedWork:
        return InterruptedWork(
            f"stopped by {signal.Signals(number).name} after iteration {self._done} of "
            f"{self._stage.name}. Run the same command again to go on from there.",
            number,
        )


def _exits(stage: Stage, names: Iterable[str]) -> list[str]:
    """The exits that units serve, each once."""
    return list(dict.fromkeys(e for name in names for e in stage.units[name].exits))


def _mean(figures: Mapping[str, float]) -> float:
    """0 where there are none: a process may have no exits to train."""
    return sum(figures.values()) / max(len(figures), 1)


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
