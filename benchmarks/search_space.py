"""The space of a search as every baseline sees it, with the one evaluator that all of them share.

Arrays: E exits, I images, C classes, K signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.problem.costs import Ticks
from mess.search.problem.definition import Choice, Configuration, evaluate
from mess.search.problem.goal import Goal, miou_steps
from mess.search.problem.tables import Tables
from mess.search.problem.thresholds import Thresholds, grid_size, thresholds_of


class Candidate(NamedTuple):
    """A configuration in whole numbers: exits in order of depth, and for all but the last a signal
    and the position of its threshold among them.
    """

    exits: tuple[int, ...]
    signals: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()


class Figures(NamedTuple):
    """Cost in steps summed over the images, and mIoU in steps; see `mess.search.problem.goal`."""

    total: int
    miou: int


@dataclass(frozen=True, kw_only=True)
class Space:
    """Every choice of up to `max_exits` exits in order of depth, at most one a point.

    steps_by_early: thresholds by the number of early exits.
    exits_at: the exits of each point that has any, cheapest first, so that neighbours are alike.
    subsets: every choice of points, as positions in `exits_at`.
    label: shape (C,), labelled pixels.
    """

    goal: Goal
    steps_by_early: dict[int, Thresholds]
    exits_at: tuple[tuple[int, ...], ...]
    subsets: tuple[tuple[int, ...], ...]
    label: NDArray[np.int64]

    @classmethod
    def of(cls, goal: Goal) -> Space:
        """The space that the exhaustive search covers for an input-dependent `goal`."""
        tables, most = goal.tables, goal.request.max_exits
        steps_by_early = {
            early: thresholds_of(tables, grid_size(early, goal.request.thresholds))
            for early in range(1, most)
        }
        if any((steps.number == 0).any() for steps in steps_by_early.values()):
            raise ValueError("a signal is the same on all images and divides none of them")
        cheapest_first = np.argsort(goal.ticks[goal.request.target].exit, kind="stable")
        exits_at = tuple(
            tuple(int(exit_) for exit_ in cheapest_first if tables.point[exit_] == point)
            for point in np.unique(tables.point)
        )
        points = range(len(exits_at))
        return cls(
            goal=goal,
            steps_by_early=steps_by_early,
            exits_at=exits_at,
            subsets=tuple(s for n in range(1, most + 1) for s in combinations(points, n)),
            label=tables.label.sum(axis=0, dtype=np.int64),
        )

    @property
    def tables(self) -> Tables:
        """The statistics."""
        return self.goal.tables

    @property
    def cost(self) -> Ticks:
        """Costs in the metric that is minimised."""
        return self.goal.ticks[self.goal.request.target]

    def configurations(self, early: int) -> int:
        """Configurations with `early` early exits."""
        # Chains of so many early exits at the points so far, times their thresholds.
        chains, total = [1] + [0] * early, 0
        for exits in self.exits_at:
            total += chains[early] * len(exits)
            for length in range(early, 0, -1):
                thresholds = int(self.steps_by_early[early].number[list(exits)].sum())
                chains[length] += chains[length - 1] * thresholds
        return total

    @property
    def size(self) -> int:
        """Configurations in all."""
        return sum(self.configurations(early) for early in range(self.goal.request.max_exits))

    @property
    def genes(self) -> int:
        """Numbers that `decode` wants."""
        return 1 + 3 * len(self.exits_at)

    def decode(self, genes: Sequence[float]) -> Candidate:
        """The candidate that numbers in [0, 1) stand for; every one stands for one.

        The first chooses the points; then each point has its exit, signal and threshold, which
        wait unread while the point is not chosen.
        """
        points = self.subsets[int(genes[0] * len(self.subsets))]
        exits, signals, steps = [], [], []
        for point in points:
            exit_gene, signal_gene, threshold_gene = genes[1 + 3 * point : 4 + 3 * point]
            exit_ = self.exits_at[point][int(exit_gene * len(self.exits_at[point]))]
            exits.append(exit_)
            if point != points[-1]:
                number = self.steps_by_early[len(points) - 1].number[exit_]
                signal = int(signal_gene * len(number))
                signals.append(signal)
                steps.append(int(threshold_gene * number[signal]))
        return Candidate(tuple(exits), tuple(signals), tuple(steps))

    def evaluate(self, candidate: Candidate) -> Figures:
        """Cost and mIoU of a candidate, from integer sums over the images."""
        early = len(candidate.steps)
        left_by = [
            self.steps_by_early[early].bins[exit_, signal] > step
            for exit_, signal, step in zip(*candidate, strict=False)
        ]
        answer = np.full(self.tables.images, early)
        for position in reversed(range(early)):
            answer[left_by[position]] = position
        counts, miou = _sums(
            self.tables.intersection,
            self.tables.predicted,
            self.label,
            np.array(candidate.exits),
            answer,
        )
        paths = self.cost.paths(candidate.exits, candidate.signals)
        total = sum(int(count) * path for count, path in zip(counts, paths, strict=True))
        return Figures(total, miou_steps(miou))

    def meets(self, figures: Figures) -> bool:
        """Whether the mIoU that the goal asks for is reached."""
        return figures.miou >= self.goal.miou_limit

    def configuration(self, candidate: Candidate) -> Configuration:
        """The candidate with its thresholds as numbers."""
        values = self.steps_by_early[len(candidate.steps)].values if candidate.steps else []
        choices = [
            Choice(exit_, signal, float(values[exit_][signal][step]))
            for exit_, signal, step in zip(*candidate, strict=False)
        ]
        return (*choices, Choice(candidate.exits[-1]))


def check_evaluator(space: Space, seed: int, candidates: int = 200) -> None:
    """Compare `Space.evaluate` with the search's own definition on random candidates."""
    rng = np.random.default_rng(seed)
    for _ in range(candidates):
        candidate = space.decode(rng.random(space.genes).tolist())
        figures = space.evaluate(candidate)
        plain = evaluate(space.tables, space.goal.ticks, space.configuration(candidate))
        expected = Figures(plain.totals[space.cost.metric], miou_steps(plain.miou))
        if figures.total != expected.total or abs(figures.miou - expected.miou) > 1:
            raise AssertionError(f"{candidate}: {figures}, by the definition {expected}")


@njit(cache=True)
def _sums(intersection_EIC, predicted_EIC, label_C, exits, answer_I):
    """Images that each of `exits` answers, and the mIoU of the answers."""
    counts = np.zeros(len(exits), dtype=np.int64)
    hits_C, predicted_C = np.zeros_like(label_C), np.zeros_like(label_C)
    for i in range(len(answer_I)):
        counts[answer_I[i]] += 1
        exit_ = exits[answer_I[i]]
        for c in range(len(label_C)):
            hits_C[c] += intersection_EIC[exit_, i, c]
            predicted_C[c] += predicted_EIC[exit_, i, c]
    score, present = 0.0, 0
    for c in range(len(label_C)):
        union = label_C[c] + predicted_C[c] - hits_C[c]
        if union > 0:
            score += hits_C[c] / union
            present += 1
    return counts, score / present
