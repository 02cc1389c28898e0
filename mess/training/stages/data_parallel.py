"""Training one network on batches that several processes share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mess.common.metrics import VOID
from mess.common.seeds import derive
from mess.compute.processes import Processes
from mess.config import Config
from mess.errors import ConfigError
from mess.training.shared_batch_norm import normalise_apart, normalise_together
from mess.training.stages.optimiser import ScheduledOptimiser


class DataParallel:
    """A step on a whole batch, of which each process has a share.

    Losses are means over labelled pixels, so each process's counts by its share of them: then
    gradients add up to those of the whole batch. Batch normalisation uses the whole batch's
    statistics, or each process its own (`training.batch_norm`). Dropout draws differ from process
    to process.
    """

    def __init__(self, processes: Processes, config: Config, optimiser: ScheduledOptimiser) -> None:
        self._processes = processes
        self._global = config.training.batch_norm == "global"
        if not self._global and config.training.batch_size == processes.count > 1:
            raise ConfigError(
                f"{processes.count} processes with training.batch_size {processes.count} have one "
                "image each, too few to normalise. Start fewer processes, or set "
                'training.batch_norm = "global".'
            )
        self._optimiser = optimiser
        self._modules: tuple[nn.Module, ...] = ()

    def begin(self, *modules: nn.Module) -> None:
        """Prepare the modules that are trained."""
        self._modules = modules
        if self._processes.count > 1 and self._global:
            for module in modules:
                normalise_together(module, self._processes)

    def end(self) -> None:
        """Give the modules back as they were, statistics of the first process in all."""
        for module in self._modules:
            normalise_apart(module)
            for buffer in module.buffers():
                self._processes.share_first(buffer)

    def seed(self, seed: int) -> None:
        """Seed what this process draws in the step."""
        # The first draws what a process alone would.
        rank = self._processes.rank
        torch.manual_seed(derive(seed, "rank", rank) if rank else seed)

    def share(self, labels: Tensor) -> Tensor:
        """The share of the labelled pixels that is here; 1 in a process alone."""
        if self._processes.count == 1:
            return torch.ones((), device=labels.device)
        pixels = (labels != VOID).sum().to(torch.float32)
        # A copy: sums are made in place, and this process's own number is divided by them.
        return pixels / self._processes.sum(pixels.clone()).clamp(min=1)

    def step(self, iteration: int, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Step along the sum of the processes' gradients; their losses, summed too."""
        # A sum and no mean: `share` has weighed the losses already.
        self._processes.sum_gradients(self._optimiser.parameters())
        self._optimiser.step(iteration)
        values = self._processes.sum(torch.stack(list(losses.values())).detach())
        return dict(zip(losses, values, strict=True))
