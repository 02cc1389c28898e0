"""The stages that recipes are made of: MESS training's two (MESS paper, §4.3), and one for all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mess.best_epoch import Unit
from mess.config import Config, Stage1Config, StageConfig
from mess.errors import ConfigError
from mess.exits import FINAL, ExitArchitecture
from mess.losses import ExitLoss, PixelGrid, cross_entropy, exit_loss
from mess.network import OverprovisionedNetwork, fast_layout, frozen, seeded_exit
from mess.seeds import derive
from mess.training import poly_rate


class ExitAwarePretraining:
    """Stage 1, end to end: the backbone, its head, and one plain FCN head an iteration (Eq. 2).

    The FCN heads of the early points serve this stage alone; they are not candidate exits. With
    `early` false the backbone is trained without any.
    """

    name = "stage1"
    units: Mapping[str, Unit] = {"backbone": Unit(("backbone.",), (FINAL,))}

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        channels: Mapping[int, int],
        num_classes: int,
        device: torch.device,
        *,
        early: bool = True,
    ) -> None:
        self.settings: Stage1Config = config.training.stage1
        self._network = network
        self._config = config
        self._class_weights = class_weights(config, num_classes, device)
        points = sorted(channels)[:-1] if early else []
        self._heads = nn.ModuleDict(
            {
                f"p{point}": seeded_exit(
                    config, f"stage1-p{point}", ExitArchitecture(), channels[point], num_classes
                )
                for point in points
            }
        ).to(device)
        fast_layout(self._heads)
        heads = [*network.backbone.head.parameters(), *self._heads.parameters()]
        body = list(network.backbone.blocks.parameters())
        rate = self.settings.learning_rate
        self._optimiser = _sgd(
            [
                {"params": body, "scale": rate},
                {"params": heads, "scale": self.settings.head_learning_rate or rate},
            ],
            config,
        )

    def begin(self) -> None:
        self._network.backbone.train().requires_grad_(True)
        self._heads.train()

    def step(self, images: Tensor, labels: Tensor, iteration: int) -> dict[str, Tensor]:
        torch.manual_seed(derive(self._config.seed, self.name, iteration))
        _set_rate(self._optimiser, self.settings, iteration, self._config)
        with precision(self.settings, images.device):
            maps = self._network.features(images)
            logits = {FINAL: self._network.backbone.head(maps[-1])}
            points = len(maps) if self._heads else 1
            for point in active_exits(self.settings.exit_dropout, iteration, points):
                logits[f"p{point}"] = self._heads[f"p{point}"](maps[point - 1])
        losses = {
            name: cross_entropy(values.float(), labels, self._class_weights)
            for name, values in logits.items()
        }
        self._optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self._optimiser.step()
        return losses

    def state(self) -> dict[str, Tensor]:
        heads = {f"heads.{name}": tensor for name, tensor in self._heads.state_dict().items()}
        return heads | _momentum(self._optimiser, "momentum")

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._heads.load_state_dict(
            {
                name.removeprefix("heads."): tensor
                for name, tensor in state.items()
                if name.startswith("heads.")
            }
        )
        _restore_momentum(self._optimiser, "momentum", state)


class ExitTraining:
    """Stage 2, frozen backbone: all candidate exits from the same features, by `loss`.

    Exits share nothing, so each one's forward, backward and step is done before the next begins:
    the memory in use is one exit's.
    """

    name = "stage2"

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        num_classes: int,
        device: torch.device,
        *,
        loss: str,
    ) -> None:
        self.settings = config.training.stage2
        self.units = {
            exit_id: Unit((f"exits.{exit_id}.",), (exit_id,)) for exit_id in network.exits
        }
        self._network = network
        self._config = config
        self._loss = loss
        self._class_weights = class_weights(config, num_classes, device)
        self._optimisers = {
            exit_id: _sgd(
                [{"params": list(module.parameters()), "scale": self.settings.learning_rate}],
                config,
            )
            for exit_id, module in network.exits.items()
        }

    def begin(self) -> None:
        frozen(self._network.backbone)
        self._network.exits.train()

    def step(self, images: Tensor, labels: Tensor, iteration: int) -> dict[str, Tensor]:
        amp = precision(self.settings, images.device)
        with torch.no_grad(), amp:
            maps = self._network.features(images)
            teacher = self._network.backbone.head(maps[-1]).float()
        target = _target(self._loss, teacher, labels, iteration, self._config, self._class_weights)
        losses = {}
        for exit_id, optimiser in self._optimisers.items():
            torch.manual_seed(derive(self._config.seed, self.name, iteration, exit_id))
            _set_rate(optimiser, self.settings, iteration, self._config)
            with amp:
                logits = self._network.exits[exit_id](maps[self._network.point(exit_id) - 1])
            loss = target.loss(logits.float())
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses[exit_id] = loss.detach()
        return losses

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for exit_id, optimiser in self._optimisers.items():
            state |= _momentum(optimiser, f"momentum.{exit_id}")
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for exit_id, optimiser in self._optimisers.items():
            _restore_momentum(optimiser, f"momentum.{exit_id}", state)


class JointTraining:
    """Backbone, head and all candidate exits at once, by the sum of their losses.

    Each exit's graph is freed before the next one's is made: gradients gather at the feature maps
    and go through the backbone together, once.
    """

    name = "joint"

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        num_classes: int,
        device: torch.device,
        *,
        loss: str,
    ) -> None:
        self.settings: Stage1Config = config.training.stage1
        self.units = {"network": Unit(("backbone.", "exits."), (*network.exits, FINAL))}
        self._network = network
        self._config = config
        self._loss = loss
        self._class_weights = class_weights(config, num_classes, device)
        rate = self.settings.learning_rate
        head_rate = self.settings.head_learning_rate or rate
        exit_rate = self.settings.exit_learning_rate or head_rate
        self._optimiser = _sgd(
            [
                {"params": list(network.backbone.blocks.parameters()), "scale": rate},
                {"params": list(network.backbone.head.parameters()), "scale": head_rate},
                {"params": list(network.exits.parameters()), "scale": exit_rate},
            ],
            config,
        )

    def begin(self) -> None:
        self._network.backbone.train().requires_grad_(True)
        self._network.exits.train()

    def step(self, images: Tensor, labels: Tensor, iteration: int) -> dict[str, Tensor]:
        torch.manual_seed(derive(self._config.seed, self.name, iteration))
        _set_rate(self._optimiser, self.settings, iteration, self._config)
        self._optimiser.zero_grad()
        amp = precision(self.settings, images.device)
        with amp:
            maps = self._network.features(images)
            leaves = [features.detach().requires_grad_() for features in maps]
            final = self._network.backbone.head(leaves[-1]).float()
        target = _target(self._loss, final, labels, iteration, self._config, self._class_weights)
        losses = {FINAL: self._backward(target.loss(final))}
        for exit_id, module in self._network.exits.items():
            torch.manual_seed(derive(self._config.seed, self.name, iteration, exit_id))
            with amp:
                logits = module(leaves[self._network.point(exit_id) - 1])
            losses[exit_id] = self._backward(target.loss(logits.float()))
        # A point whose exits were all left out has no gradient of its own.
        reached = [point for point, leaf in enumerate(leaves) if leaf.grad is not None]
        torch.autograd.backward(
            [maps[point] for point in reached], [leaves[point].grad for point in reached]
        )
        self._optimiser.step()
        return losses

    def state(self) -> dict[str, Tensor]:
        return _momentum(self._optimiser, "momentum")

    def restore(self, state: Mapping[str, Tensor]) -> None:
        _restore_momentum(self._optimiser, "momentum", state)

    @staticmethod
    def _backward(loss: Tensor) -> Tensor:
        loss.backward()
        return loss.detach()


def precision(settings: StageConfig, device: torch.device) -> torch.autocast:
    """A context for forward passes in the stage's precision; its results may be of that type."""
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


