"""What exits predicted on a batch, counted in torch on any device.

Shapes: B images, C classes, K signals, H×W pixels of the input, h×w native output pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mess.common.metrics import VOID
from mess.prediction.statistics import ExitPrediction, in_255ths
from mess.signals.maps import PixelMaps, interpolated
from mess.signals.measure import measure
from mess.signals.signal import Signal


class TensorStatistics:
    """In torch on any device; everything goes to the host at once, after the last exit."""

    def __init__(
        self,
        label_BHW: Tensor,
        final_BChw: Tensor,
        wanted: Sequence[Signal],
        against_final: bool = False,
    ) -> None:
        """`against_final` puts the final exit's classes in the place of labels, not of void."""
        self._label_BHW, self._wanted = label_BHW, wanted
        self._size = (label_BHW.shape[1], label_BHW.shape[2])
        self._final_BHW = interpolated(final_BChw, self._size).argmax(1)
        if against_final:
            self._label_BHW = torch.where(label_BHW == VOID, VOID, self._final_BHW)
        self._right_BHW = self._final_BHW == self._label_BHW
        self._names: list[str] = []
        self._counts: list[Tensor] = []
        self._signals: list[Tensor] = []
        self._maps: list[Tensor] = []
        self._confidences: dict[str, Tensor] = {}

    def add(self, exit_id: str, logits_BChw: Tensor, *, confidence_map: bool) -> None:
        images, classes = logits_BChw.shape[:2]
        class_BHW = interpolated(logits_BChw, self._size).argmax(1)
        # Void is no class, so it is never hit.
        hit_BHW = class_BHW == self._label_BHW
        # One more class takes the pixels that do not count.
        counted_BHW = torch.where(self._label_BHW == VOID, classes, class_BHW)
        correct_BHW = torch.where(hit_BHW, class_BHW, classes)
        sums = [class_BHW == self._final_BHW, self._right_BHW & ~hit_BHW]
        columns = [_histogram(values, classes + 1) for values in (correct_BHW, counted_BHW)]
        columns += [each.sum((1, 2), dtype=torch.int32).view(images, 1) for each in sums]
        self._names.append(exit_id)
        self._counts.append(torch.cat(columns, dim=1))
        maps = PixelMaps(logits_BChw)
        self._signals.append(measure(maps, self._wanted, self._size))
        self._maps.append(maps.labels_Bhw.to(torch.uint8))
        if confidence_map:
            self._confidences[exit_id] = in_255ths(maps.confidence("top1"))

    def collect(self) -> dict[str, ExitPrediction]:
        counts_EBX = torch.stack(self._counts).cpu().numpy()
        signals_EBK = torch.stack(self._signals).cpu().numpy()
        maps = torch.cat([labels.flatten() for labels in self._maps]).cpu().numpy()
        ends = np.cumsum([labels.numel() for labels in self._maps])[:-1]
        confidences = {name: values.cpu().numpy() for name, values in self._confidences.items()}
        # Of E exits. A row X is C + 1 correct and C + 1 counted pixels, the agreement and what is
        # lost: 2 C + 4.
        classes = (counts_EBX.shape[2] - 4) // 2
        return {
            name: ExitPrediction(
                intersection=counts_BX[:, :classes],
                predicted=counts_BX[:, classes + 1 : -3],
                agreement=counts_BX[:, -2],
                lost=counts_BX[:, -1],
                signals=signals_BK,
                label_map=flat.reshape(labels.shape),
                confidence_map=confidences.get(name),
            )
            for name, counts_BX, signals_BK, flat, labels in zip(
                self._names, counts_EBX, signals_EBK, np.split(maps, ends), self._maps, strict=True
            )
        }


def _histogram(class_BHW: Tensor, classes: int) -> Tensor:
    """(B, classes) int32. Unlike bincount it does not wait for the device."""
    flat = class_BHW.flatten(1)
    counts = torch.zeros(len(flat), classes, dtype=torch.int32, device=flat.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))
