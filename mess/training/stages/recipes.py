"""Training schemes as recipes over the stages: the papers' and what they compare with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mess.compute.processes import ALONE, Processes, divided
from mess.config import Config
from mess.errors import ConfigError
from mess.networks.candidates import Candidate
from mess.networks.network import OverprovisionedNetwork
from mess.training.stage import Stage
from mess.training.stages import ExitAwarePretraining, ExitTraining, JointTraining


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the network is trained.

    pretraining: of the backbone before its exits, "exit-aware" (MESS paper, Eq. 2) or "plain"; or
        "joint", everything at once and no second stage.
    loss: what the exits learn from, a name of `mess.training.losses.exit_loss`.
    keep: weights of the last iteration, or of the best epoch on the holdout.
    """

    pretraining: Literal["exit-aware", "plain", "joint"]
    loss: str
    keep: Literal["last", "best"] = "last"


RECIPES = {
    "two-stage": Recipe(pretraining="exit-aware", loss="pfd"),
    "kd": Recipe(pretraining="exit-aware", loss="kd"),
    "self-distill": Recipe(pretraining="exit-aware", loss="self-distill"),
    "frozen": Recipe(pretraining="plain", loss="ce"),
    "e2e": Recipe(pretraining="joint", loss="ce"),
    "branches": Recipe(pretraining="joint", loss="lovasz", keep="best"),
}
"""By `training.scheme`: MESS with the losses of its Table 6, the baselines of Table 5, and
BranDeepLabV3's training of branches."""


def keeps_best(config: Config) -> bool:
    """Whether the best epoch counts; raises ConfigError where nothing is held out to tell it."""
    training = config.training
    best = (training.keep or RECIPES[training.scheme].keep) == "best"
    if best and not config.data.holdout:
        raise ConfigError(
            "the best epoch is told on held-out images, and data.holdout is 0. Hold some out, such "
            'as data.holdout = 0.1, or set training.keep = "last".'
        )
    return best


def stages_of(
    network: OverprovisionedNetwork,
    config: Config,
    rows: Iterable[Candidate],
    num_classes: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> list[Stage]:
    """The stages of the configured scheme, in order."""
    rows = list(rows)
    recipe = RECIPES[config.training.scheme]
    _require_early_heads(config, recipe)
    _require_of_use(config, recipe)
    loss = config.training.loss or recipe.loss
    if recipe.pretraining == "joint":
        return [JointTraining(network, config, num_classes, device, loss=loss, processes=processes)]
    channels = {row.point: row.channels for row in rows}
    early = recipe.pretraining == "exit-aware"
    pretraining = ExitAwarePretraining(
        network, config, channels, num_classes, device, early=early, processes=processes
    )
    costs = _step_costs(rows, config, num_classes)
    exit_trainings = [
        ExitTraining(
            network, config, num_classes, device,
            loss=loss, exits=exits, name=name, costs=costs, processes=processes,
        )
        for name, exits in _exit_groups(rows, network, config.training.stage2.groups).items()
    ]  # fmt: skip
    return [pretraining, *exit_trainings]


_NOT_USED: Mapping[str, tuple[str, ...]] = {
    "exit-aware": (),
    "plain": ("early_distillation",),
    "joint": ("early_distillation", "lovasz"),
}
"""Settings of stage 1 by the pretraining that has no use for them."""


def _require_of_use(config: Config, recipe: Recipe) -> None:
    """That nothing is set that the scheme would pass over without a word."""
    for name in _NOT_USED[recipe.pretraining]:
        if value := getattr(config.training.stage1, name):
            raise ConfigError(
                f"training.stage1.{name} = {value:g} is of no use to training.scheme = "
                f"{config.training.scheme!r}. Set it to 0, or take another scheme."
            )


def _require_early_heads(config: Config, recipe: Recipe) -> None:
    """Where exits are to start from the early heads of stage 1, that it trains some."""
    training = config.training
    if training.stage2.start != "stage1":
        if recipe.pretraining != "joint" and not training.stage2.iterations:
            raise ConfigError(
                "training.stage2.iterations = 0 would leave exits as their seed made them. Train "
                'them, or set training.stage2.start = "stage1" for those of stage 1.'
            )
        return
    if recipe.pretraining != "exit-aware":
        reason = f"training.scheme = {training.scheme!r} trains none"
    elif not training.stage1.iterations:
        reason = "stage 1 has no iterations, and another run's are not in its weights"
    else:
        return
    raise ConfigError(
        f'training.stage2.start = "stage1" is about the early heads of stage 1, and {reason}. Set '
        'training.stage2.start = "seed".'
    )


def _exit_groups(
    rows: Sequence[Candidate], network: OverprovisionedNetwork, groups: int
) -> dict[str, list[str]]:
    """The exits of each part of stage 2 by its name; groups exist to divide their memory."""
    params = {row.exit_id: row.params for row in rows if row.exit_id in network.exits}
    name = ExitTraining.seed_name
    return {
        name if groups == 1 else f"{name}-{number}of{groups}": exits
        for number, exits in enumerate(divided(params, groups), start=1)
        if exits
    }


_MACS_PER_LOGIT = 300
"""Multiply-adds of an exit that take about as long as one upsampled logit of its loss on a CPU."""


def _step_costs(rows: Sequence[Candidate], config: Config, num_classes: int) -> dict[str, float]:
    """About how long a step of each exit takes, in multiply-adds.

    With its loss: divided by their MACs alone, a process with many small exits would be the last.
    """
    height, width = config.data.size
    logits = height * width * num_classes / config.training.stage2.pixel_stride**2
    return {row.exit_id: row.exit_macs + _MACS_PER_LOGIT * logits for row in rows}
