"""What exits predicted on a batch, counted by compiled loops on the CPU.

Shapes: B images, C classes, K signals, H×W pixels of the input, h×w native output pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mess.common.metrics import VOID
from mess.prediction.interpolation import classes_at, grid_of
from mess.prediction.kernels import Reference, Tally, cell_counts, count, shares, upsample
from mess.prediction.statistics import ExitPrediction, in_255ths
from mess.signals.builtin import ConfidentShare
from mess.signals.maps import PixelMaps
from mess.signals.measure import measure
from mess.signals.signal import NATIVE, Signal

_PENDING_BYTES = 2**25
"""Logits at native resolution that may wait to be counted."""


class _Pending(NamedTuple):
    """An exit that is still to be counted."""

    exit_id: str
    logits_BChw: Tensor
    logits_BhwC: NDArray[np.float32]
    confidences: list[NDArray[np.float32]]
    other_signals: NDArray[np.float32]
    confidence_map: NDArray[np.uint8] | None


class CompiledStatistics:
    """On the CPU, by the threads of `pool`, several exits at a time."""

    def __init__(
        self,
        label_BHW: Tensor,
        final_BChw: Tensor,
        wanted: Sequence[Signal],
        pool: Executor,
        threads: int,
    ) -> None:
        self._pool, self._threads = pool, threads
        self._size = (label_BHW.shape[1], label_BHW.shape[2])
        self._classes = final_BChw.shape[1]
        # The compiled loops do not check: they would count it in another class.
        strange = label_BHW[(label_BHW >= self._classes) & (label_BHW != VOID)]
        if strange.numel():
            raise ValueError(f"label {int(strange[0])}; the exits have {self._classes} classes")
        self._label_BHW = np.ascontiguousarray(label_BHW.numpy(), dtype=np.uint8)
        self._final_BHW = self._whole(final_BChw)
        self._references: dict[tuple[int, int], tuple[Reference, Reference]] = {}
        # Shares are by far the most; what else there is, torch computes.
        shares = [s for s in wanted if isinstance(s, ConfidentShare) and s.resolution == NATIVE]
        self._others = [signal for signal in wanted if signal not in shares]
        self._shares_K = np.array([signal in shares for signal in wanted], dtype=np.bool_)
        self._kinds = sorted({share.confidence for share in shares})
        self._kind_K = np.array([self._kinds.index(s.confidence) for s in shares], dtype=np.int64)
        # torch compares a float32 map with the threshold in float32, too.
        self._threshold_K = np.array([s.pixel_threshold for s in shares], dtype=np.float32)
        self._edges_K = np.array([s.edge_enhanced for s in shares], dtype=np.bool_)
        self._found: dict[str, ExitPrediction] = {}
        self._pending: list[_Pending] = []
        self._pending_bytes = 0

    def add(self, exit_id: str, logits_BChw: Tensor, *, confidence_map: bool) -> None:
        maps = PixelMaps(logits_BChw)
        pending = _Pending(
            exit_id,
            logits_BChw,
            _channels_last(logits_BChw),
            [maps.confidence(kind).numpy() for kind in self._kinds],
            measure(maps, self._others, self._size).numpy(),
            in_255ths(maps.confidence("top1")).numpy() if confidence_map else None,
        )
        self._pending.append(pending)
        self._pending_bytes += logits_BChw.nbytes
        if self._pending_bytes > _PENDING_BYTES:
            self._measure_pending()

    def collect(self) -> dict[str, ExitPrediction]:
        self._measure_pending()
        return self._found

    def _measure_pending(self) -> None:
        """Count, every exit on a thread of its own.

        Not exit by exit: the threads of torch keep their cores busy for a while after each of its
        operations, and two threads would then be slower than one.
        """
        for pending in self._pending:
            self._prepare(pending.logits_BChw)
        found = self._pool.map(self._measure, self._pending)
        names = [pending.exit_id for pending in self._pending]
        self._found |= dict(zip(names, found, strict=True))
        self._pending, self._pending_bytes = [], 0

    def _prepare(self, logits_BChw: Tensor) -> None:
        """What exits of a resolution share."""
        shape = (logits_BChw.shape[2], logits_BChw.shape[3])
        if shape not in self._references:
            at = grid_of(logits_BChw, self._size)
            self._references[shape] = (
                Reference(self._label_BHW, cell_counts(at, self._label_BHW, self._classes)),
                Reference(self._final_BHW, cell_counts(at, self._final_BHW, self._classes)),
            )

    def _measure(self, pending: _Pending) -> ExitPrediction:
        logits_BChw = pending.logits_BChw
        images, classes, *native = logits_BChw.shape
        shape = (native[0], native[1])
        labels, finals = self._references[shape]
        tally = Tally(
            hits_BC=np.zeros((images, classes), dtype=np.int32),
            predicted_BC=np.zeros((images, classes), dtype=np.int32),
            agreement_B=np.zeros(images, dtype=np.int32),
            leader_Bhw=np.empty((images, *shape), dtype=np.uint8),
        )
        share_BK = np.empty((images, len(self._kind_K)), dtype=np.float32)
        confidence_NBhw = np.empty((len(self._kinds), images, *shape), dtype=np.float32)
        for confidence_Bhw, confidence in zip(confidence_NBhw, pending.confidences, strict=True):
            confidence_Bhw[:] = confidence
        at = grid_of(logits_BChw, self._size)
        doubtful_D3 = count(pending.logits_BhwC, at, labels, finals, tally)
        kinds = self._kind_K, self._threshold_K, self._edges_K
        shares(confidence_NBhw, tally.leader_Bhw, *kinds, share_BK)
        self._decide(logits_BChw, doubtful_D3, tally)
        signal_BK = np.empty((images, len(self._shares_K)), dtype=np.float32)
        signal_BK[:, self._shares_K] = share_BK
        signal_BK[:, ~self._shares_K] = pending.other_signals
        return ExitPrediction(
            intersection=tally.hits_BC,
            predicted=tally.predicted_BC,
            agreement=tally.agreement_B,
            signals=signal_BK,
            label_map=tally.leader_Bhw,
            confidence_map=pending.confidence_map,
        )

    def _decide(self, logits_BChw: Tensor, doubtful_D3: NDArray[np.int32], tally: Tally) -> None:
        """Add what torch says of the pixels that were too close to call."""
        if not len(doubtful_D3):
            return
        image_D, row_D, column_D = doubtful_D3.T
        label_D = self._label_BHW[image_D, row_D, column_D]
        final_D = self._final_BHW[image_D, row_D, column_D]
        found_D = classes_at(logits_BChw, self._size, doubtful_D3)
        valid_D = label_D != VOID
        np.add.at(tally.predicted_BC, (image_D[valid_D], found_D[valid_D]), 1)
        hit_D = label_D == found_D
        np.add.at(tally.hits_BC, (image_D[hit_D], found_D[hit_D]), 1)
        np.add.at(tally.agreement_B, image_D, found_D == final_D)

    def _whole(self, logits_BChw: Tensor) -> NDArray[np.uint8]:
        logits_BhwC = _channels_last(logits_BChw)
        images = len(logits_BhwC)
        class_BHW = np.empty((images, *self._size), dtype=np.uint8)
        at = grid_of(logits_BChw, self._size)
        self._divide(lambda a, b: upsample(a, b, logits_BhwC, at, class_BHW), images)
        doubtful_D3 = np.argwhere(class_BHW == VOID)
        class_BHW[tuple(doubtful_D3.T)] = classes_at(logits_BChw, self._size, doubtful_D3)
        return class_BHW

    def _divide(self, work: Callable[[int, int], None], images: int) -> None:
        edges = np.linspace(0, images, min(self._threads, images) + 1).astype(int).tolist()
        list(self._pool.map(work, edges[:-1], edges[1:]))


def _channels_last(logits_BChw: Tensor) -> NDArray[np.float32]:
    return logits_BChw.float().permute(0, 2, 3, 1).contiguous().numpy()