def active_exits(exit_dropout: str, iteration: int, points: int) -> list[int]:
    """Early exits (1-based) that iteration `iteration` (0-based) of stage 1 trains.

    "round-robin" is the text of §4.3, one exit in turn; "modulo" is Eq. 2 to the letter, under
    which exit i takes part whenever i divides the iteration's number and exit 1 always does.
    """
    early = points - 1
    if early == 0:
        return []
    if exit_dropout == "round-robin":
        return [iteration % early + 1]
    return [point for point in range(1, points) if (iteration + 1) % point == 0]


def _target(
    loss: str,
    teacher: Tensor,
    labels: Tensor,
    iteration: int,
    config: Config,
    class_weights: Tensor | None,
) -> ExitLoss:
    """The exits' loss of a batch, on the pixels of the iteration's grid."""
    settings = config.training.stage2
    stride = settings.pixel_stride
    offset = derive(config.seed, "grid", iteration) % (stride * stride)
    grid = PixelGrid(stride, offset // stride, offset % stride)
    return exit_loss(
        loss, teacher, labels, alpha=settings.alpha, grid=grid, class_weights=class_weights
    )


def _sgd(groups: list[dict[str, object]], config: Config) -> torch.optim.SGD:
    training = config.training
    # The rate is set before each step; a group's "scale" is its initial rate.
    return torch.optim.SGD(
        groups, lr=0.0, momentum=training.momentum, weight_decay=training.weight_decay
    )


def _set_rate(
    optimiser: torch.optim.SGD, settings: StageConfig, iteration: int, config: Config
) -> None:
    share = poly_rate(settings, iteration, config.training.poly_power)
    for group in optimiser.param_groups:
        group["lr"] = group["scale"] * share


def _parameters(optimiser: torch.optim.SGD) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _momentum(optimiser: torch.optim.SGD, prefix: str) -> dict[str, Tensor]:
    buffers = {}
    for index, parameter in enumerate(_parameters(optimiser)):
        buffer = optimiser.state[parameter].get("momentum_buffer")
        if buffer is not None:
            buffers[f"{prefix}.{index}"] = buffer
    return buffers


def _restore_momentum(optimiser: torch.optim.SGD, prefix: str, state: Mapping[str, Tensor]) -> None:
    for index, parameter in enumerate(_parameters(optimiser)):
        buffer = state.get(f"{prefix}.{index}")
        if buffer is not None:
            restored = torch.empty_like(parameter).copy_(buffer)
            optimiser.state[parameter]["momentum_buffer"] = restored
