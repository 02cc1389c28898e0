"""The space of a search as a sampler sees it: configurations as values of named axes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.goal import Goal
from mess.search.problem.settings import Anytime, InputDependent
from mess.search.problem.space import count_choices, count_configurations, describe_space
from mess.search.problem.thresholds import grid, grid_size, thresholds_of
from mess.search.sampled.score import Score, score_of

_NEAR = 0.1
"""Standard deviation of a small step along an axis, as a share of its length."""

Params = dict[str, Any]
"""A value for each axis of a space, by name."""


class Axis(NamedTuple):
    """A parameter: whole numbers from `low` to `high`, or where that is None a share in [0, 1].

    Neighbouring numbers are alike where it is `ordered`.
    """

    low: int = 0
    high: int | None = None
    ordered: bool = True

    def neighbour(self, value: float, rng: np.random.Generator) -> float:
        """Half of the time a small step from `value`, otherwise anything; it may be `value`."""
        near = self.ordered and rng.random() < 0.5
        if self.high is None:
            moved = value + rng.normal(0.0, _NEAR) if near else rng.random()
            return float(min(max(moved, 0.0), 1.0))
        if not near:
            return int(rng.integers(self.low, self.high + 1))
        length = self.high - self.low
        step = max(1, round(abs(rng.normal(0.0, _NEAR * length)))) * int(rng.choice((-1, 1)))
        return int(min(max(value + step, self.low), self.high))


class Space(ABC):
    """Configurations as values of `axes`: which exits there are, in every setting.

    `exits` is their number and `exit-0`, `exit-1`, ... are the last, the one before it and so on,
    each numbered by depth, so that near numbers are near points. Every value of the axes is a
    configuration: exits are put in order of depth, and of two at one point the one with the smaller
    number stays. What goes beyond `exits` does not matter; it is there because samplers learn less
    from parameters that come and go. A setting adds what early exits have besides.

    configurations: how many there are.
    """

    configurations: int

    def __init__(self, goal: Goal) -> None:
        self.goal, tables = goal, goal.tables
        by_depth = np.argsort(tables.point, kind="stable").tolist()
        answering = set(goal.setting.answering(tables).tolist())
        self.lasts = [exit_ for exit_ in by_depth if exit_ in answering]
        self.early = [
            exit_
            for exit_ in by_depth
            if tables.point[exit_] < tables.points and self._may_be_early(exit_)
        ]
        # At most one exit a point, so no more than there are points with one.
        most = min(_most_early(goal), len({int(tables.point[exit_]) for exit_ in self.early}))
        self.axes = {"exits": Axis(1, most + 1), "exit-0": Axis(0, len(self.lasts) - 1)}
        for slot in range(1, most + 1):
            self.axes[f"exit-{slot}"] = Axis(0, len(self.early) - 1)
            self.axes |= self._axes_of_early(slot)

    def decode(self, params: Mapping[str, Any]) -> Configuration:
        """The configuration that values of the axes stand for."""
        point, at = self.goal.tables.point, {}
        for slot in range(params["exits"]):
            exit_ = (self.early if slot else self.lasts)[params[f"exit-{slot}"]]
            at.setdefault(int(point[exit_]), exit_)
        *shallow, last = (at[depth] for depth in sorted(at))
        # That of `exit-0` need not be the deepest: it is early then, or left out if it cannot be.
        early = [exit_ for exit_ in shallow if exit_ in self.early]
        slots = range(len(early), 0, -1)
        choices = (
            self._early_choice(exit_, len(early), slot, params)
            for slot, exit_ in zip(slots, early, strict=True)
        )
        return (*choices, Choice(last))

    def encode(self, configuration: Configuration) -> Params:
        """The values of a configuration of the space; raises ValueError for what is none."""
        *early, last = configuration
        params: Params = {"exits": len(configuration), "exit-0": self.lasts.index(last.exit)}
        for slot, choice in enumerate(reversed(early), 1):
            params[f"exit-{slot}"] = self.early.index(choice.exit)
            params |= self._params_of_early(choice, len(early), slot)
        return params

    def contains(self, configuration: Configuration) -> bool:
        """Whether a configuration belongs to the space."""
        try:
            params = self.encode(configuration)
        except (KeyError, TypeError, ValueError):
            return False
        return params.keys() <= self.axes.keys() and self.decode(params) == configuration

    def order(self, configuration: Configuration) -> int:
        """The last part of a `Rank`: fewer exits first, then lexicographic, as one number."""
        *early, last = configuration
        order = len(configuration)
        for choice in early:
            order = order * self.goal.tables.exits + choice.exit
            order = self._order_of_early(order, choice, len(early))
        return order * self.goal.tables.exits + last.exit

    def score(self, configuration: Configuration) -> Score:
        """How good a configuration of the space is."""
        return score_of(self.goal, configuration, self.order(configuration))

    def neighbour(self, params: Params, rng: np.random.Generator) -> Params:
        """`params` with one of them moved."""
        # An axis with a single value cannot be moved along.
        names = [name for name, axis in self.axes.items() if axis.low != axis.high]
        name = names[rng.integers(len(names))]
        return params | {name: self.axes[name].neighbour(params[name], rng)}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The space in words and numbers, for `result.json`."""

    def improved(self, configuration: Configuration) -> Configuration:
        """The best of what differs from a configuration in single choices that are cheap to try."""
        return configuration

    def _may_be_early(self, exit_: int) -> bool:
        return True

    def _axes_of_early(self, slot: int) -> dict[str, Axis]:
        return {}

    def _early_choice(self, exit_: int, early: int, slot: int, params: Mapping[str, Any]) -> Choice:
        """The choice of one of `early` early exits."""
        return Choice(exit_)

    def _params_of_early(self, choice: Choice, early: int, slot: int) -> Params:
        return {}

    def _order_of_early(self, order: int, choice: Choice, early: int) -> int:
        return order


