"""What a stage of training is, and what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mess.compute.processes import Processes
from mess.config import StageConfig
from mess.data.loader import Batch

Seen = Mapping[str, Tensor]
"""What a step takes of a batch, by name."""


class Batches(Protocol):
    """The augmented batches of any stage."""

    def __call__(
        self, seed_name: str, iterations: int, start: int, sharing: Processes, every: int = 1
    ) -> Iterable[Batch]:
        """Those of every so many-th iteration from `start` on, of `iterations` in all.

        `sharing` divide each among them.
        """
        ...


@dataclass(frozen=True)
class TrainedUnit:
    """Weights that are trained together, by prefixes of their names, and the exits they serve."""

    prefixes: tuple[str, ...]
    exits: tuple[str, ...]


class Judge(Protocol):
    """Measures exits on images held out of training."""

    def __call__(
        self, stage: str, iteration: int, exits: Sequence[str], mine: Sequence[str]
    ) -> Mapping[str, float]:
        """The mIoU of each of `exits` after `iteration` iterations; may leave eval mode behind.

        This process measures those in `mine`; the others are other processes'.
        """
        ...


class Stage(Protocol):
    """One stage of training over the shared network."""

    name: str

    @property
    def seed_name(self) -> str:
        """What its batches hang on."""
        ...

    @property
    def shares_batches(self) -> bool:
        """Whether processes divide each batch; else they divide the units."""
        ...

    @property
    def units(self) -> Mapping[str, TrainedUnit]:
        """What the stage trains, in parts that do not depend on each other."""
        ...

    @property
    def mine(self) -> Sequence[str]:
        """The units that this process trains."""
        ...

    @property
    def settings(self) -> StageConfig: ...

    def begin(self) -> None:
        """Put the network into the stage's mode."""

    def see(self, images: Tensor, labels: Tensor) -> Seen:
        """What steps take of a batch on the device: what none of them changes is computed here.

        Of batches that are not divided, each is seen by one process, for all.
        """
        ...

    def step(self, seen: Seen, iteration: int) -> dict[str, Tensor]:
        """Do iteration `iteration` (0-based); the losses by the name of the exit."""
        ...

    def end(self) -> None:
        """Leave the network to the next stage; nothing is trained after it."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the network's weights."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
