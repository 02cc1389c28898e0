"""What all stages share: an optimiser with a schedule, precision, class weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mess.config import Config, StageConfig, TrainingConfig
from mess.errors import ConfigError
from mess.training.schedule import learning_rate

_STATE = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq", "step")}
"""What torch's optimisers remember of a parameter."""


class ScheduledOptimiser:
    """An optimiser over groups of parameters, each with its initial rate, under one schedule.

    It is the one of the stage: SGD with momentum, or AdamW (Loshchilov and Hutter, ICLR 2019).
    """

    def __init__(
        self,
        groups: Iterable[tuple[Iterable[nn.Parameter], float]],
        training: TrainingConfig,
        stage: StageConfig,
    ) -> None:
        self._training, self._stage = training, stage
        parts = [{"params": list(parameters), "scale": rate} for parameters, rate in groups]
        # The rate is set before each step.
        decay = training.weight_decay
        self._optimiser: torch.optim.Optimizer
        if stage.optimiser == "adamw":
            self._optimiser = torch.optim.AdamW(parts, lr=0.0, weight_decay=decay)
        else:
            self._optimiser = torch.optim.SGD(
                parts, lr=0.0, momentum=training.momentum, weight_decay=decay
            )

    def prepare(self) -> None:
        """Take the memory of the momentum now.

        Taken in the first steps, it would lie between what they free, and hold that in memory.
        """
        # With zeros, and no dampening, torch's first step is what it would be: momentum = gradient.
        # What is there stays: stages begin again after each epoch that is judged.
        for parameter in self.parameters():
            state = self._optimiser.state[parameter]
            for key in _STATE[self._stage.optimiser]:
                if key not in state:
                    # torch counts steps on the CPU, in float32.
                    state[key] = torch.zeros(()) if key == "step" else torch.zeros_like(parameter)

    def step(self, iteration: int) -> None:
        """Step along the gradients at the rate of `iteration` (0-based), and clear them."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self._training, self._stage, group["scale"], iteration)
        self._optimiser.step()
        # To None, not 0: a head without a part in an iteration keeps weights and momentum.
        self._optimiser.zero_grad()

    def parameters(self) -> list[Tensor]:
        return [p for group in self._optimiser.param_groups for p in group["params"]]

    def momentum(self, prefix: str) -> dict[str, Tensor]:
        """What is remembered of each parameter, named by `prefix`, position and, if any, kind."""
        found = {}
        for index, parameter in enumerate(self.parameters()):
            state = self._optimiser.state[parameter]
            for key in _STATE[self._stage.optimiser]:
                # SGD without momentum has a buffer that is None.
                if state.get(key) is not None:
                    found[self._name(prefix, index, key)] = state[key]
        return found

    def restore(self, prefix: str, state: Mapping[str, Tensor]) -> None:
        """Take back what `momentum` gave."""
        self.prepare()
        for index, parameter in enumerate(self.parameters()):
            for key in _STATE[self._stage.optimiser]:
                remembered = state.get(self._name(prefix, index, key))
                if remembered is not None:
                    # Copied, to keep the parameter's device and layout; a checkpoint has neither.
                    self._optimiser.state[parameter][key].copy_(remembered)

    def forget(self) -> None:
        """Give the memory of the momentum back."""
        self._optimiser.state.clear()

    def _name(self, prefix: str, index: int, key: str) -> str:
        alone = len(_STATE[self._stage.optimiser]) == 1
        return f"{prefix}.{index}" if alone else f"{prefix}.{index}.{key}"


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
