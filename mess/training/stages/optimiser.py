"""What all stages share: SGD with a schedule, precision, class weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mess.config import Config, StageConfig
from mess.errors import ConfigError
from mess.training.schedule import learning_rate


class ScheduledSGD:
    """SGD over groups of parameters, each with its initial learning rate, under one schedule."""

    def __init__(
        self, groups: Iterable[tuple[Iterable[nn.Parameter], float]], config: Config
    ) -> None:
        training = config.training
        self._training = training
        self._optimiser = torch.optim.SGD(
            [{"params": list(parameters), "scale": rate} for parameters, rate in groups],
            lr=0.0,  # set before each step
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )

    def prepare(self) -> None:
        """Take the memory of the momentum now.

        Taken in the first steps, it would lie between what they free, and hold that in memory.
        """
        # With zeros, and no dampening, torch's first step is what it would be: momentum = gradient.
        # What is there stays: stages begin again after each epoch that is judged.
        for parameter in self.parameters():
            if "momentum_buffer" not in (state := self._optimiser.state[parameter]):
                state["momentum_buffer"] = torch.zeros_like(parameter)

    def step(self, settings: StageConfig, iteration: int) -> None:
        """Step along the gradients at the rate of `iteration` (0-based), and clear them."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self._training, settings, group["scale"], iteration)
        self._optimiser.step()
        # To None, not 0: a head without a part in an iteration keeps weights and momentum.
        self._optimiser.zero_grad()

    def parameters(self) -> list[Tensor]:
        return [p for group in self._optimiser.param_groups for p in group["params"]]

    def momentum(self, prefix: str) -> dict[str, Tensor]:
        """The momentum of each parameter that has one, named by `prefix` and position."""
        buffers = {}
        for index, parameter in enumerate(self.parameters()):
            buffer = self._optimiser.state[parameter].get("momentum_buffer")
            if buffer is not None:
                buffers[f"{prefix}.{index}"] = buffer
        return buffers

    def restore(self, prefix: str, state: Mapping[str, Tensor]) -> None:
        """Take back what `momentum` gave."""
        self.prepare()
        for index, parameter in enumerate(self.parameters()):
            buffer = state.get(f"{prefix}.{index}")
            if buffer is not None:
                # Copied, to keep the parameter's device and layout; a checkpoint has neither.
                self._optimiser.state[parameter]["momentum_buffer"].copy_(buffer)

    def forget(self) -> None:
        """Give the memory of the momentum back."""
        self._optimiser.state.clear()


def precision(settings: StageConfig, device: torch.device) -> torch.autocast:
    """A context for forward passes in the stage's precision; its results may be of that type."""
    # bfloat16 has the exponents of float32: gradients need no scaling, as float16's would. Weights,
    # momentum and losses stay float32.
    reduced = settings.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=reduced)


def class_weights(config: Config, num_classes: int, device: torch.device) -> Tensor | None:
    """`training.class_weights` (C,) on the device; raises ConfigError unless one a class."""
    weights = config.training.class_weights
    if weights is None:
        return None
    if len(weights) != num_classes:
        raise ConfigError(
            f"training.class_weights has {len(weights)} values; the data has {num_classes} classes."
        )
    return torch.tensor(weights, device=device)
