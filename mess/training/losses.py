"""Losses at label resolution, and the upsampling they share.

Shapes: B images, C classes, H×W label pixels, h×w native output pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from mess.common.metrics import VOID
from mess.common.resizing import Axis


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
    """Bilinear to `size` as in `mess.common.resizing`, at the pixels of `grid`.

    Two small matrix products: with its backward several times faster than `F.interpolate` on a CPU,
    and only the pixels asked for are computed.
    """
    grid = grid or PixelGrid()
    rows_Hh = _weights(size[0], logits_BChw.shape[2], logits_BChw.device)[grid.rows]
    columns_Ww = _weights(size[1], logits_BChw.shape[3], logits_BChw.device)[grid.columns]
    return rows_Hh @ logits_BChw.contiguous() @ columns_Ww.T


@lru_cache(maxsize=64)
def _weights(outputs: int, inputs: int, device: torch.device) -> Tensor:
    # It stays on the device: a copy for every exit would stop a GPU's stream.
    return torch.from_numpy(Axis.of(inputs, outputs).matrix()).to(device)


class ExitLoss(Protocol):
    """The loss of a batch, prepared once for all exits."""

    def loss(self, logits_BChw: Tensor) -> Tensor:
        """Of one exit's logits at native resolution; a scalar, 0 for a batch without labels."""
        ...


