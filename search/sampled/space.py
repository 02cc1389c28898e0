"""The space of a search as a sampler sees it: named choices, and how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.problem.evaluate import Choice, Configuration, Evaluation
from mess.search.problem.goal import Goal, Rank, miou_steps
from mess.search.problem.ladder import grid, grid_size, ladder
from mess.search.problem.optimum import quality_steps
from mess.search.problem.request import ANYTIME
from mess.search.problem.space import count_choices, count_configurations

if TYPE_CHECKING:
    import optuna


_NEAR = 0.1
"""Standard deviation of a small step along an axis, as a share of its length."""


Params = dict[str, Any]


class Axis(NamedTuple):
    """A parameter: whole numbers from `low` to `high`, or where that is None a share in [0, 1].

    Neighbouring numbers are alike where it is `ordered`.
    """

    low: int = 0
    high: int | None = None
    ordered: bool = True

    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna import distributions

        if self.high is None:
            return distributions.FloatDistribution(0.0, 1.0)
        if self.ordered:
            return distributions.IntDistribution(self.low, self.high)
        return distributions.CategoricalDistribution(range(self.low, self.high + 1))

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


class Space:
    """Configurations as the parameters that a sampler sees.

    `exits` is their number and `exit-0`, `exit-1`, ... are the last, the one before it and so on,
    each numbered by depth, so that near numbers are near points. `signal-i` and `share-i` belong to
    `exit-i`; a share is a place on the ladder of thresholds, whose length differs between exits and
    with their number. Every value of the parameters is a configuration: exits are put in order of
    depth, and of two at one point the one with the smaller i stays. What goes beyond `exits` does
    not matter; it is there because samplers learn less from parameters that come and go.
    """

    def __init__(self, goal: Goal) -> None:
        self.goal, tables = goal, goal.tables
        self.anytime = goal.request.setting == ANYTIME
        signals = len(tables.signal_names)
        wanted = min(goal.request.max_exits, tables.points) - 1
        self.ladders = {
            early: ladder(tables, grid_size(early, goal.request.thresholds))
            for early in range(1, wanted + 1)
            if signals and not self.anytime
        }
        by_depth = np.argsort(tables.point, kind="stable").tolist()
        self.lasts = [tables.final] if self.anytime else by_depth
        self.early = [
            exit_
            for exit_ in by_depth
            if tables.point[exit_] < tables.points
            and (self.anytime or (self.ladders and self.ladders[1].number[exit_].any()))
        ]
        most = min(wanted, len({int(tables.point[exit_]) for exit_ in self.early}))
        self.axes = {"exits": Axis(1, most + 1), "exit-0": Axis(0, len(self.lasts) - 1)}
        for slot in range(1, most + 1):
            self.axes[f"exit-{slot}"] = Axis(0, len(self.early) - 1)
            if not self.anytime:
                self.axes[f"signal-{slot}"] = Axis(0, signals - 1, ordered=False)
                self.axes[f"share-{slot}"] = Axis()
        if self.anytime:
            self.configurations = count_choices(tables, wanted + 1)
        else:
            self.configurations = tables.exits + sum(
                count_configurations(tables, steps, early) for early, steps in self.ladders.items()
            )

    def decode(self, params: Mapping[str, Any]) -> Configuration:
        """The configuration that parameters stand for."""
        point, at = self.goal.tables.point, {}
        for slot in range(params["exits"]):
            exit_ = (self.early if slot else self.lasts)[params[f"exit-{slot}"]]
            at.setdefault(int(point[exit_]), exit_)
        *shallow, last = (at[depth] for depth in sorted(at))
        # The last exit of the parameters may not be the deepest, nor have signals that differ.
        early = [exit_ for exit_ in shallow if exit_ in self.early]
        if self.anytime:
            return (*(Choice(exit_) for exit_ in early), Choice(last))
        choices = []
        for slot, exit_ in zip(range(len(early), 0, -1), early, strict=True):
            signals = np.flatnonzero(self.ladders[1].number[exit_])
            signal = int(signals[np.searchsorted(signals, params[f"signal-{slot}"]) % len(signals)])
            values = self.ladders[len(early)].values[exit_][signal]
            step = min(int(params[f"share-{slot}"] * len(values)), len(values) - 1)
            choices.append(Choice(exit_, signal, float(values[step])))
        return (*choices, Choice(last))

    def encode(self, configuration: Configuration) -> Params:
        """The parameters of a configuration of the space."""
        *early, last = configuration
        params: Params = {"exits": len(configuration), "exit-0": self.lasts.index(last.exit)}
        for slot, choice in enumerate(reversed(early), 1):
            params[f"exit-{slot}"] = self.early.index(choice.exit)
            if not self.anytime:
                params[f"signal-{slot}"] = choice.signal
                values = self._values(choice, len(early))
                params[f"share-{slot}"] = (self._step(choice, len(early)) + 0.5) / len(values)
        return params

    def contains(self, configuration: Configuration) -> bool:
        """Whether a configuration belongs to the space."""
        try:
            params = self.encode(configuration)
        except (KeyError, TypeError, ValueError):
            return False
        return params.keys() <= self.axes.keys() and self.decode(params) == configuration

    def order(self, configuration: Configuration) -> int:
        """The last part of a `Rank`."""
        *early, last = configuration
        exits, signals = self.goal.tables.exits, len(self.goal.tables.signal_names)
        order = len(configuration)
        for choice in early:
            order = order * exits + choice.exit
            if not self.anytime:
                steps = int(self.ladders[len(early)].number.max())
                order = (order * signals + (choice.signal or 0)) * steps
                order += self._step(choice, len(early))
        return order * exits + last.exit

    def neighbour(self, params: Params, rng: np.random.Generator) -> Params:
        """`params` with one of them moved."""
        names = [name for name, axis in self.axes.items() if axis.low != axis.high]
        name = names[rng.integers(len(names))]
        return params | {name: self.axes[name].neighbour(params[name], rng)}

    def swept(self, configuration: Configuration) -> Configuration:
        """The threshold of each early exit in turn moved to its best, the others as they are."""
        best, early = score_of(self, configuration), 0 if self.anytime else len(configuration) - 1
        for position in range(early):
            choice = configuration[position]
            for value in grid(self._values(choice, early), self.goal.request.thresholds):
                moved = choice._replace(threshold=float(value))
                other = (*configuration[:position], moved, *configuration[position + 1 :])
                score = score_of(self, other)
                if score[:2] < best[:2]:
                    best, configuration = score, other
        return configuration

    def statement(self) -> dict[str, Any]:
        """The space in words and numbers, for `result.json`."""
        request, tables = self.goal.request, self.goal.tables
        space = {
            "statement": "every choice of up to max_exits exits, at most one a point, "
            + (
                "the last one the network's own head"
                if self.anytime
                else "the last at any point, with every signal of every early exit; with one early "
                "exit every distinct threshold, with more a grid of at most so many quantiles"
            ),
            "candidates": tables.exits,
            "points": tables.points,
            "images": tables.images,
            "max_exits": request.max_exits,
        }
        if self.anytime:
            return space | {"checkpoint_metric": self.goal.front_metric}
        sizes = {str(early): grid_size(early, request.thresholds) for early in self.ladders}
        return space | {
            "signals": list(tables.signal_names),
            "thresholds": {early: size or "all" for early, size in sizes.items()},
        }

    def _values(self, choice: Choice, early: int) -> NDArray[np.float64]:
        """The thresholds of one of `early` early exits."""
        if choice.signal is None:
            raise ValueError(f"{choice} is not the last exit and needs a signal")
        return self.ladders[early].values[choice.exit][choice.signal]

    def _step(self, choice: Choice, early: int) -> int:
        return self._values(choice, early).tolist().index(choice.threshold)


class Score(NamedTuple):
    """How good a configuration is: less is better, `violation` first and then `rank`.

    violation: sum of what is positive in `excess`; 0 where all limits are kept.
    cost, quality: as the front has them.
    excess: what breaks or keeps each limit, as a share of it, above 0 where it is broken.
    """

    violation: float
    rank: Rank
    cost: int
    quality: int
    excess: dict[str, float]


def score_of(space: Space, configuration: Configuration) -> Score:
    goal = space.goal
    evaluation = goal.evaluate(configuration)
    quality = quality_steps(goal, evaluation)
    excess = _excess(goal, evaluation)
    return Score(
        violation=sum(over for over in excess.values() if over > 0),
        rank=goal.rank(evaluation.totals, quality, space.order(configuration)),
        cost=evaluation.totals[goal.front_metric],
        quality=quality,
        excess=excess,
    )


def _excess(goal: Goal, evaluation: Evaluation) -> dict[str, float]:
    over = {
        metric: (evaluation.totals[metric] - limit, limit) for metric, limit in goal.limits.items()
    }
    if goal.miou_limit >= 0:
        over["accuracy"] = (goal.miou_limit - miou_steps(evaluation.miou), goal.miou_limit)
    for index, got in enumerate(goal.delivered(evaluation)):
        wanted = goal.checkpoints[index].miou
        over[f"checkpoint-{index}"] = (wanted - miou_steps(got), wanted)
    return {name: steps / max(limit, 1) for name, (steps, limit) in over.items()}
