"""What one exit predicted on a batch, from its logits: compiled on the CPU, in torch elsewhere.

Shapes: B images, C classes, K signals, H×W pixels of the input, h×w native output pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mess.counting import Axis, Grid, Reference, Tally, cell_counts, count, shares, upsample
from mess.metrics import VOID
from mess.signal_spec import SignalSpec
from mess.signals import CONFIDENCES, signals, top1_confidence


@dataclass(frozen=True, kw_only=True)
class ExitPrediction:
    """What one exit predicted on the images of a batch."""

    intersection: NDArray[np.int32]
    """(B, C): pixels of each class that label and prediction share, void left out."""
    predicted: NDArray[np.int32]
    """(B, C): pixels predicted as each class, void left out."""
    agreement: NDArray[np.int32]
    """(B,): pixels whose class equals the final exit's, void or not."""
    signals: NDArray[np.float32]
    """(B, K)."""
    label_map: NDArray[np.uint8]
    """(B, h, w): classes at native output resolution."""
    confidence_map: NDArray[np.uint8] | None
    """(B, h, w): top-1 probability in 255ths, for the exits that were asked for."""


class BatchStatistics(Protocol):
    """Takes the logits of one exit after the other and lets go of them."""

    def add(self, exit_id: str, logits_BChw: Tensor, *, confidence_map: bool) -> None:
        """Count what an exit predicted."""
        ...

    def collect(self) -> dict[str, ExitPrediction]:
        """The predictions of all exits, in the order in which they came."""
        ...


