"""Signals from the logits of an exit: as memoised, and as a module for export.

Shapes: B images, C classes, K signals, h×w pixels: native output resolution, or the input's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mess.errors import ConfigError
from mess.signals.maps import PixelMaps, interpolated
from mess.signals.registry import COMPILED
from mess.signals.signal import FULL, NATIVE, Finish, Signal


def measure(maps: PixelMaps, signals: Sequence[Signal], size: tuple[int, int]) -> Tensor:
    """All signals of one exit from its maps at native resolution, (B, K) float32.

    `size` is that of the input, H×W. Pixels that the ground truth marks void count too: labels do
    not exist at run time. Raises ConfigError for a signal of the user's own that fails.
    """
    logits_BChw = maps.logits_BChw
    if not signals:
        return logits_BChw.new_zeros(logits_BChw.shape[0], 0)
    by_resolution = {NATIVE: maps}
    if any(signal.resolution == FULL for signal in signals):
        by_resolution[FULL] = maps_at(FULL, logits_BChw, size)
    columns = [_values(signal, by_resolution[signal.resolution]) for signal in signals]
    return torch.stack(columns, dim=1).float()


class CompiledMeasure:
    """`measure` on the CPU, with compiled loops for the signals that have any."""

    def __init__(self, signals: Sequence[Signal], size: tuple[int, int]) -> None:
        self._size = size
        together: dict[tuple[type[Signal], str], list[int]] = {}
        for column, signal in enumerate(signals):
            together.setdefault((type(signal), signal.resolution), []).append(column)
        self._compiled = [
            (columns, COMPILED[key]([signals[column] for column in columns]))
            for key, columns in together.items()
            if key in COMPILED
        ]
        done = {column for columns, _ in self._compiled for column in columns}
        self._rest = [column for column in range(len(signals)) if column not in done]
        self._others = [signals[column] for column in self._rest]

    def begin(self, maps: PixelMaps) -> Finish:
        """Do torch's part here; what is returned does the rest without torch, in any thread."""
        others_BK = measure(maps, self._others, self._size).numpy()
        parts = [(columns, compiled.begin(maps)) for columns, compiled in self._compiled]
        count = len(self._rest) + sum(len(columns) for columns, _ in parts)

        def finish(label_Bhw: NDArray[np.uint8]) -> NDArray[np.float32]:
            signal_BK = np.empty((len(label_Bhw), count), dtype=np.float32)
            signal_BK[:, self._rest] = others_BK
            for columns, part in parts:
                signal_BK[:, columns] = part(label_Bhw)
            return signal_BK

        return finish


def _values(signal: Signal, maps: PixelMaps) -> Tensor:
    if not signal.is_own:
        return signal.of(maps)
    images = maps.logits_BChw.shape[0]
    try:
        values = signal.of(maps)
    except Exception as error:  # whatever a class of the user's own raises
        raise ConfigError(
            f"the signal {signal.name!r} fails: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(values, Tensor) and values.shape == (images,)):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
        raise ConfigError(
            f"the signal {signal.name!r} gives {found} for {images} images; it must give one "
            f"number an image, a tensor of shape ({images},)."
        )
    return values


def maps_at(
    resolution: str, logits_BChw: Tensor, size: tuple[int, int], previous_Bhw: Tensor | None = None
) -> PixelMaps:
    """The maps that a signal of a resolution sees, for an input of `size`."""
    if resolution == NATIVE:
        return PixelMaps(logits_BChw, previous_Bhw=previous_Bhw)
    stride = max(math.ceil(size[i] / logits_BChw.shape[2 + i]) for i in (0, 1))
    return PixelMaps(interpolated(logits_BChw, size), stride=stride, previous_Bhw=previous_Bhw)


class SignalModule(nn.Module):
    """One signal as a module for export: logits (B, C, h, w) to (B,) float32.

    A signal that compares exits takes the label map of the one before, (B, h', w') uint8, as well.
    """

    def __init__(self, signal: Signal, size: tuple[int, int]) -> None:
        super().__init__()
        self.signal, self._size = signal, size

    def forward(self, logits_BChw: Tensor, previous_Bhw: Tensor | None = None) -> Tensor:
        maps = maps_at(self.signal.resolution, logits_BChw, self._size, previous_Bhw)
        return self.signal.of(maps).float()
