"""Stage 1 of MESS training: backbone and final head (MESS paper, §4.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mess.common.seeds import derive
from mess.compute.processes import ALONE, Processes
from mess.config import Config, Stage1Config
from mess.exits import FINAL, ExitArchitecture
from mess.networks.heads import MIN_HEAD_CHANNELS, SkipExit
from mess.networks.network import OverprovisionedNetwork, fast_layout, seeded_exit
from mess.training.checkpoint import under
from mess.training.losses import LovaszSoftmax, Mixture, SoftTarget, cross_entropy
from mess.training.stage import Seen, TrainedUnit
from mess.training.stages.data_parallel import DataParallel
from mess.training.stages.exits import pixel_grid
from mess.training.stages.optimiser import ScheduledOptimiser, class_weights, precision


class ExitAwarePretraining:
    """Stage 1, end to end: the backbone, its head, and one plain FCN head an iteration (Eq. 2).

    The FCN heads of the early points serve this stage; with `stage2.start = "stage1"` plain exits
    start from them. With `early` false the backbone is trained without any. Processes share each
    batch.
    """

    name = seed_name = "stage1"
    shares_batches = True
    units: Mapping[str, TrainedUnit] = {"backbone": TrainedUnit(("backbone.",), (FINAL,))}
    mine = tuple(units)

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        channels: Mapping[int, int],
        num_classes: int,
        device: torch.device,
        *,
        early: bool = True,
        processes: Processes = ALONE,
    ) -> None:
        self.settings: Stage1Config = config.training.stage1
        self._network = network
        self._config = config
        self._class_weights = class_weights(config, num_classes, device)
        # The last point has the network's own head; one too narrow for a head has no exits either.
        points = sorted(channels)[:-1] if early else []
        points = [point for point in points if channels[point] >= MIN_HEAD_CHANNELS]
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
        body = network.backbone.blocks.parameters()
        rate = self.settings.learning_rate
        head_rate = self.settings.head_learning_rate or rate
        self._optimiser = ScheduledOptimiser(
            [(body, rate), (heads, head_rate)], config.training, self.settings
        )
        self._together = DataParallel(processes, config, self._optimiser)

    def begin(self) -> None:
        self._network.backbone.train().requires_grad_(True)
        self._heads.train()
        self._together.begin(self._network.backbone, self._heads)

    def see(self, images: Tensor, labels: Tensor) -> Seen:
        return {"images": images, "labels": labels}

    def step(self, seen: Seen, iteration: int) -> dict[str, Tensor]:
        images, labels = seen["images"], seen["labels"]
        self._together.seed(derive(self._config.seed, self.name, iteration))
        with precision(self.settings, images.device):
            features, names = self._network.features(images), self._network.point_names
            logits = {FINAL: self._network.logits(FINAL, features)}
            heads = list(self._heads)
            for number in active_exits(self.settings.exit_dropout, iteration, len(heads)):
                name = heads[number - 1]
                logits[name] = self._heads[name](features[names[_point(name) - 1]])
        share = self._together.share(labels)
        logits = {name: values.float() for name, values in logits.items()}
        losses = {
            name: share * self._loss(name, values, labels, logits[FINAL])
            for name, values in logits.items()
        }
        if self.settings.lovasz:
            # Like all that is no mean over pixels, each process's own of its part of the batch.
            term = LovaszSoftmax(labels, pixel_grid(self._config, iteration))
            losses[FINAL] = losses[FINAL] + share * self.settings.lovasz * term.loss(logits[FINAL])
        torch.stack(list(losses.values())).sum().backward()
        return self._together.step(iteration, losses)

    def _loss(self, name: str, logits: Tensor, labels: Tensor, final: Tensor) -> Tensor:
        weight = self.settings.early_distillation
        if name == FINAL or not weight:
            return cross_entropy(logits, labels, self._class_weights)
        mix = Mixture(cross_entropy=1.0, distillation=weight)
        return SoftTarget(final, labels, mix, class_weights=self._class_weights).loss(logits)

    def end(self) -> None:
        self._together.end()
        if self._config.training.stage2.start == "stage1":
            self._start_exits()

    def _start_exits(self) -> None:
        """Give plain exits the weights of the early heads, which are the same network."""
        for name, head in self._heads.items():
            point = _point(name)
            for architecture in (ExitArchitecture(), ExitArchitecture(skip=True)):
                exit_id = architecture.exit_id(point)
                if exit_id in self._network.exits:
                    exit_ = self._network.exits[exit_id]
                    plain = exit_.exit if isinstance(exit_, SkipExit) else exit_
                    plain.load_state_dict(head.state_dict())

    def state(self) -> dict[str, Tensor]:
        heads = {f"heads.{name}": tensor for name, tensor in self._heads.state_dict().items()}
        return heads | self._optimiser.momentum("momentum")

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._heads.load_state_dict(under(state, "heads."))
        self._optimiser.restore("momentum", state)


def _point(name: str) -> int:
    """The exit point (1-based) of an early head."""
    return int(name.removeprefix("p"))


def active_exits(exit_dropout: str, iteration: int, early: int) -> list[int]:
    """Which of `early` exits (1-based) iteration `iteration` (0-based) of stage 1 trains.

    "round-robin" is the text of §4.3, one exit in turn; "modulo" is Eq. 2 to the letter, under
    which exit i takes part whenever i divides the iteration's number and exit 1 always does.
    """
    if early == 0:
        return []
    if exit_dropout == "round-robin":
        return [iteration % early + 1]
    return [number for number in range(1, early + 1) if (iteration + 1) % number == 0]
