"""The thresholds worth trying: only the order of an exit's signals matters."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.policy import threshold_between
from mess.search.tables import Tables


class Ladder(NamedTuple):
    """The thresholds of every exit and signal, ascending, and where each image stands among them.

    values: E × K arrays of thresholds, float64, each ascending, possibly empty.
    number: shape (E, K), how many there are.
    bins: shape (E, K, I), number of thresholds an image reaches: it leaves at threshold t exactly
        when t < bin.
    """

    values: list[list[NDArray[np.float64]]]
    number: NDArray[np.int64]
    bins: NDArray[np.int32]


def separating(signal: NDArray[np.float32]) -> NDArray[np.float64]:
    """Every threshold that divides the images differently, ascending; `signal` has shape (I,).

    Midway between neighbouring distinct values, so images with equal signals leave together and
    rounding on another runtime moves nobody. "Never" and "always" are left out: they equal
    instances with fewer exits.
    """
    distinct = np.unique(signal.astype(np.float64))
    middles = [threshold_between(lower, upper) for lower, upper in pairwise(distinct)]
    thresholds = np.array(middles, dtype=np.float64)
    separates = (distinct[:-1] < thresholds) & (thresholds <= distinct[1:])
    return thresholds[separates]


def grid(thresholds: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """At most `size` of `thresholds`: the quantiles (i + 1/2) / size, rounded down in rank."""
    count = len(thresholds)
    if count <= size:
        return thresholds
    return thresholds[(2 * np.arange(size) + 1) * count // (2 * size)]


def grid_size(early: int, thresholds: int) -> int | None:
    """Thresholds of each of `early` exits; None: all that separate the images.

    Two early exits have `thresholds` each. Three have fewer, so that every choice of exits has
    about as many combinations.
    """
    return None if early < 2 else max(1, round(thresholds ** (2 / early)))


def ladder(tables: Tables, size: int | None = None) -> Ladder:
    """All separating thresholds of the tables, or a grid of at most `size` an exit and signal."""
    signals = range(len(tables.signal_names))
    values = [
        [separating(tables.signals[exit_, :, signal]) for signal in signals]
        for exit_ in range(tables.exits)
    ]
    if size is not None:
        values = [[grid(thresholds, size) for thresholds in row] for row in values]
    shape = (tables.exits, len(tables.signal_names))
    number = np.zeros(shape, dtype=np.int64)
    bins = np.zeros((*shape, tables.images), dtype=np.int32)
    for exit_, row in enumerate(values):
        for signal, thresholds in enumerate(row):
            number[exit_, signal] = len(thresholds)
            observed = tables.signals[exit_, :, signal].astype(np.float64)
            bins[exit_, signal] = np.searchsorted(thresholds, observed, side="right")
    return Ladder(values, number, bins)
