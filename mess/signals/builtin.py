"""The signals of the papers (MESS paper §5.2, 2025 paper §III-IV). No torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from mess.config import MemoiseConfig
from mess.signals.shares import confident_shares
from mess.signals.signal import Finish, Signal

if TYPE_CHECKING:
    from torch import Tensor

    from mess.signals.maps import PixelMaps


@dataclass(frozen=True)
class ConfidentShare(Signal):
    """Share of the pixels that are confident (MESS paper, Eq. 7), in [0, 1].

    `confidence` of a pixel is "top1" (the largest probability) or "entropy" (1 - normalised
    entropy); `pixel_threshold` is the th_pix it must reach; `edge_enhanced` says whether pixels at
    semantic edges take the median confidence around them (Eqs. 8-9).
    """

    kind: ClassVar[str] = "share"

    confidence: str
    pixel_threshold: float
    edge_enhanced: bool

    def of(self, maps: PixelMaps) -> Tensor:
        confident_Bhw = maps.reaches(self.confidence, self.pixel_threshold)
        if self.edge_enhanced:
            confident_Bhw = maps.enhanced(confident_Bhw)
        return maps.mean(confident_Bhw)

    @property
    def name(self) -> str:
        """Such as `share-top1-0.9-edges`."""
        threshold = f"{self.pixel_threshold:g}"
        # Six digits may not tell two thresholds apart, and names are unique.
        if float(threshold) != self.pixel_threshold:
            threshold = repr(self.pixel_threshold)
        edges = "-edges" if self.edge_enhanced else ""
        return self._at_resolution(f"share-{self.confidence}-{threshold}{edges}")

    @property
    def policies(self) -> tuple[str, ...]:
        """Such as `share`, `share-native`, `share-top1`, `share-top1-edges`."""
        own = f"share-{self.confidence}"
        edges = "edges" if self.edge_enhanced else "plain"
        return ("share", f"share-{self.resolution}", own, f"{own}-{edges}")

    @classmethod
    def configured(cls, config: MemoiseConfig) -> list[Signal]:
        return [
            cls(confidence, threshold, edges, resolution=resolution)
            for resolution, confidence, edges, threshold in itertools.product(
                config.resolutions, config.confidences, config.edges, config.pixel_thresholds
            )
        ]


class ConfidentShares:
    """Several shares of an exit at native resolution, by compiled loops.

    An exit has dozens of them, by threshold, confidence and edges, and all from the same two maps.
    """

    def __init__(self, shares: Sequence[ConfidentShare]) -> None:
        self._kinds = sorted({share.confidence for share in shares})
        kind_K = np.array([self._kinds.index(share.confidence) for share in shares])
        # torch compares a float32 map with the threshold in float32, too.
        threshold_K = np.array([share.pixel_threshold for share in shares], dtype=np.float32)
        edges_K = np.array([share.edge_enhanced for share in shares])
        self._settings = kind_K, threshold_K, edges_K

    def begin(self, maps: PixelMaps) -> Finish:
        confidences = [maps.confidence(kind).numpy() for kind in self._kinds]

        def finish(label_Bhw: NDArray[np.uint8]) -> NDArray[np.float32]:
            return confident_shares(np.stack(confidences), label_Bhw, *self._settings)

        return finish


@dataclass(frozen=True)
class MeanConfidence(Signal):
    """Mean over the pixels of the largest probability, in [1/C, 1] (MESS paper, Fig. 4)."""

    kind: ClassVar[str] = "mean-top1"

    def of(self, maps: PixelMaps) -> Tensor:
        return maps.mean(maps.confidence("top1"))


@dataclass(frozen=True)
class NormalisedEntropy(Signal):
    """1 - NE: NE is the mean over the pixels of entropy / log(C), in [0, 1] (2025 paper, Eq. 1)."""

    kind: ClassVar[str] = "ne"

    def of(self, maps: PixelMaps) -> Tensor:
        return maps.mean(maps.confidence("entropy"))


@dataclass(frozen=True)
class VariationOfInformation(Signal):
    """- VI between the label maps of the selected exit before and this one (2025 paper, Eq. 2).

    In bits, 0 where the maps divide the image alike.
    """

    kind: ClassVar[str] = "vi"
    compares: ClassVar[bool] = True

    def of(self, maps: PixelMaps) -> Tensor:
        return -maps.variation_of_information()
