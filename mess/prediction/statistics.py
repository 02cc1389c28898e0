"""What one exit predicted on a batch, from its logits: compiled on the CPU, in torch elsewhere.

Shapes: B images, C classes, K signals, H×W pixels of the input, h×w native output pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ExitPrediction:
    """What one exit predicted on the images of a batch."""

    intersection: NDArray[np.int32]
    """(B, C): pixels of each class that label and prediction share, void left out."""
    predicted: NDArray[np.int32]
    """(B, C): pixels predicted as each class, void left out."""
    agreement: NDArray[np.int32]
    """(B,): pixels whose class equals the final exit's, void or not."""
    lost: NDArray[np.int32]
    """(B,): labelled pixels that the final exit gets right and this one wrong."""
    signals: NDArray[np.float32]
    """(B, K)."""
    label_map: NDArray[np.uint8]
    """(B, h, w): classes at native output resolution."""
    confidence_map: NDArray[np.uint8] | None
    """(B, h, w): top-1 probability in 255ths, for the exits that were asked for."""


class BatchStatistics(Protocol):
    """Takes the logits of one exit after the other, and at H×W holds those of one at most."""

    def add(self, exit_id: str, logits_BChw: Tensor, *, confidence_map: bool) -> None:
        """Count what an exit predicted."""
        ...

    def collect(self) -> dict[str, ExitPrediction]:
        """The predictions of all exits, in the order in which they came."""
        ...


def in_255ths(confidence: Tensor) -> Tensor:
    return (confidence * 255).round().to(torch.uint8)