class AnytimeSpace(Space):
    """Exits alone, before the network's own head."""

    def __init__(self, goal: Goal) -> None:
        super().__init__(goal)
        self.configurations = count_choices(goal.tables, _most_early(goal) + 1)

    def describe(self) -> dict[str, Any]:
        max_exits, metric = self.goal.request.max_exits, self.goal.front_metric
        return describe_space(self.goal, max_exits=max_exits, checkpoint_metric=metric)


class InputDependentSpace(Space):
    """Every early exit has a signal and a threshold besides.

    `signal-i` and `share-i` belong to `exit-i`; a share is a place among the thresholds, whose
    number differs between exits and with how many exits there are.
    """

    def __init__(self, goal: Goal) -> None:
        tables = goal.tables
        self.signals = len(tables.signal_names)
        most = _most_early(goal) if self.signals else 0
        self.thresholds = {
            early: thresholds_of(tables, grid_size(early, goal.request.thresholds))
            for early in range(1, most + 1)
        }
        super().__init__(goal)
        self.configurations = tables.exits + sum(
            count_configurations(tables, steps, early) for early, steps in self.thresholds.items()
        )

    def describe(self) -> dict[str, Any]:
        request = self.goal.request
        sizes = {early: grid_size(early, request.thresholds) for early in self.thresholds}
        return describe_space(
            self.goal,
            max_exits=request.max_exits,
            signals=list(self.goal.tables.signal_names),
            thresholds={str(early): size or "all" for early, size in sizes.items()},
        )

    def improved(self, configuration: Configuration) -> Configuration:
        """The threshold of each early exit in turn moved to its best, the others as they are."""
        best, early = self.score(configuration), len(configuration) - 1
        for position in range(early):
            choice = configuration[position]
            for value in grid(self._values(choice, early), self.goal.request.thresholds):
                moved = choice._replace(threshold=float(value))
                other = (*configuration[:position], moved, *configuration[position + 1 :])
                score = self.score(other)
                if score[:2] < best[:2]:
                    best, configuration = score, other
        return configuration

    def _may_be_early(self, exit_: int) -> bool:
        """Whether any signal of the exit differs between images."""
        return bool(self.thresholds) and bool(self.thresholds[1].number[exit_].any())

    def _axes_of_early(self, slot: int) -> dict[str, Axis]:
        signal = Axis(0, self.signals - 1, ordered=False)
        return {f"signal-{slot}": signal, f"share-{slot}": Axis()}

    def _early_choice(self, exit_: int, early: int, slot: int, params: Mapping[str, Any]) -> Choice:
        # A signal without thresholds at this exit stands for the next one that has some.
        signals = np.flatnonzero(self.thresholds[1].number[exit_])
        signal = int(signals[np.searchsorted(signals, params[f"signal-{slot}"]) % len(signals)])
        values = self.thresholds[early].values[exit_][signal]
        step = min(int(params[f"share-{slot}"] * len(values)), len(values) - 1)
        return Choice(exit_, signal, float(values[step]))

    def _params_of_early(self, choice: Choice, early: int, slot: int) -> Params:
        # The middle of a step, which no rounding moves to the next when it is decoded.
        share = (self._step(choice, early) + 0.5) / len(self._values(choice, early))
        return {f"signal-{slot}": choice.signal, f"share-{slot}": share}

    def _order_of_early(self, order: int, choice: Choice, early: int) -> int:
        # One base for the thresholds of all exits: with several the order would not be
        # lexicographic.
        steps = int(self.thresholds[early].number.max())
        order = (order * self.signals + (choice.signal or 0)) * steps
        return order + self._step(choice, early)

    def _values(self, choice: Choice, early: int) -> NDArray[np.float64]:
        """The thresholds of one of `early` early exits."""
        if choice.signal is None:
            raise ValueError(f"{choice} is not the last exit and needs a signal")
        return self.thresholds[early].values[choice.exit][choice.signal]

    def _step(self, choice: Choice, early: int) -> int:
        return self._values(choice, early).tolist().index(choice.threshold)


def _most_early(goal: Goal) -> int:
    """Early exits that the request and the points allow."""
    return min(goal.request.max_exits, goal.tables.points) - 1


SAMPLED_SPACES: dict[str, type[Space]] = {
    InputDependent.name: InputDependentSpace,
    Anytime.name: AnytimeSpace,
}
"""The settings that can be sampled; where one exit answers alone a scan is done at once."""
