"""The two stages of MESS training (MESS paper, §4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mess.candidates import Candidate
from mess.config import Config, Stage1Config, StageConfig
from mess.exits import FINAL, ExitArchitecture
from mess.losses import DistillationTarget, PixelGrid, cross_entropy
from mess.network import OverprovisionedNetwork, fast_layout, frozen, seeded_exit
from mess.seeds import derive
from mess.training import Stage, poly_rate


def mess_stages(
    network: OverprovisionedNetwork,
    config: Config,
    rows: Iterable[Candidate],
    num_classes: int,
    device: torch.device,
) -> list[Stage]:
    """The stages of `training.scheme = "two-stage"`, in order."""
    channels = {row.point: row.channels for row in rows}
    return [
        ExitAwarePretraining(network, config, channels, num_classes, device),
        ExitTraining(network, config),
    ]


class ExitAwarePretraining:
    """Stage 1, end to end: the backbone, its head, and one plain FCN head an iteration (Eq. 2).

    The FCN heads of the early points serve this stage alone; they are not candidate exits.
    """

    name = "stage1"

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        channels: Mapping[int, int],
        num_classes: int,
        device: torch.device,
    ) -> None:
        self.settings: Stage1Config = config.training.stage1
        self._network = network
        self._config = config
        early = sorted(channels)[:-1]
        self._heads = nn.ModuleDict(
            {
                f"p{point}": seeded_exit(
                    config, f"stage1-p{point}", ExitArchitecture(), channels[point], num_classes
                )
                for point in early
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
        maps = self._network.features(images)
        losses = {FINAL: cross_entropy(self._network.backbone.head(maps[-1]), labels)}
        for point in active_exits(self.settings.exit_dropout, iteration, len(maps)):
            name = f"p{point}"
            losses[name] = cross_entropy(self._heads[name](maps[point - 1]), labels)
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
    """Stage 2, frozen backbone: all candidate exits from the same features, by Eq. 3.

    Exits share nothing, so each one's forward, backward and step is done before the next begins:
    the memory in use is one exit's.
    """

    name = "stage2"

    def __init__(self, network: OverprovisionedNetwork, config: Config) -> None:
        self.settings = config.training.stage2
        self._network = network
        self._config = config
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
        with torch.no_grad():
            maps = self._network.features(images)
            teacher = self._network.backbone.head(maps[-1])
        grid = self._grid(iteration)
        target = DistillationTarget(teacher, labels, self.settings.alpha, grid)
        losses = {}
        for exit_id, optimiser in self._optimisers.items():
            torch.manual_seed(derive(self._config.seed, self.name, iteration, exit_id))
            _set_rate(optimiser, self.settings, iteration, self._config)
            features = maps[self._network.point(exit_id) - 1]
            loss = target.loss(self._network.exits[exit_id](features))
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

    def _grid(self, iteration: int) -> PixelGrid:
        stride = self.settings.pixel_stride
        offset = derive(self._config.seed, "grid", iteration) % (stride * stride)
        return PixelGrid(stride, offset // stride, offset % stride)


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
