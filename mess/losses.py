"""Losses at label resolution, and the bilinear upsampling they share.

Shapes: B images, C classes, H×W label pixels, h×w native output pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mess.metrics import VOID


@dataclass(frozen=True)
class PixelGrid:
    """The label pixels a loss looks at: every `stride`-th, starting at (row, column)."""

    stride: int = 1
    row: int = 0
    column: int = 0

    @property
    def rows(self) -> slice:
        return slice(self.row, None, self.stride)

    @property
    def columns(self) -> slice:
        return slice(self.column, None, self.stride)


def upsample(logits_BChw: Tensor, size: tuple[int, int], grid: PixelGrid | None = None) -> Tensor:
    """Bilinear (align_corners=False) to `size`, at the pixels of `grid`.

    Two small matrix products; equal to `F.interpolate` and several times faster with its backward
    on a CPU, and only the pixels asked for are computed.
    """
    grid = grid or PixelGrid()
    rows_Hh = _weights(size[0], logits_BChw.shape[2], logits_BChw.device)[grid.rows]
    columns_Ww = _weights(size[1], logits_BChw.shape[3], logits_BChw.device)[grid.columns]
    return rows_Hh @ logits_BChw.contiguous() @ columns_Ww.T


@lru_cache(maxsize=64)
def _weights(outputs: int, inputs: int, device: torch.device) -> Tensor:
    # Interpolating the identity gives the interpolation's own matrix. It stays on the device: a
    # copy for every exit would stop a GPU's stream.
    eye = torch.eye(inputs).unsqueeze(0)
    matrix = F.interpolate(eye, size=outputs, mode="linear", align_corners=False)[0].T
    return matrix.contiguous().to(device)


def cross_entropy(logits_BChw: Tensor, label_BHW: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0 for a batch without any."""
    logits = upsample(logits_BChw, (label_BHW.shape[1], label_BHW.shape[2]))
    total = F.cross_entropy(logits, label_BHW, ignore_index=VOID, reduction="sum")
    return total / (label_BHW != VOID).sum().clamp(min=1)


class DistillationTarget:
    """Positive filtering distillation (MESS paper, Eq. 3), prepared once for all exits of a batch.

    Per labelled pixel, alpha · [final argmax == label] · CE + (1 - alpha) · KL(teacher ‖ student),
    averaged over the labelled pixels. Both terms are cross-entropies, so their sum is one against
    the soft target W = alpha · [correct] · onehot + (1 - alpha) · teacher, up to a constant:

        loss = (Σ S · logsumexp(z) - Σ W · z) / pixels + constant,   S = Σ_classes W

    z is linear in the exit's native logits, so Σ W · z needs no upsampling: W goes down to native
    resolution once for all exits of that resolution.
    """

    def __init__(
        self, teacher_BChw: Tensor, label_BHW: Tensor, alpha: float, grid: PixelGrid | None = None
    ) -> None:
        self._grid = grid or PixelGrid()
        self._size = (label_BHW.shape[1], label_BHW.shape[2])
        label = label_BHW[:, self._grid.rows, self._grid.columns]
        labelled_B1HW = (label != VOID).unsqueeze(1)
        self._pixels = labelled_B1HW.sum().clamp(min=1)
        logits = upsample(teacher_BChw.detach(), self._size, self._grid)
        log_teacher = F.log_softmax(logits, dim=1)
        teacher = log_teacher.exp()
        correct_B1HW = (logits.argmax(1) == label).unsqueeze(1)
        onehot = torch.zeros_like(teacher).scatter_(
            1, label.where(label != VOID, 0).unsqueeze(1), 1.0
        )
        target = (alpha * correct_B1HW * onehot + (1 - alpha) * teacher) * labelled_B1HW
        self._weight_BHW = target.sum(1)
        entropy = (teacher * log_teacher * labelled_B1HW).sum()
        self._constant = (1 - alpha) * entropy / self._pixels
        self._target_BCHW = target
        self._native: dict[tuple[int, int], Tensor] = {}

    def loss(self, logits_BChw: Tensor) -> Tensor:
        """The loss of one exit's logits at native resolution; a scalar."""
        logits = upsample(logits_BChw, self._size, self._grid)
        normaliser = (self._weight_BHW * logits.logsumexp(1)).sum()
        agreement = (self._at_native(logits_BChw) * logits_BChw).sum()
        return (normaliser - agreement) / self._pixels + self._constant

    def _at_native(self, logits_BChw: Tensor) -> Tensor:
        size = (logits_BChw.shape[2], logits_BChw.shape[3])
        if size not in self._native:
            device = logits_BChw.device
            rows = _weights(self._size[0], size[0], device)[self._grid.rows]
            columns = _weights(self._size[1], size[1], device)[self._grid.columns]
            self._native[size] = rows.T @ self._target_BCHW @ columns
        return self._native[size]
