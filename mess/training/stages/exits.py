"""Stage 2 of MESS training: candidate exits on the frozen backbone (MESS paper, §4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mess.common.seeds import derive
from mess.compute.processes import ALONE, Processes
from mess.config import Config
from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork, frozen
from mess.training.checkpoint import under
from mess.training.losses import ExitLoss, PixelGrid, exit_loss
from mess.training.stage import Seen, TrainedUnit
from mess.training.stages.optimiser import ScheduledOptimiser, class_weights, precision

_FEATURES = "features."
"""Before the names of features, in what is seen of a batch."""


class ExitTraining:
    """Stage 2, frozen backbone: candidate exits from the same features, by `loss`.

    Exits share nothing but features, which no step changes, so each one's forward, backward and
    step is done before the next begins: the memory in use is one exit's. For the same reason
    processes divide the exits among them, and groups of exits can be trained one after another:
    every exit ends with the same weights.
    """

    seed_name = "stage2"
    shares_batches = False

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        num_classes: int,
        device: torch.device,
        *,
        loss: str,
        exits: Sequence[str] | None = None,
        name: str = seed_name,
        costs: Mapping[str, float] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """`exits` are all where they are not given, `costs` decide how processes divide them."""
        self.name = name
        self.settings = config.training.stage2
        exits = tuple(network.exits) if exits is None else exits
        self.units = {exit_id: TrainedUnit((f"exits.{exit_id}.",), (exit_id,)) for exit_id in exits}
        costs = costs or {}
        self.mine = processes.share_of({exit_id: costs.get(exit_id, 1.0) for exit_id in exits})
        self._network = network
        self._config = config
        self._loss = loss
        self._device = device
        self._class_weights = class_weights(config, num_classes, device)
        self._optimisers = {
            exit_id: ScheduledOptimiser(
                [(network.exits[exit_id].parameters(), self.settings.learning_rate)],
                config.training,
                self.settings,
            )
            for exit_id in self.mine
        }

    def begin(self) -> None:
        frozen(self._network.backbone)
        # Exits are on the device during their stage alone: groups are there to bound its memory.
        for exit_id, optimiser in self._optimisers.items():
            self._network.exits[exit_id].to(self._device).train()
            optimiser.prepare()

    def see(self, images: Tensor, labels: Tensor) -> Seen:
        """The features that exits read, and the logits of the final exit, their teacher."""
        # Not in inference mode, whose tensors autograd refuses to save for the backward of exits.
        with torch.no_grad(), precision(self.settings, images.device):
            features = self._network.features(images)
            teacher = self._network.logits(FINAL, features).float()
        named = {_FEATURES + name: each for name, each in features.items()}
        return {**named, "teacher": teacher, "labels": labels}

    def step(self, seen: Seen, iteration: int) -> dict[str, Tensor]:
        features, labels = under(seen, _FEATURES), seen["labels"]
        amp = precision(self.settings, labels.device)
        target = batch_loss(
            self._loss, seen["teacher"], labels, iteration, self._config, self._class_weights
        )
        losses = {}
        # Each draws its dropout from a seed of its own, whichever process trains it after whatever.
        for exit_id, optimiser in self._optimisers.items():
            torch.manual_seed(derive(self._config.seed, self.seed_name, iteration, exit_id))
            with amp:
                logits = self._network.logits(exit_id, features)
            loss = target.loss(logits.float())
            loss.backward()
            optimiser.step(iteration)
            losses[exit_id] = loss.detach()
        return losses

    def end(self) -> None:
        for exit_id, optimiser in self._optimisers.items():
            optimiser.forget()
            self._network.exits[exit_id].cpu()

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for exit_id, optimiser in self._optimisers.items():
            state |= optimiser.momentum(f"momentum.{exit_id}")
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for exit_id, optimiser in self._optimisers.items():
            # Comes before `begin`, and momentum is made on its parameter's device.
            self._network.exits[exit_id].to(self._device)
            optimiser.restore(f"momentum.{exit_id}", state)


def batch_loss(
    loss: str,
    teacher: Tensor,
    labels: Tensor,
    iteration: int,
    config: Config,
    class_weights: Tensor | None,
) -> ExitLoss:
    """The exits' loss of a batch, on the pixels of the iteration's grid."""
    return exit_loss(
        loss,
        teacher,
        labels,
        alpha=config.training.stage2.alpha,
        grid=pixel_grid(config, iteration),
        class_weights=class_weights,
    )


def pixel_grid(config: Config, iteration: int) -> PixelGrid:
    """The label pixels that exits learn from in an iteration."""
    stride = config.training.stage2.pixel_stride
    # By the iteration, so that in time exits learn from every pixel.
    offset = derive(config.seed, "grid", iteration) % (stride * stride)
    return PixelGrid(stride, offset // stride, offset % stride)
