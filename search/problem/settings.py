"""The settings: the ways in which an instance with several exits runs (MESS paper, Table 1).

One class each. It says what a configuration answers and costs, and what may be asked of it, so that
nothing else needs to know a setting by its name. How a setting's whole space is covered stands in
`mess.search.exact.cover`, how one that is too large is sampled in `mess.search.sampled.space`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mess.errors import ConfigError, nearest
from mess.search.problem.costs import Ticks
from mess.search.problem.definition import Configuration, Evaluation, evaluate, evaluate_anytime
from mess.search.problem.tables import Tables


class Setting(ABC):
    """How the exits of an instance run, and which of them answer.

    name: as requests, results and bundles hold it.
    signals_decide: whether images leave by their signals, so that early exits have thresholds.
    every_exit_answers: whether each selected exit delivers an answer of its own on the way, so that
        checkpoints mean something; otherwise one exit answers an image.
    ends_in_final: whether the last answer is always that of the network's own head, so that no
        choice of exits changes its mIoU.
    """

    name: ClassVar[str]
    signals_decide: ClassVar[bool] = False
    every_exit_answers: ClassVar[bool] = False
    ends_in_final: ClassVar[bool] = False

    def evaluate(
        self,
        tables: Tables,
        ticks: Mapping[str, Ticks],
        configuration: Configuration,
        latency_stat: str,
    ) -> Evaluation:
        """Figures of one configuration, by the plain definition."""
        return evaluate(tables, ticks, configuration, latency_stat)

    def answering(self, tables: Tables) -> NDArray[np.intp]:
        """Indices of the exits that may give an image's (last) answer."""
        return np.arange(tables.exits)

    @abstractmethod
    def statement(self, *, compares: bool = False, shared: bool = False) -> str:
        """The space in words, for `result.json`.

        compares: whether the signal compares an exit with the selected one before it.
        shared: whether all early exits have one threshold.
        """


class InputDependent(Setting):
    """An image leaves at the first exit whose signal reaches that exit's threshold."""

    name = "input-dependent"
    signals_decide = True

    def statement(self, *, compares: bool = False, shared: bool = False) -> str:
        if compares:
            policy = "the first compared with alone, every other early one with a threshold"
            number, of_each = "threshold", "pair of exits"
        else:
            policy = "with every signal of every early exit"
            number, of_each = "early exit", "exit and signal"
        exits = (
            "every choice of up to max_exits exits, at most one a point, the last at any point, "
            + policy
        )
        if shared:
            return (
                f"{exits}; one signal and one threshold for all of them: with one {number} every "
                "distinct one, with more a grid of at most so many quantiles of the distinct "
                "thresholds of all exits together"
            )
        return (
            f"{exits}; with one {number} every distinct threshold, with more a grid of at most so "
            f"many quantiles of the distinct thresholds of each {of_each}"
        )


class Anytime(Setting):
    """The network runs to its end, and every selected exit delivers an answer on the way."""

    name = "anytime"
    every_exit_answers = True
    ends_in_final = True

    def evaluate(
        self,
        tables: Tables,
        ticks: Mapping[str, Ticks],
        configuration: Configuration,
        latency_stat: str,
    ) -> Evaluation:
        """Every image takes the same time, so that mean and p90 latency are the same."""
        return evaluate_anytime(tables, ticks, configuration)

    def answering(self, tables: Tables) -> NDArray[np.intp]:
        return np.array([tables.final])

    def statement(self, *, compares: bool = False, shared: bool = False) -> str:
        return (
            "every choice of early exits, at most one a point before the last, and the network's "
            "own head at the end, at most max_exits exits in all"
        )


class Budgeted(Setting):
    """One exit answers every image, wherever it sits."""

    name = "budgeted"

    def statement(self, *, compares: bool = False, shared: bool = False) -> str:
        return "every exit alone"


class FinalOnly(Setting):
    """One exit at the last point answers every image."""

    name = "final-only"

    def answering(self, tables: Tables) -> NDArray[np.intp]:
        return np.flatnonzero(tables.point == tables.points)

    def statement(self, *, compares: bool = False, shared: bool = False) -> str:
        return "every exit at the last point alone"


SETTINGS: dict[str, Setting] = {
    setting.name: setting for setting in (InputDependent(), Anytime(), Budgeted(), FinalOnly())
}
"""The settings by name; a request may ask for these."""


def find_setting(name: str) -> Setting:
    """The setting of a name; raises ConfigError with the nearest known one."""
    if name not in SETTINGS:
        raise ConfigError(f"unknown setting {name!r}; {nearest(str(name), tuple(SETTINGS))}")
    return SETTINGS[name]
