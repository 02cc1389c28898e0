"""What exits predicted on a batch, counted by compiled loops on the CPU.

Shapes: B images, C classes, K signals, H×W pixels of the input, h×w native output pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mess.common.metrics import VOID
from mess.common.resizing import Grid
from mess.prediction.counting import Reference, Tally, cell_counts, classify, count
from mess.prediction.statistics import ExitPrediction, in_255ths
from mess.signals.maps import PixelMaps
from mess.signals.measure import CompiledMeasure
from mess.signals.signal import Finish, Signal

_PENDING_BYTES = 2**25
"""Logits at native resolution that may wait to be counted."""


class _Resolution(NamedTuple):
    """What exits of a resolution share."""

    grid: Grid
    labels: Reference
    finals: Reference
    rights: Reference
    """Where the final exit is right; void elsewhere."""


class _Pending(NamedTuple):
    """An exit that is still to be counted."""

    exit_id: str
    logits_BhwC: NDArray[np.float32]
    signals: Finish
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
        against_final: bool = False,
    ) -> None:
        """`against_final` puts the final exit's classes in the place of labels, not of void."""
        self._pool, self._threads = pool, threads
        self._size = (label_BHW.shape[1], label_BHW.shape[2])
        self._classes = final_BChw.shape[1]
        # The compiled loops do not check: they would count it in another class.
        strange = label_BHW[(label_BHW >= self._classes) & (label_BHW != VOID)]
        if strange.numel():
            raise ValueError(f"label {int(strange[0])}; the exits have {self._classes} classes")
        self._label_BHW = np.ascontiguousarray(label_BHW.numpy(), dtype=np.uint8)
        self._final_BHW = self._classified(_channels_last(final_BChw))
        if against_final:
            void_BHW = self._label_BHW == VOID
            self._label_BHW = np.where(void_BHW, np.uint8(VOID), self._final_BHW)
        right_BHW = self._final_BHW == self._label_BHW
        self._right_BHW = np.where(right_BHW, self._label_BHW, np.uint8(VOID))
        self._resolutions: dict[tuple[int, int], _Resolution] = {}
        self._measure = CompiledMeasure(wanted, self._size)
        self._found: dict[str, ExitPrediction] = {}
        self._pending: list[_Pending] = []
        self._pending_bytes = 0

    def add(self, exit_id: str, logits_BChw: Tensor, *, confidence_map: bool) -> None:
        maps = PixelMaps(logits_BChw)
        pending = _Pending(
            exit_id,
            _channels_last(logits_BChw),
            self._measure.begin(maps),
            in_255ths(maps.confidence("top1")).numpy() if confidence_map else None,
        )
        self._pending.append(pending)
        self._pending_bytes += logits_BChw.nbytes
        if self._pending_bytes > _PENDING_BYTES:
            self._count_pending()

    def collect(self) -> dict[str, ExitPrediction]:
        self._count_pending()
        return self._found

    def _count_pending(self) -> None:
        """Count, every exit on a thread of its own.

        Not exit by exit: the threads of torch keep their cores busy for a while after each of its
        operations, and two threads would then be slower than one.
        """
        # Before the threads start, which then only read `_resolutions`.
        for pending in self._pending:
            self._prepare(pending.logits_BhwC.shape[1:3])
        found = self._pool.map(self._counted, self._pending)
        names = [pending.exit_id for pending in self._pending]
        self._found |= dict(zip(names, found, strict=True))
        self._pending, self._pending_bytes = [], 0

    def _prepare(self, native: tuple[int, int]) -> None:
        if native in self._resolutions:
            return
        grid = Grid.of(native, self._size)
        starts = grid.rows.start, grid.columns.start
        labels, finals, rights = (
            Reference(class_BHW, cell_counts(*starts, class_BHW, self._classes))
            for class_BHW in (self._label_BHW, self._final_BHW, self._right_BHW)
        )
        self._resolutions[native] = _Resolution(grid, labels, finals, rights)

    def _counted(self, pending: _Pending) -> ExitPrediction:
        images, *native, classes = pending.logits_BhwC.shape
        at = self._resolutions[native[0], native[1]]
        tally = Tally(
            hits_BC=np.zeros((images, classes), dtype=np.int32),
            predicted_BC=np.zeros((images, classes), dtype=np.int32),
            agreement_B=np.zeros(images, dtype=np.int32),
            lost_B=np.zeros(images, dtype=np.int32),
            leader_Bhw=np.empty((images, *native), dtype=np.uint8),
        )
        count(pending.logits_BhwC, at.grid, at.labels, at.finals, at.rights, tally)
        return ExitPrediction(
            intersection=tally.hits_BC,
            predicted=tally.predicted_BC,
            agreement=tally.agreement_B,
            lost=tally.lost_B,
            signals=pending.signals(tally.leader_Bhw),
            label_map=tally.leader_Bhw,
            confidence_map=pending.confidence_map,
        )

    def _classified(self, logits_BhwC: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The class of every pixel, (B, H, W)."""
        images, *native, _ = logits_BhwC.shape
        grid = Grid.of((native[0], native[1]), self._size)
        class_BHW = np.empty((images, *self._size), dtype=np.uint8)
        edges = np.linspace(0, images, min(self._threads, images) + 1).astype(int).tolist()
        work = self._pool.map(
            lambda start, stop: classify(start, stop, logits_BhwC, grid, class_BHW),
            edges[:-1],
            edges[1:],
        )
        # To wait for the threads, and to raise what they raised.
        list(work)
        return class_BHW


def _channels_last(logits_BChw: Tensor) -> NDArray[np.float32]:
    return logits_BChw.float().permute(0, 2, 3, 1).contiguous().numpy()
