"""The thresholds worth trying: only the order of an exit's signals matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.problem.tables import Tables
from mess.signals.decision import threshold_between


class Thresholds(NamedTuple):
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
    # In whole numbers, so that no rounding moves a rank.
    return thresholds[(2 * np.arange(size) + 1) * count // (2 * size)]


def grid_size(early: int, thresholds: int) -> int | None:
    """Thresholds of each of `early` exits; None: all that separate the images.

    Two early exits have `thresholds` each. Three have fewer, so that every choice of exits has
    about as many combinations.
    """
    return None if early < 2 else max(1, round(thresholds ** (2 / early)))


def thresholds_of(tables: Tables, size: int | None = None, *, shared: bool = False) -> Thresholds:
    """All separating thresholds of the tables, or a grid of at most `size` an exit and signal.

    `shared` gives all exits the same thresholds of a signal: the grid of all their values together.
    """
    signals = range(len(tables.signal_names))
    observed = [[tables.signals[exit_, :, k] for k in signals] for exit_ in range(tables.exits)]
    if not shared:
        return _thresholds(observed, lambda signal, _: _some(signal, size))
    # Nobody leaves at the last point, so what signals are there makes no threshold.
    early = tables.signals[tables.point < tables.points]
    common = [_some(early[:, :, k].ravel(), size) for k in signals]
    return _thresholds(observed, lambda _, k: common[k])


def pair_thresholds(tables: Tables, size: int | None = None, *, shared: bool = False) -> Thresholds:
    """The thresholds of a signal that compares exits; axis K is the exit before, by its index.

    Without thresholds where an exit cannot follow another, or is at the last point.
    """
    assert tables.pairs is not None
    nobody = np.zeros(0, dtype=np.float32)
    exits, follows = range(tables.exits), tables.follows
    observed = [[tables.pairs[a, b] if follows[a, b] else nobody for a in exits] for b in exits]
    if not shared:
        return _thresholds(observed, lambda signal, _: _some(signal, size))
    common, none = _some(tables.pairs[follows].ravel(), size), np.zeros(0, dtype=np.float64)
    return _thresholds(observed, lambda signal, _: common if len(signal) else none)


def _thresholds(
    observed: Sequence[Sequence[NDArray[np.float32]]],
    thresholds_of: Callable[[NDArray[np.float32], int], NDArray[np.float64]],
) -> Thresholds:
    """Of signals E × K, each of shape (I,) or empty, with the thresholds of each, given its k."""
    images = max((len(signal) for row in observed for signal in row), default=0)
    shape = (len(observed), len(observed[0]))
    values: list[list[NDArray[np.float64]]] = [[] for _ in observed]
    number = np.zeros(shape, dtype=np.int64)
    bins = np.zeros((*shape, images), dtype=np.int32)
    for exit_, row in enumerate(observed):
        for k, signal in enumerate(row):
            thresholds = thresholds_of(signal, k)
            values[exit_].append(thresholds)
            number[exit_, k] = len(thresholds)
            if len(signal):
                # As the decision compares: in float64, and a signal equal to a threshold leaves.
                exact = signal.astype(np.float64)
                bins[exit_, k] = np.searchsorted(thresholds, exact, side="right")
    return Thresholds(values, number, bins)


def _some(signal: NDArray[np.float32], size: int | None) -> NDArray[np.float64]:
    thresholds = separating(signal)
    return thresholds if size is None else grid(thresholds, size)
