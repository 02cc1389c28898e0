"""Plain enumeration of a space in NumPy: the exhaustive search that one would write first.

All thresholds of a choice of exits at once. What each class gains from an exit is summed into the
cells that the thresholds divide the images into; running sums over the cells, along each early
exit's thresholds, then give the counts for every combination of thresholds. Laid out class by
class and computed in place, which was the fastest of seven ways to write it.

Arrays: C classes, I images, Q rows of counts; cells have one axis for each early exit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise, product

import numpy as np
from numpy.typing import NDArray
from search_space import Candidate, Figures, Space

from mess.search.problem.goal import MIOU_STEPS

Floats = NDArray[np.float64]
Prefix = tuple[tuple[int, int], ...]
"""Early exits in order of depth, each with its signal."""


class Enumeration:
    """Covers a space choice by choice and remembers the best candidate.

    cost_first: leave a choice of exits out where none of its thresholds costs as little as the best
        so far, before any mIoU is computed.
    """

    def __init__(self, space: Space, cost_first: bool) -> None:
        self.space = space
        self.cost_first = cost_first
        self.best: Figures | None = None
        self.candidate: Candidate | None = None
        self.configurations = 0
        tables = space.tables
        self._labelled = np.flatnonzero(space.label > 0)
        hits = tables.intersection.transpose(0, 2, 1)
        extra = tables.predicted.transpose(0, 2, 1) - hits
        # Rows: hits and extras of the labelled classes, then extras of the others. Sums of whole
        # numbers are exact in floating point.
        parts = (hits[:, self._labelled], extra[:, self._labelled], extra[:, space.label == 0])
        self._counts_EQI = np.concatenate(parts, axis=1).astype(np.float64)

    def prefixes(self, early: int) -> Iterator[Prefix]:
        """Every choice of `early` early exits with an exit behind them."""
        for points in combinations(self.space.exits_at[:-1], early):
            yield from product(*(self._with_signals(exits) for exits in points))

    def random_prefix(self, early: int, rng: np.random.Generator) -> Prefix:
        """One of `prefixes`, all equally likely."""
        choices = list(combinations(self.space.exits_at[:-1], early))
        weights = np.array([np.prod([len(exits) for exits in points]) for points in choices])
        points = choices[rng.choice(len(choices), p=weights / weights.sum())]
        options = [self._with_signals(exits) for exits in points]
        return tuple(option[rng.integers(len(option))] for option in options)

    def scan(self, prefix: Prefix) -> None:
        """Every threshold of a choice of early exits, with every exit behind them."""
        exits = [exit_ for exit_, _ in prefix]
        signals = tuple(signal for _, signal in prefix)
        deepest = self.space.tables.point[exits[-1]]
        settled, stay, cells = self._settle(prefix)
        for points in self.space.exits_at:
            for last in points:
                if self.space.tables.point[last] > deepest:
                    self._scan_last((*exits, last), signals, settled, stay, cells)

    def scan_whole(self) -> None:
        """The whole space."""
        for exit_ in range(self.space.tables.exits):
            candidate = Candidate((exit_,))
            self._keep(candidate, self.space.evaluate(candidate))
            self.configurations += 1
        for early in self.space.steps_by_early:
            for prefix in self.prefixes(early):
                self.scan(prefix)

    def _with_signals(self, exits: Iterable[int]) -> list[tuple[int, int]]:
        return [(exit_, k) for exit_ in exits for k in range(len(self.space.tables.signal_names))]

    def _settle(self, prefix: Prefix) -> tuple[Floats, list[NDArray[np.int64]], Cells]:
        """What a prefix fixes: counts if its last exit answered all that reach it, the number of
        images that stay behind each of its exits, and the cells.
        """
        steps, counts = self.space.steps_by_early[len(prefix)], self._counts_EQI
        total_Q = counts[prefix[0][0]].sum(axis=1)
        settled = total_Q.reshape(-1, *[1] * len(prefix))
        stay, cells = [], None
        for depth in range(1, len(prefix) + 1):
            bins = [steps.bins[exit_, signal] for exit_, signal in prefix[:depth]]
            sizes = [int(steps.number[exit_, signal]) for exit_, signal in prefix[:depth]]
            cells = Cells(bins, sizes)
            ones = np.ones((1, self.space.tables.images))
            stay.append(_padded(cells.staying(ones), len(prefix))[0].astype(np.int64))
            if depth < len(prefix):
                gain = counts[prefix[depth][0]] - counts[prefix[depth - 1][0]]
                settled = settled + _padded(cells.staying(gain), len(prefix))
        assert cells is not None
        return settled, stay, cells

    def _scan_last(
        self,
        exits: tuple[int, ...],
        signals: tuple[int, ...],
        settled: Floats,
        stay: list[NDArray[np.int64]],
        cells: Cells,
    ) -> None:
        space = self.space
        self.configurations += int(np.prod(cells.shape))
        paths = space.cost.paths(exits, signals)
        total = np.asarray(space.tables.images * paths[0])
        for staying, (path, deeper) in zip(stay, pairwise(paths), strict=True):
            total = total + staying * (deeper - path)
        if self.cost_first and self.best is not None and total.min() > self.best.total:
            return
        counts = cells.staying(self._counts_EQI[exits[-1]] - self._counts_EQI[exits[-2]])
        counts += settled
        miou = np.rint(self._score(counts) * MIOU_STEPS).astype(np.int64)
        meets = miou >= space.goal.miou_limit
        if not meets.any():
            return
        cheapest = total[meets].min()
        at = np.argmax(np.where(meets & (total == cheapest), miou, -1))
        steps = tuple(int(step) for step in np.unravel_index(at, cells.shape))
        self._keep(Candidate(exits, signals, steps), Figures(int(cheapest), int(miou.flat[at])))

    def _score(self, counts: Floats) -> Floats:
        """MIoU in every cell, from counts of shape (Q, ...) that are overwritten."""
        classes = len(self._labelled)
        hits, union, others = counts[:classes], counts[classes : 2 * classes], counts[2 * classes :]
        union += self.space.label[self._labelled].reshape(-1, *[1] * (counts.ndim - 1))
        hits /= union
        return hits.sum(axis=0) / (classes + (others > 0).sum(axis=0))

    def _keep(self, candidate: Candidate, figures: Figures) -> None:
        if not self.space.meets(figures):
            return
        if self.best is None or (figures.total, -figures.miou) < (self.best.total, -self.best.miou):
            self.best, self.candidate = figures, candidate


class Cells:
    """Images by how many thresholds of each early exit they reach.

    An image stays behind an exit at threshold t when its bin is at most t.
    """

    def __init__(self, bins: list[NDArray[np.int32]], sizes: list[int]) -> None:
        self.shape = tuple(sizes)
        stays = np.all([b < size for b, size in zip(bins, sizes, strict=True)], axis=0)
        cell = np.ravel_multi_index([b[stays] for b in bins], sizes)
        order = np.argsort(cell, kind="stable")
        self._images = np.flatnonzero(stays)[order]
        self._filled, self._starts = np.unique(cell[order], return_index=True)

    def staying(self, values_QI: Floats) -> Floats:
        """Sums over the images that stay behind all of the exits, shape (Q, thresholds ...)."""
        sums = np.zeros((len(values_QI), int(np.prod(self.shape))))
        if len(self._images):
            sums[:, self._filled] = np.add.reduceat(
                values_QI[:, self._images], self._starts, axis=1
            )
        sums = sums.reshape(-1, *self.shape)
        np.cumsum(sums, axis=-1, out=sums)
        for axis in range(1, sums.ndim - 1):
            slices = np.moveaxis(sums, axis, 0)
            for step in range(1, len(slices)):
                slices[step] += slices[step - 1]
        return sums


def seconds_per_configuration(
    enumeration: Enumeration, early: int, seconds: float, seed: int
) -> tuple[float, int]:
    """Time random choices of `early` early exits for at least `seconds`.

    Returns seconds per configuration covered, and how many were covered.
    """
    rng = np.random.default_rng(seed)
    before, start = enumeration.configurations, time.perf_counter()
    while time.perf_counter() - start < seconds:
        enumeration.scan(enumeration.random_prefix(early, rng))
    covered = enumeration.configurations - before
    return (time.perf_counter() - start) / covered, covered


def _padded(values: Floats, axes: int) -> Floats:
    """With axes of length 1 for the deeper exits."""
    return values.reshape(*values.shape, *[1] * (axes + 1 - values.ndim))
