"""Image confidences from logits at native output resolution (MESS paper, §5.2).

Shapes: B images, C classes, h×w native pixels. The same functions memoise and are exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mess.signal_spec import SignalSpec

_WINDOW = 5
"""Side of the smoothing window at native resolution: 4·os + 1 with os = 1."""


def top1_confidence(logits_BChw: Tensor) -> Tensor:
    """Probability of the predicted class, (B, h, w) in [1/C, 1]."""
    return logits_BChw.softmax(1).amax(1)


def entropy_confidence(logits_BChw: Tensor) -> Tensor:
    """1 - entropy / log(C), (B, h, w) in [0, 1]."""
    log_probability = logits_BChw.log_softmax(1)
    entropy = -(log_probability.exp() * log_probability).sum(1)
    return 1.0 - entropy / math.log(logits_BChw.shape[1])


CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "top1": top1_confidence,
    "entropy": entropy_confidence,
}


def semantic_edges(logits_BChw: Tensor) -> Tensor:
    """1 where the predicted class differs from a horizontal or vertical neighbour's, (B, h, w)."""
    label_Bhw = logits_BChw.argmax(1)
    down = (label_Bhw[:, 1:] != label_Bhw[:, :-1]).to(logits_BChw.dtype)
    right = (label_Bhw[:, :, 1:] != label_Bhw[:, :, :-1]).to(logits_BChw.dtype)
    rows = F.pad(down, (0, 0, 0, 1)) + F.pad(down, (0, 0, 1, 0))
    columns = F.pad(right, (0, 1, 0, 0)) + F.pad(right, (1, 0, 0, 0))
    return (rows + columns > 0).to(logits_BChw.dtype)


def enhance(confident_Bhw: Tensor, edges_Bhw: Tensor) -> Tensor:
    """Edge enhancement (Eqs. 8-9) of a 0/1 map of confident pixels.

    The median of an odd window reaches th_pix exactly when more than half of the window does, so
    the median of Eq. 9 is a box mean of the thresholded map. Borders are replicated.
    """
    margin = _WINDOW // 2
    padded = F.pad(confident_Bhw.unsqueeze(1), (margin,) * 4, mode="replicate")
    majority = F.avg_pool2d(padded, _WINDOW, stride=1).squeeze(1) > 0.5
    return torch.where(edges_Bhw > 0, majority.to(confident_Bhw.dtype), confident_Bhw)


def signals(logits_BChw: Tensor, specs: Sequence[SignalSpec]) -> Tensor:
    """All signals of one exit, (B, K) float32, each a share of pixels in [0, 1] (Eq. 7).

    Pixels that the ground truth marks void count too: labels do not exist at run time.
    """
    if not specs:
        return logits_BChw.new_zeros(logits_BChw.shape[0], 0)
    confidence = {spec.kind: CONFIDENCES[spec.kind](logits_BChw) for spec in specs}
    edges = semantic_edges(logits_BChw) if any(spec.edge_enhanced for spec in specs) else None
    columns = []
    for spec in specs:
        confident = (confidence[spec.kind] >= spec.pixel_threshold).to(logits_BChw.dtype)
        if spec.edge_enhanced and edges is not None:
            confident = enhance(confident, edges)
        columns.append(confident.mean((1, 2)))
    return torch.stack(columns, dim=1).float()


class SignalModule(nn.Module):
    """One signal as a module for export: logits (B, C, h, w) to (B,)."""

    def __init__(self, spec: SignalSpec) -> None:
        super().__init__()
        self._spec = spec

    def forward(self, logits_BChw: Tensor) -> Tensor:
        return signals(logits_BChw, [self._spec])[:, 0]
