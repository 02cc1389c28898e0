"""Going on from a checkpoint: what of a training it holds, for one process or several."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from mess.common.progress import Reporter
from mess.compute.processes import Processes
from mess.config import Config, read_toml
from mess.errors import TrainingError
from mess.networks.network import OverprovisionedNetwork
from mess.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_divided,
    save_settled,
    save_whole,
    under,
)
from mess.training.stage import Stage, TrainedUnit

_NETWORK, _STAGE = "network.", "stage."
"""Before the names of a checkpoint's tensors."""


class Saver:
    """Writes and reads the checkpoints of a training.

    They take a small share of the time: the longer one takes to write, the later the next one. What
    a stage does not change, such as the exits of finished groups, is written once a stage.
    """

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        path: Path,
        processes: Processes,
    ) -> None:
        self._network, self._path, self._processes = network, path, processes
        self._minutes = config.training.checkpoint_minutes
        self._share = config.training.checkpoint_share
        self._configuration = config.of_weights()
        self._saved, self._took = time.monotonic(), 0.0
        # The stage whose settled tensors are on the disk, and the name of their file.
        self._settled: tuple[str, str | None] | None = None

    def resume(self, stages: Sequence[Stage], reporter: Reporter) -> tuple[int, int]:
        """The stage, and its iteration, to go on with; network and stage are as they were then."""
        checkpoint = load_checkpoint(self._path)
        # None may write the next one before all have read this one.
        self._processes.wait()
        if checkpoint is None:
            return 0, 0
        # Compared as values: another version may write the same configuration differently.
        if read_toml(checkpoint.configuration) != self._configuration:
            raise TrainingError(
                f"checkpoint {self._path} was reached under another configuration. Give the run "
                "another folder with --run, or the configuration it was begun with."
            )
        names = [stage.name for stage in stages]
        if checkpoint.stage not in names:
            raise TrainingError(
                f"checkpoint {self._path} is within {checkpoint.stage}, this training has "
                f"{', '.join(names)}. Keep training.stage2.groups as it was until stage 2 is done."
            )
        index = names.index(checkpoint.stage)
        stage = stages[index]
        self._read(checkpoint)
        if checkpoint.settled is not None:
            self._settled = checkpoint.stage, checkpoint.settled
        # Written after `Stage.end`, so nothing of that stage is to be taken up again.
        if checkpoint.iteration == stage.settings.iterations:
            return index + 1, 0
        stage.restore(under(checkpoint.tensors, _STAGE))
        reporter.message(
            f"Resuming {checkpoint.stage} at iteration {checkpoint.iteration} "
            f"of {stage.settings.iterations}."
        )
        return index, checkpoint.iteration

    def save(self, stage: Stage, iteration: int) -> None:
        """Write the checkpoint; where processes divide the units, each its own."""
        begun = time.monotonic()
        divided = self._processes.count > 1 and not stage.shares_batches
        # Empty for a process without units, and no name starts with one of no prefixes.
        own = _prefixes(stage.units[name] for name in (stage.mine if divided else stage.units))
        state = {name: t for name, t in self._weights().items() if name.startswith(own)}
        settled = None
        if iteration < stage.settings.iterations:
            settled = self._settle(stage)
        elif self._processes.is_first:
            # The end of a stage may change what its steps do not.
            state |= self._at_rest(stage)
        state |= {_STAGE + name: tensor for name, tensor in stage.state().items()}
        found = Checkpoint(stage.name, iteration, self._configuration.to_toml(), state, settled)
        if divided:
            save_divided(self._path, found, self._processes)
        elif self._processes.is_first:
            save_whole(self._path, found)
        # Only from here on may the others read it, as `gather` does.
        self._processes.wait()
        self._saved = time.monotonic()
        self._took = self._saved - begun

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than it should be."""
        since = time.monotonic() - self._saved
        # Of that time and the writing together, writing takes its share at most.
        return since > max(60 * self._minutes, self._took * (1 / self._share - 1))

    def gather(self) -> None:
        """Give this process what the others have trained."""
        if self._processes.count > 1:
            checkpoint = load_checkpoint(self._path)
            assert checkpoint is not None
            self._read(checkpoint)
            self._processes.wait()

    def _weights(self) -> dict[str, Tensor]:
        return {_NETWORK + name: tensor for name, tensor in self._network.state_dict().items()}

    def _at_rest(self, stage: Stage) -> dict[str, Tensor]:
        """The weights that no step of the stage changes."""
        changing = _prefixes(stage.units.values())
        return {n: t for n, t in self._weights().items() if not n.startswith(changing)}

    def _settle(self, stage: Stage) -> str | None:
        """The file of what no step of the stage changes, written by the first process."""
        if self._settled is None or self._settled[0] != stage.name:
            rest, name = self._at_rest(stage), None
            if rest and self._processes.is_first:
                found = Checkpoint(stage.name, 0, self._configuration.to_toml(), rest)
                name = save_settled(self._path, found)
            self._settled = stage.name, name
        return self._settled[1]

    def _read(self, checkpoint: Checkpoint) -> None:
        """Give the network the weights of a checkpoint."""
        weights = under(checkpoint.tensors, _NETWORK)
        known = self._network.state_dict().keys()
        for name in known ^ weights.keys():
            raise TrainingError(
                f"checkpoint {self._path} is of another network: {name!r} stands on one side "
                "alone, as after an update that changed which exits are candidates. Delete it to "
                "train from the start."
            )
        self._network.load_state_dict(weights)


def _prefixes(units: Iterable[TrainedUnit]) -> tuple[str, ...]:
    return tuple(_NETWORK + prefix for unit in units for prefix in unit.prefixes)
