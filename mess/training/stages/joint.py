"""Everything at once: the E2E baseline of the MESS paper, and BranDeepLabV3's branches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mess.common.seeds import derive
from mess.compute.processes import ALONE, Processes
from mess.config import Config, Stage1Config
from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork
from mess.training.losses import ExitLoss
from mess.training.stage import Seen, TrainedUnit
from mess.training.stages.data_parallel import DataParallel
from mess.training.stages.exits import batch_loss, pixel_grid
from mess.training.stages.optimiser import ScheduledOptimiser, class_weights, precision


class JointTraining:
    """Backbone, head and all candidate exits at once, by the sum of their losses.

    The exits learn by `loss`, with the final exit as the teacher where it has one; the final exit
    itself always learns from labels.

    Each exit's graph is freed before the next one's is made: gradients gather at the feature maps
    and go through the backbone together, once. Processes share each batch; Lovász-Softmax, which
    is no mean over pixels, is then each process's own, weighed by its labelled pixels.
    """

    name = seed_name = "joint"
    shares_batches = True

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        num_classes: int,
        device: torch.device,
        *,
        loss: str,
        processes: Processes = ALONE,
    ) -> None:
        self.settings: Stage1Config = config.training.stage1
        self.units = {"network": TrainedUnit(("backbone.", "exits."), (*network.exits, FINAL))}
        self.mine = tuple(self.units)
        self._network = network
        self._config = config
        self._loss = loss
        self._device = device
        self._class_weights = class_weights(config, num_classes, device)
        rate = self.settings.learning_rate
        head_rate = self.settings.head_learning_rate or rate
        exit_rate = self.settings.exit_learning_rate or head_rate
        self._optimiser = ScheduledOptimiser(
            [
                (network.backbone.blocks.parameters(), rate),
                (network.backbone.head.parameters(), head_rate),
                (network.exits.parameters(), exit_rate),
            ],
            config.training,
            self.settings,
        )
        self._together = DataParallel(processes, config, self._optimiser)

    def begin(self) -> None:
        self._network.backbone.train().requires_grad_(True)
        self._network.exits.to(self._device).train()
        self._together.begin(self._network)

    def see(self, images: Tensor, labels: Tensor) -> Seen:
        return {"images": images, "labels": labels}

    def step(self, seen: Seen, iteration: int) -> dict[str, Tensor]:
        images, labels = seen["images"], seen["labels"]
        seed = derive(self._config.seed, self.name, iteration)
        self._together.seed(seed)
        amp = precision(self.settings, images.device)
        with amp:
            features = self._network.features(images)
            leaves = {name: each.detach().requires_grad_() for name, each in features.items()}
            final = self._network.logits(FINAL, leaves).float()
        own, target = (
            batch_loss(loss, final, labels, iteration, self._config, self._class_weights)
            for loss in (final_loss(self._loss), self._loss)
        )
        grid = pixel_grid(self._config, iteration)
        # Shares are of the pixels that the losses are means over: the grid's, not all.
        share = self._together.share(labels[:, grid.rows, grid.columns])

        def backward(of: ExitLoss, logits: Tensor) -> Tensor:
            loss = share * of.loss(logits)
            loss.backward()
            return loss.detach()

        losses = {FINAL: backward(own, final)}
        for exit_id in self._network.exits:
            self._together.seed(derive(self._config.seed, self.name, iteration, exit_id))
            with amp:
                logits = self._network.logits(exit_id, leaves)
            losses[exit_id] = backward(target, logits.float())
        # A point whose exits were all left out has no gradient of its own, and the image no graph.
        reached = [
            name
            for name, leaf in leaves.items()
            if leaf.grad is not None and features[name].requires_grad
        ]
        torch.autograd.backward(
            [features[name] for name in reached], [leaves[name].grad for name in reached]
        )
        return self._together.step(iteration, losses)

    def end(self) -> None:
        self._together.end()

    def state(self) -> dict[str, Tensor]:
        return self._optimiser.momentum("momentum")

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._network.exits.to(self._device)
        self._optimiser.restore("momentum", state)


def final_loss(loss: str) -> str:
    """What the final exit learns from where the exits learn by `loss`; it cannot teach itself."""
    return loss if loss == "lovasz" else "ce"
