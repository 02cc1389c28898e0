"""What signals are made of: maps of an exit's logits, each computed once however many ask for it.

Shapes: B images, C classes, h×w pixels: native output resolution, or the input's. The same code
memoises and is exported; probabilities are never laid out, which onnxruntime would be slow at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from mess.common.resizing import nearest_positions
from mess.errors import nearest


class PixelMaps:
    """Maps of the logits (B, C, h, w) of one exit.

    `stride` is the exit's output stride in pixels of these maps: 1 at native resolution.
    `previous_Bhw` is the label map of the selected exit before, at that exit's native resolution.
    """

    def __init__(
        self, logits_BChw: Tensor, *, stride: int = 1, previous_Bhw: Tensor | None = None
    ) -> None:
        self.logits_BChw, self.stride = logits_BChw, stride
        self._previous_Bhw = previous_Bhw
        self._confidences: dict[str, Tensor] = {}

    def confidence(self, kind: str) -> Tensor:
        """Pixel confidence by its name in `CONFIDENCES`, (B, h, w) in [0, 1]."""
        if kind not in CONFIDENCES:
            raise ValueError(f"no confidence is named {kind!r}; {nearest(kind, CONFIDENCES)}")
        if kind not in self._confidences:
            self._confidences[kind] = CONFIDENCES[kind](self)
        return self._confidences[kind]

    def reaches(self, kind: str, threshold: float) -> Tensor:
        """1 where a pixel's confidence is at least `threshold`, else 0; (B, h, w)."""
        return (self.confidence(kind) >= threshold).to(self.logits_BChw.dtype)

    @staticmethod
    def mean(map_Bhw: Tensor) -> Tensor:
        """Mean over the pixels, (B,) float32.

        Summed in double precision: the order of additions depends on how many images come together.
        """
        return map_Bhw.double().mean((1, 2)).float()

    @cached_property
    def labels_Bhw(self) -> Tensor:
        """Predicted classes, (B, h, w) int64."""
        return self.logits_BChw.argmax(1)

    @cached_property
    def edges_Bhw(self) -> Tensor:
        """1 in the band around semantic edges (MESS paper, Eq. 8), (B, h, w).

        Edges are pixels whose class differs from that of a horizontal or vertical neighbour. The
        band is what an erosion of all other pixels with a window of `stride` takes away.
        """
        edges_Bhw = _class_changes(self.labels_Bhw, self.logits_BChw.dtype)
        if self.stride == 1:
            return edges_Bhw
        before = self.stride // 2
        margin = (before, self.stride - 1 - before) * 2
        return F.max_pool2d(F.pad(edges_Bhw[:, None], margin), self.stride, stride=1)[:, 0]

    def enhanced(self, confident_Bhw: Tensor) -> Tensor:
        """Edge enhancement (Eqs. 8-9) of a 0/1 map of confident pixels.

        The median of an odd window reaches th_pix exactly when more than half of the window does,
        so the median of Eq. 9 is a box mean of the thresholded map. Borders are replicated.
        """
        margin = 2 * self.stride
        window = 2 * margin + 1
        padded = F.pad(confident_Bhw[:, None], (margin,) * 4, mode="replicate")
        # One axis after the other: 2 · window additions a pixel, not window². An odd
        # number of pixels has no half, so rounding decides nothing.
        mean = F.avg_pool2d(F.avg_pool2d(padded, (window, 1), stride=1), (1, window), stride=1)
        majority = (mean[:, 0] > 0.5).to(confident_Bhw.dtype)
        return torch.where(self.edges_Bhw > 0, majority, confident_Bhw)

    def variation_of_information(self) -> Tensor:
        """Bits by which this label map and that of the exit before differ, (B,).

        Maps of unequal size are brought to the larger one by nearest neighbour.
        """
        if self._previous_Bhw is None:
            raise ValueError("comparing exits needs the label map of the exit before")
        size = (
            max(self._previous_Bhw.shape[1], self.labels_Bhw.shape[1]),
            max(self._previous_Bhw.shape[2], self.labels_Bhw.shape[2]),
        )
        before, here = resized(self._previous_Bhw, size), resized(self.labels_Bhw, size)
        return variation(joint_histogram(before, here, self.logits_BChw.shape[1]))

    @cached_property
    def below_BChw(self) -> Tensor:
        """How far each logit is below the largest of its pixel, at most 0."""
        return self.logits_BChw - _largest(self.logits_BChw)

    @cached_property
    def odds_BChw(self) -> Tensor:
        """Each class's probability over that of the predicted one, in [0, 1]."""
        # Of what is at most 0: never too large for the logits' precision.
        return self.below_BChw.exp()

    @cached_property
    def total_odds_Bhw(self) -> Tensor:
        """Their sum over the classes, in [1, C]."""
        return _summed(self.odds_BChw)