def upsampled_classes(logits_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Class of every pixel at `size` (H, W): the definition that the compiled counts follow."""
    whole = F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False)
    return whole.argmax(1)


class TensorStatistics:
    """In torch on any device; everything goes to the host at once, after the last exit."""

    def __init__(self, label_BHW: Tensor, final_BChw: Tensor, specs: Sequence[SignalSpec]) -> None:
        self._label_BHW, self._specs = label_BHW, specs
        self._size = (label_BHW.shape[1], label_BHW.shape[2])
        self._final_BHW = upsampled_classes(final_BChw, self._size)
        self._names: list[str] = []
        self._counts: list[Tensor] = []
        self._signals: list[Tensor] = []
        self._maps: list[Tensor] = []
        self._confidences: dict[str, Tensor] = {}

    def add(self, exit_id: str, logits_BChw: Tensor, *, confidence_map: bool) -> None:
        images, classes = logits_BChw.shape[:2]
        class_BHW = upsampled_classes(logits_BChw, self._size)
        hit_BHW = class_BHW == self._label_BHW
        # One more class takes the pixels that do not count.
        counted_BHW = torch.where(self._label_BHW == VOID, classes, class_BHW)
        correct_BHW = torch.where(hit_BHW, class_BHW, classes)
        agreement_B = (class_BHW == self._final_BHW).sum((1, 2), dtype=torch.int32)
        columns = [_histogram(values, classes + 1) for values in (correct_BHW, counted_BHW)]
        self._names.append(exit_id)
        self._counts.append(torch.cat([*columns, agreement_B.view(images, 1)], dim=1))
        self._signals.append(signals(logits_BChw, self._specs))
        self._maps.append(logits_BChw.argmax(1).to(torch.uint8))
        if confidence_map:
            self._confidences[exit_id] = _in_255ths(top1_confidence(logits_BChw))

    def collect(self) -> dict[str, ExitPrediction]:
        counts_EBX = torch.stack(self._counts).cpu().numpy()
        signals_EBK = torch.stack(self._signals).cpu().numpy()
        maps = torch.cat([labels.flatten() for labels in self._maps]).cpu().numpy()
        ends = np.cumsum([labels.numel() for labels in self._maps])[:-1]
        confidences = {name: values.cpu().numpy() for name, values in self._confidences.items()}
        classes = (counts_EBX.shape[2] - 3) // 2
        return {
            name: ExitPrediction(
                intersection=counts_BX[:, :classes],
                predicted=counts_BX[:, classes + 1 : -2],
                agreement=counts_BX[:, -1],
                signals=signals_BK,
                label_map=flat.reshape(labels.shape),
                confidence_map=confidences.get(name),
            )
            for name, counts_BX, signals_BK, flat, labels in zip(
                self._names, counts_EBX, signals_EBK, np.split(maps, ends), self._maps, strict=True
            )
        }


class CompiledStatistics:
    """On the CPU, the images of a batch divided among the threads of `pool`."""

    def __init__(
        self,
        label_BHW: Tensor,
        final_BChw: Tensor,
        specs: Sequence[SignalSpec],
        pool: Executor,
        threads: int,
    ) -> None:
        self._pool, self._threads = pool, threads
        self._size = (label_BHW.shape[1], label_BHW.shape[2])
        self._classes = final_BChw.shape[1]
        self._label_BHW = np.ascontiguousarray(label_BHW.numpy(), dtype=np.uint8)
        self._final_BHW = self._whole(final_BChw)
        self._references: dict[tuple[int, int], tuple[Reference, Reference]] = {}
        self._kinds = sorted({spec.kind for spec in specs})
        self._kind_K = np.array([self._kinds.index(spec.kind) for spec in specs], dtype=np.int64)
        # torch compares a float32 map with the threshold in float32, too.
        self._threshold_K = np.array([spec.pixel_threshold for spec in specs], dtype=np.float32)
        self._edges_K = np.array([spec.edge_enhanced for spec in specs], dtype=np.bool_)
        self._found: dict[str, ExitPrediction] = {}

    def add(self, exit_id: str, logits_BChw: Tensor, *, confidence_map: bool) -> None:
        images, classes, *native = logits_BChw.shape
        shape = (native[0], native[1])
        at = _grid(logits_BChw, self._size)
        if shape not in self._references:
            self._references[shape] = (
                Reference(self._label_BHW, cell_counts(at, self._label_BHW, classes)),
                Reference(self._final_BHW, cell_counts(at, self._final_BHW, classes)),
            )
        labels, finals = self._references[shape]
        tally = Tally(
            hits_BC=np.zeros((images, classes), dtype=np.int32),
            predicted_BC=np.zeros((images, classes), dtype=np.int32),
            agreement_B=np.zeros(images, dtype=np.int32),
            leader_Bhw=np.empty((images, *shape), dtype=np.uint8),
        )
        share_BK = np.empty((images, len(self._kind_K)), dtype=np.float32)
        confidences = [CONFIDENCES[kind](logits_BChw) for kind in self._kinds]
        confidence_NBhw = np.empty((len(self._kinds), images, *shape), dtype=np.float32)
        for confidence_Bhw, confidence in zip(confidence_NBhw, confidences, strict=True):
            confidence_Bhw[:] = confidence.numpy()
        logits_BhwC = _channels_last(logits_BChw)

        def measure(start: int, stop: int) -> None:
            doubtful_D3, listed = count(start, stop, logits_BhwC, at, labels, finals, tally)
            shares(
                *(start, stop, confidence_NBhw, tally.leader_Bhw),
                *(self._kind_K, self._threshold_K, self._edges_K, share_BK),
            )
            self._decide(start, stop, logits_BChw, doubtful_D3, listed, tally)

        self._divide(measure, images)
        confidence_255 = _in_255ths(top1_confidence(logits_BChw)) if confidence_map else None
        self._found[exit_id] = ExitPrediction(
            intersection=tally.hits_BC,
            predicted=tally.predicted_BC,
            agreement=tally.agreement_B,
            signals=share_BK,
            label_map=tally.leader_Bhw,
            confidence_map=None if confidence_255 is None else confidence_255.numpy(),
        )

    def collect(self) -> dict[str, ExitPrediction]:
        return self._found

    def _decide(
        self,
        start: int,
        stop: int,
        logits_BChw: Tensor,
        doubtful_D3: NDArray[np.int64],
        listed: bool,
        tally: Tally,
    ) -> None:
        """Add what torch says of the pixels that were too close to call."""
        if not listed:
            for counts in (tally.hits_BC, tally.predicted_BC, tally.agreement_B):
                counts[start:stop] = 0
            everywhere = np.ones((stop - start, *self._size), dtype=np.bool_)
            doubtful_D3 = np.argwhere(everywhere) + np.array([start, 0, 0])
        for i in np.unique(doubtful_D3[:, 0]):
            rows, columns = doubtful_D3[doubtful_D3[:, 0] == i, 1:].T
            class_HW = upsampled_classes(logits_BChw[i : i + 1], self._size)[0].numpy()
            found_D, label_D = class_HW[rows, columns], self._label_BHW[i, rows, columns]
            for tally_C, counted_D in (
                (tally.predicted_BC[i], label_D != VOID),
                (tally.hits_BC[i], label_D == found_D),
            ):
                tally_C += np.bincount(found_D[counted_D], minlength=self._classes)
            tally.agreement_B[i] += (found_D == self._final_BHW[i, rows, columns]).sum()

    def _whole(self, logits_BChw: Tensor) -> NDArray[np.uint8]:
        logits_BhwC = _channels_last(logits_BChw)
        images = len(logits_BhwC)
        class_BHW = np.empty((images, *self._size), dtype=np.uint8)
        at = _grid(logits_BChw, self._size)
        self._divide(lambda a, b: upsample(a, b, logits_BhwC, at, class_BHW), images)
        for i in np.unique(np.argwhere(class_BHW == VOID)[:, 0]):
            class_BHW[i] = upsampled_classes(logits_BChw[i : i + 1], self._size)[0].numpy()
        return class_BHW

    def _divide(self, work: Callable[[int, int], None], images: int) -> None:
        edges = np.linspace(0, images, min(self._threads, images) + 1).astype(int).tolist()
        list(self._pool.map(work, edges[:-1], edges[1:]))


def _grid(logits_BChw: Tensor, size: tuple[int, int]) -> Grid:
    """The interpolation that `upsampled_classes` uses on these logits."""
    last = logits_BChw.is_contiguous(memory_format=torch.channels_last)
    _, classes, *native = logits_BChw.shape
    return Grid(*(_axis(native[axis], size[axis], axis, classes, last) for axis in range(2)))


@lru_cache(maxsize=256)
def _axis(native: int, full: int, axis: int, classes: int, channels_last: bool) -> Axis:
    """Positions and weights along an axis, taken from torch.

    They hang on how its kernel for a layout rounds, and interpolating ones tells them exactly: a
    pixel has a part in two neighbours at most, and of three in a row no two are alike modulo 3.
    """
    shape = (1, classes, native, 1) if axis == 0 else (1, classes, 1, native)
    full_shape = (full, 1) if axis == 0 else (1, full)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    part_3F = np.empty((3, full), dtype=np.float32)
    for residue in range(3):
        ones = (torch.arange(native) % 3 == residue).float().view(shape[0], 1, *shape[2:])
        ones = ones.expand(shape).contiguous(memory_format=layout)
        whole = F.interpolate(ones, size=full_shape, mode="bilinear", align_corners=False)
        part_3F[residue] = whole[0, 0].flatten().numpy()
    source = (np.arange(full) + 0.5) * native / full - 0.5
    near = np.clip(np.rint(source).astype(np.int64), 0, native - 1)
    pixels = np.arange(full)
    before = part_3F[(near - 1) % 3, pixels] > 0
    position = np.where(before & (near > 0), near - 1, near)
    weight = part_3F[(position + 1) % 3, pixels]
    return Axis(np.searchsorted(position, np.arange(native + 1)), weight)


def _channels_last(logits_BChw: Tensor) -> NDArray[np.float32]:
    return logits_BChw.float().permute(0, 2, 3, 1).contiguous().numpy()


def _histogram(class_BHW: Tensor, classes: int) -> Tensor:
    """(B, classes) int32. Unlike bincount it does not wait for the device."""
    flat = class_BHW.flatten(1)
    counts = torch.zeros(len(flat), classes, dtype=torch.int32, device=flat.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))


def _in_255ths(confidence: Tensor) -> Tensor:
    return (confidence * 255).round().to(torch.uint8)
