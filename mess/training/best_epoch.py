"""The best epoch of each part of a network, on images held out of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mess.compute.processes import ALONE, Processes
from mess.config import read_toml
from mess.networks.network import OverprovisionedNetwork
from mess.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, under
from mess.training.stage import TrainedUnit

_SCORE, _WEIGHTS = "score.", "network."


class BestEpoch:
    """Keeps, for every unit of a stage, the weights of the epoch whose exits were best.

    They are stored at `path`, or beside it by each of several processes, and taken up again by a
    resumed run: epochs it repeats come out the same, and only a better one takes their place.
    """

    def __init__(
        self,
        path: Path,
        network: OverprovisionedNetwork,
        stage: str,
        units: Mapping[str, TrainedUnit],
        configuration: str,
        processes: Processes = ALONE,
    ) -> None:
        self._path = path
        if processes.count > 1:
            # Files of another number of processes stay: they may divide the units otherwise.
            self._path = path.with_stem(f"{path.stem}-{processes.count}-{processes.rank}")
        self._network, self._stage = network, stage
        self._units, self._configuration = units, configuration
        self._scores: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        # All files: a run may go on with another number of processes, and the best epoch of a unit
        # may be in any of theirs.
        for file in _files(path):
            stored = load_checkpoint(file, remedy="Delete it to go on without the epochs in it.")
            # As values: another version may write the same configuration differently.
            if (
                stored
                and stored.stage == stage
                and read_toml(stored.configuration) == read_toml(configuration)
            ):
                self._take(stored.tensors)

    def offer(self, iteration: int, miou: Mapping[str, float]) -> None:
        """Keep the weights of units whose exits have a higher mean mIoU than ever before."""
        state = self._network.state_dict()
        better = False
        for name, unit in self._units.items():
            score = torch.tensor([miou[exit_id] for exit_id in unit.exits], dtype=torch.float64)
            # Of equals the first: an epoch that a resumed run repeats replaces nothing.
            if name in self._scores and score.mean() <= self._scores[name]:
                continue
            better = True
            self._scores[name] = score.mean()
            for key, tensor in state.items():
                if key.startswith(unit.prefixes):
                    # On a CPU `.cpu()` is the live weight itself, which the next step changes.
                    self._weights[key] = tensor.detach().cpu().clone()
        if better:
            tensors = {_SCORE + name: score for name, score in self._scores.items()}
            tensors |= {_WEIGHTS + name: tensor for name, tensor in self._weights.items()}
            found = Checkpoint(self._stage, iteration, self._configuration, tensors)
            save_checkpoint(self._path, found)

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        scores, weights = under(tensors, _SCORE), under(tensors, _WEIGHTS)
        for name, unit in self._units.items():
            known = self._scores.get(name)
            if name in scores and (known is None or scores[name] > known):
                self._scores[name] = scores[name]
                self._weights |= {k: t for k, t in weights.items() if k.startswith(unit.prefixes)}

    def restore(self) -> None:
        """Give the network the best weights of each unit."""
        # Not strict: what this process or this stage does not train is not among them.
        self._network.load_state_dict(self._weights, strict=False)


def remove_best_epochs(path: Path) -> None:
    """Delete what was kept at `path`, by all processes."""
    for file in _files(path):
        file.unlink()


def _files(path: Path) -> list[Path]:
    beside = path.parent.glob(f"{path.stem}-*{path.suffix}")
    return [*([path] if path.exists() else []), *sorted(beside)]
