"""Going on from a checkpoint: what of a training it holds, for one process or several."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mess.common.progress import Reporter
from mess.compute.processes import Processes
from mess.config import Config, read_toml
from mess.errors import TrainingError
from mess.networks.network import OverprovisionedNetwork
from mess.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_divided,
    under,
)
from mess.training.stage import Stage, TrainedUnit

_NETWORK, _STAGE = "network.", "stage."
"""Before the names of a checkpoint's tensors."""


class Saver:
    """Writes and reads the checkpoints of a training."""

    def __init__(
        self,
        network: OverprovisionedNetwork,
        config: Config,
        path: Path,
        processes: Processes,
    ) -> None:
        self._network, self._path, self._processes = network, path, processes
        self._minutes = config.training.checkpoint_minutes
        self._configuration = config.of_weights()
        self._saved = time.monotonic()

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
        self._network.load_state_dict(under(checkpoint.tensors, _NETWORK))
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
        divided = self._processes.count > 1 and not stage.shares_batches
        state = {_NETWORK + name: tensor for name, tensor in self._network.state_dict().items()}
        if divided:
            others = [unit for name, unit in stage.units.items() if name not in stage.mine]
            left_out = _prefixes(others)
            if not self._processes.is_first:
                # Empty for a process without units, and no name starts with one of no prefixes.
                own = _prefixes([stage.units[name] for name in stage.mine])
                state = {name: tensor for name, tensor in state.items() if name.startswith(own)}
            # The first process's share holds the backbone, too, and everything else that all have.
            state = {name: t for name, t in state.items() if not name.startswith(left_out)}
        state |= {_STAGE + name: tensor for name, tensor in stage.state().items()}
        found = Checkpoint(stage.name, iteration, self._configuration.to_toml(), state)
        if divided:
            save_divided(self._path, found, self._processes)
        elif self._processes.is_first:
            save_checkpoint(self._path, found)
        # Only from here on may the others read it, as `gather` does.
        self._processes.wait()
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than it should be."""
        return time.monotonic() - self._saved > 60 * self._minutes

    def gather(self) -> None:
        """Give this process what the others have trained."""
        if self._processes.count > 1:
            checkpoint = load_checkpoint(self._path)
            assert checkpoint is not None
            self._network.load_state_dict(under(checkpoint.tensors, _NETWORK))
            self._processes.wait()


def _prefixes(units: Iterable[TrainedUnit]) -> tuple[str, ...]:
    return tuple(_NETWORK + prefix for unit in units for prefix in unit.prefixes)
