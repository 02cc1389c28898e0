"""What a signal is: one number for an image, from the logits of one exit.

A signal is one class: its settings, its name, and how it follows from the maps of an exit's logits.
It is memoised, searched, measured and exported from that. No torch: the maps are
`mess.signals.maps.PixelMaps`, and a signal calls their methods alone.

Signals are oriented so that larger means leave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from mess.config import MemoiseConfig
    from mess.signals.maps import PixelMaps


NATIVE, FULL = "native", "full"
"""Whether a signal sees the logits as they are, or upsampled to the size of the input."""

Finish = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From the label map of an exit at native resolution, (B, h, w), to its signals, (B, K)."""


class CompiledSignals(Protocol):
    """Several signals of one kind and resolution at once, by compiled loops on the CPU."""

    def begin(self, maps: PixelMaps) -> Finish:
        """Do torch's part here; what is returned does the rest without torch, in any thread."""
        ...


@dataclass(frozen=True)
class Signal(ABC):
    """One number for an image, from the logits of one exit.

    A subclass sets `kind`, its name in `memoise.signals`, and defines `of`.
    """

    kind: ClassVar[str]

    compares: ClassVar[bool] = False
    """Whether it needs the label map of the selected exit before as well."""

    resolution: str = field(default=NATIVE, kw_only=True)

    @abstractmethod
    def of(self, maps: PixelMaps) -> Tensor:
        """The signal of each image, shape (B,)."""

    @property
    def is_own(self) -> bool:
        """Whether it is a user's, imported from where its kind says."""
        return ":" in self.kind

    @property
    def name(self) -> str:
        """Unique among all settings of all signals."""
        return self._at_resolution(self.kind)

    @property
    def policies(self) -> tuple[str, ...]:
        """What `--policy` calls the groups of signals it belongs to, the widest first."""
        return (self.kind, f"{self.kind}-{self.resolution}")

    @classmethod
    def configured(cls, config: MemoiseConfig) -> list[Signal]:
        """One for each combination of the settings that a configuration asks for."""
        return [cls(resolution=resolution) for resolution in config.resolutions]

    def to_json(self) -> dict[str, Any]:
        """As the manifests of caches and bundles hold it."""
        told = {"name": self.name, "kind": self.kind, **asdict(self)}
        # Of a user's own, so that nothing is imported to read what was memoised.
        return told | {"policies": list(self.policies)} if self.is_own else told

    def _at_resolution(self, name: str) -> str:
        return name if self.resolution == NATIVE else f"{name}-{self.resolution}"