def cross_entropy(
    logits_BChw: Tensor, label_BHW: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0 for a batch without any.

    `class_weights` (C,) multiply a pixel's by the weight of its label.
    """
    logits = upsample(logits_BChw, (label_BHW.shape[1], label_BHW.shape[2]))
    total = F.cross_entropy(logits, label_BHW, class_weights, ignore_index=VOID, reduction="sum")
    # Not torch's mean, which divides by the sum of the weights: processes that share a batch weigh
    # their losses by pixels, and a batch of rare classes counts for more, as they are meant to.
    return total / (label_BHW != VOID).sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How much of what an exit learns from: a · CE + b · KL(teacher ‖ student) at every pixel.

    With `filtered`, the cross-entropy is left out where the teacher is wrong.
    """

    cross_entropy: float
    distillation: float
    filtered: bool = False


def mixture(name: str, alpha: float) -> Mixture:
    """The mixtures of Table 6 of the MESS paper by their names in the configuration.

    `alpha` weighs the two terms of "pfd" (Eq. 3) alone.
    """
    return {
        "pfd": Mixture(cross_entropy=alpha, distillation=1.0 - alpha, filtered=True),
        "ce": Mixture(cross_entropy=1.0, distillation=0.0),
        "kd": Mixture(cross_entropy=0.0, distillation=1.0),
        "self-distill": Mixture(cross_entropy=1.0, distillation=1.0),
    }[name]


class SoftTarget:
    """A mixture of cross-entropy and distillation, averaged over the labelled pixels.

    Both terms are cross-entropies, so their sum is one against the soft target
    W = a · onehot + b · teacher, up to a constant:

        loss = (Σ S · logsumexp(z) - Σ W · z) / pixels + constant,   S = Σ_classes W

    z is linear in the exit's native logits, so Σ W · z needs no upsampling: W goes down to native
    resolution once for all exits of that resolution.
    """

    def __init__(
        self,
        teacher_BChw: Tensor,
        label_BHW: Tensor,
        mix: Mixture,
        grid: PixelGrid | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        """`class_weights` (C,) multiply the cross-entropy by the weight of a pixel's label."""
        self._grid = grid or PixelGrid()
        self._size = (label_BHW.shape[1], label_BHW.shape[2])
        label = label_BHW[:, self._grid.rows, self._grid.columns]
        labelled_B1HW = (label != VOID).unsqueeze(1)
        self._pixels = labelled_B1HW.sum().clamp(min=1)
        shape = (len(label), teacher_BChw.shape[1], *label.shape[1:])
        # Void is no index to scatter to: it stands as class 0 until it is masked below.
        onehot = torch.zeros(shape, dtype=teacher_BChw.dtype, device=label.device).scatter_(
            1, label.where(label != VOID, 0).unsqueeze(1), 1.0
        )
        if class_weights is not None:
            onehot *= class_weights.view(1, -1, 1, 1)
        target, self._constant = mix.cross_entropy * onehot * labelled_B1HW, 0.0
        if mix.distillation or mix.filtered:
            logits = upsample(teacher_BChw.detach(), self._size, self._grid)
            log_teacher = F.log_softmax(logits, dim=1)
            teacher = log_teacher.exp() * labelled_B1HW
            if mix.filtered:
                target *= (logits.argmax(1) == label).unsqueeze(1)
            target += mix.distillation * teacher
            # The teacher's entropy has no gradient; with it the loss is the divergence itself.
            # By log_softmax, which is finite: a probability of 0 adds 0, not 0 · log 0.
            self._constant = mix.distillation * (teacher * log_teacher).sum() / self._pixels
        # S of the formula. It is not 1 where pixels are void or filtered, or classes have weights.
        self._weight_BHW = target.sum(1)
        self._target_BCHW = target
        self._native: dict[tuple[int, int], Tensor] = {}

    def loss(self, logits_BChw: Tensor) -> Tensor:
        """Of one exit's logits at native resolution; a scalar, 0 for a batch without labels."""
        size, device = (logits_BChw.shape[2], logits_BChw.shape[3]), logits_BChw.device
        rows = _weights(self._size[0], size[0], device)[self._grid.rows]
        columns = _weights(self._size[1], size[1], device)[self._grid.columns]
        if size not in self._native:
            # `upsample` is R z Kᵀ, and Σ W · (R z Kᵀ) = Σ (Rᵀ W K) · z.
            self._native[size] = rows.T @ self._target_BCHW @ columns
        total = _SoftTargetSum.apply(
            logits_BChw.contiguous(), rows, columns, self._weight_BHW, self._native[size]
        )
        return total / self._pixels + self._constant


class _SoftTargetSum(torch.autograd.Function):
    """Σ S · logsumexp(R z Kᵀ) - Σ W · z, by its own gradient Rᵀ (S · softmax(R z Kᵀ)) K - W.

    Autograd's way to it keeps logits, logsumexp and gradient at full size and takes the
    exponentials twice; this one works in one buffer, which is gone when the loss is known.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, z_BChw: Tensor, rows: Tensor, columns: Tensor, s_BHW: Tensor, w: Tensor
    ) -> Tensor:
        values_BCHW = rows @ z_BChw @ columns.T
        # Less the largest logit, as logsumexp does: exponentials of large ones are infinite.
        largest = values_BCHW.amax(1, keepdim=True)
        total = values_BCHW.sub_(largest).exp_().sum(1, keepdim=True)
        loss = (s_BHW * (largest + total.log()).squeeze(1)).sum() - (w * z_BChw).sum()
        values_BCHW.mul_(s_BHW.unsqueeze(1) / total)
        ctx.save_for_backward(rows.T @ values_BCHW @ columns - w)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (of_z,) = ctx.saved_tensors
        return gradient * of_z, None, None, None, None


class LovaszSoftmax:
    """Lovász-Softmax (Berman et al., CVPR 2018) over all labelled pixels of a batch.

    The mean over the classes that are labelled of the Lovász extension of the Jaccard loss, at the
    errors |onehot - probability| of the class.
    """

    def __init__(self, label_BHW: Tensor, grid: PixelGrid | None = None) -> None:
        self._grid = grid or PixelGrid()
        self._size = (label_BHW.shape[1], label_BHW.shape[2])
        self._label_P = label_BHW[:, self._grid.rows, self._grid.columns].flatten()

    def loss(self, logits_BChw: Tensor) -> Tensor:
        """Of one exit's logits at native resolution; a scalar, 0 for a batch without labels."""
        probability_BCHW = upsample(logits_BChw, self._size, self._grid).softmax(1)
        probability_CP = probability_BCHW.movedim(1, 0).flatten(1)
        class_C1 = torch.arange(len(probability_CP), device=self._label_P.device).unsqueeze(1)
        truth_CP = (self._label_P == class_C1).to(probability_CP.dtype)
        # Void pixels come last and weigh nothing: their error is 0.
        error_CP = (truth_CP - probability_CP).abs() * (self._label_P != VOID)
        error_CP, order_CP = error_CP.sort(dim=1, descending=True)
        slope_CP = _jaccard_slope(truth_CP.gather(1, order_CP))
        labelled_C = (truth_CP.sum(1) > 0).to(error_CP.dtype)
        return ((error_CP * slope_CP).sum(1) * labelled_C).sum() / labelled_C.sum().clamp(min=1)


def _jaccard_slope(truth_CP: Tensor) -> Tensor:
    """By how much each further wrong pixel, in order, raises the Jaccard loss of its class.

    Where the order of the errors stays, the Lovász extension is linear in them, and these are its
    coefficients (Berman et al., Algorithm 1). They sum to the loss with all pixels wrong, 1.
    """
    # Counts in float32, as probabilities are: exact up to 2^24 pixels a batch.
    pixels_C1 = truth_CP.sum(1, keepdim=True)
    hits_CP = pixels_C1 - truth_CP.cumsum(1)
    # Wrong pixels of other classes join the union; those of the class were in it all along. It is
    # never empty: the first pixel in order is one or the other.
    union_CP = pixels_C1 + (1 - truth_CP).cumsum(1)
    loss_CP = 1 - hits_CP / union_CP
    return loss_CP.diff(dim=1, prepend=torch.zeros_like(pixels_C1))


def exit_loss(
    name: str,
    teacher_BChw: Tensor,
    label_BHW: Tensor,
    *,
    alpha: float = 0.5,
    grid: PixelGrid | None = None,
    class_weights: Tensor | None = None,
) -> ExitLoss:
    """The loss called `name` in the configuration, for the exits of a batch.

    `teacher_BChw` are the final exit's logits, which cross-entropy and Lovász-Softmax do not use.
    """
    if name == "lovasz":
        return LovaszSoftmax(label_BHW, grid)
    return SoftTarget(teacher_BChw, label_BHW, mixture(name, alpha), grid, class_weights)