def top1_confidence(maps: PixelMaps) -> Tensor:
    """Probability of the predicted class, in [1/C, 1]."""
    return 1.0 / maps.total_odds_Bhw


def entropy_confidence(maps: PixelMaps) -> Tensor:
    """1 - entropy / log(C), in [0, 1]."""
    # -sum(p log p) with p = odds / total and log p = below - log(total): a probability of 0 then
    # needs no logarithm.
    total = maps.total_odds_Bhw
    entropy = total.log() - _summed(maps.odds_BChw * maps.below_BChw) / total
    return 1.0 - entropy / math.log(maps.logits_BChw.shape[1])


CONFIDENCES: dict[str, Callable[[PixelMaps], Tensor]] = {
    "top1": top1_confidence,
    "entropy": entropy_confidence,
}


def interpolated(logits_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits at another size by torch's operation, which exported programs can hold.

    As `mess.common.resizing.upsampled` defines it, to the tolerance stated there.
    """
    return F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False)


def resized(label_Bhw: Tensor, size: tuple[int, int]) -> Tensor:
    """A label map at another size by nearest neighbour."""
    if (label_Bhw.shape[1], label_Bhw.shape[2]) == size:
        return label_Bhw
    rows, columns = (
        torch.from_numpy(nearest_positions(label_Bhw.shape[1 + i], size[i])).to(label_Bhw.device)
        for i in (0, 1)
    )
    return label_Bhw[:, rows][:, :, columns]


def joint_histogram(first_Bhw: Tensor, second_Bhw: Tensor, classes: int) -> Tensor:
    """Pixels by the class in the first and in the second map, (B, C, C) float32."""
    # Half the memory traffic until the index has to be long.
    cell_BP = (first_Bhw.int() * classes + second_Bhw.int()).flatten(1).long()
    # Counts in float32 are exact up to 2^24 pixels.
    ones_BP = torch.ones(cell_BP.shape, device=cell_BP.device)
    counts = torch.zeros(len(cell_BP), classes * classes, device=cell_BP.device)
    return counts.scatter_add(1, cell_BP, ones_BP).view(-1, classes, classes)


def variation(joint_BCC: Tensor) -> Tensor:
    """Variation of information of two label maps by their joint histogram, in bits, (B,)."""
    # Two classes that no pixel has in common count for nothing; 1 avoids dividing by them.
    shared = joint_BCC.clamp(min=1)
    # As ratios, each at least 1, so that equal maps differ by exactly nothing.
    ratio = (joint_BCC.sum(2, keepdim=True) / shared) * (joint_BCC.sum(1, keepdim=True) / shared)
    bits = (joint_BCC * ratio.clamp(min=1).log2()).sum((1, 2))
    return bits / joint_BCC.sum((1, 2))


# By whole maps: onnxruntime's reductions over channels go from pixel to pixel, whose values lie far
# apart, and take up to six times as long.


def _largest(values_BChw: Tensor) -> Tensor:
    """Largest over the channels, (B, 1, h, w): one half against the other until one is left."""
    while (channels := values_BChw.shape[1]) > 1:
        # Of an odd number the middle one is in both.
        half = (channels + 1) // 2
        values_BChw = torch.maximum(values_BChw[:, :half], values_BChw[:, channels - half :])
    return values_BChw


def _summed(values_BChw: Tensor) -> Tensor:
    """Sum over the channels, (B, h, w), as a matrix product."""
    images, channels, height, width = values_BChw.shape
    ones = values_BChw.new_ones(1, 1, channels)
    return (ones @ values_BChw.reshape(images, channels, height * width)).view(
        images, height, width
    )


def _class_changes(label_Bhw: Tensor, dtype: torch.dtype) -> Tensor:
    down = (label_Bhw[:, 1:] != label_Bhw[:, :-1]).to(dtype)
    right = (label_Bhw[:, :, 1:] != label_Bhw[:, :, :-1]).to(dtype)
    rows = F.pad(down, (0, 0, 0, 1)) + F.pad(down, (0, 0, 1, 0))
    columns = F.pad(right, (0, 1, 0, 0)) + F.pad(right, (1, 0, 0, 0))
    return (rows + columns > 0).to(dtype)
