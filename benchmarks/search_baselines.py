"""Searches by sampling, to race against: Optuna's TPE and NSGA-II, and evolution.

All of them choose the same genes (`Space.decode`), evaluate with `Space.evaluate`, minimise the
cost and know how far a candidate is from the mIoU that is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import Trial
from search_space import Space

from mess.search.problem.goal import MIOU_STEPS

POPULATION, ROUNDS = 100, 500
MUTATION, PARENTS, CROSSED = 0.1, 0.25, 0.5
"""Of the evolution: chance that a gene changes, share of parents, share of children of two."""

ALMOST_1 = 1 - 1e-9
"""Optuna's intervals are closed."""


class Verdict(NamedTuple):
    """What a sampler is told; smaller is better, first by `violation`, then by `cost`.

    violation: mIoU that is missing, 0 for a candidate that meets the goal.
    cost: share of the baseline's.
    """

    violation: float
    cost: float


class Race:
    """Evaluates candidates against the clock.

    It is over when a candidate that meets the goal costs at most `target` steps, or after `limit`
    seconds.
    """

    def __init__(self, space: Space, target: float, limit: float) -> None:
        self.space = space
        self.best: int | None = None
        self.evaluated = 0
        self.reached: float | None = None
        self._target, self._limit = target, limit
        self._baseline = space.goal.baseline.totals[space.cost.metric]
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    @property
    def over(self) -> bool:
        """Whether the target was reached or the time is up."""
        return self.reached is not None or self.seconds >= self._limit

    def judge(self, genes: Sequence[float]) -> Verdict:
        """Evaluate the candidate that `genes` stand for."""
        figures = self.space.evaluate(self.space.decode(genes))
        self.evaluated += 1
        missing = max(0, self.space.goal.miou_limit - figures.miou) / MIOU_STEPS
        if not missing and (self.best is None or figures.total < self.best):
            self.best = figures.total
            if self.best <= self._target:
                self.reached = self.seconds
        return Verdict(missing, figures.total / self._baseline)


def tpe(race: Race, seed: int) -> None:
    """Optuna's TPE with its own settings and the constraint.

    It is asked for the genes of the chosen points alone, and came closer so than with all of them.
    """
    _optuna(race, TPESampler(seed=seed), chosen_alone=True)


def nsga2(race: Race, seed: int) -> None:
    """Optuna's NSGA-II with its own settings and the constraint.

    It is asked for all genes, since it crosses only those that all candidates have.
    """
    _optuna(race, NSGAIISampler(seed=seed), chosen_alone=False)


def evolution(race: Race, seed: int) -> None:
    """Evolution as Once-for-all searches its networks (Cai et al., ICLR 2020), with two changes.

    Each round keeps the best quarter as parents and adds a hundred children, half of them mutated
    from one parent, half crossed from two. Candidates that miss the mIoU rank behind those that
    meet it instead of being drawn again, and parents differ in their verdicts: without that, the
    population soon was a hundred copies. Starts afresh after its rounds until the race is over.
    """
    rng = np.random.default_rng(seed)
    parents, crossed = round(POPULATION * PARENTS), round(POPULATION * CROSSED)
    while not race.over:
        population = _judged(race, rng.random((POPULATION, race.space.genes)))
        for _ in range(ROUNDS):
            if race.over:
                break
            # Of members with one verdict, the one that has it longest.
            distinct = dict(reversed(population))
            population = sorted(distinct.items())[:parents]
            genes_PG = np.array([genes for _, genes in population])
            one_NG, other_NG = genes_PG[rng.integers(len(population), size=(2, POPULATION))]
            changed_NG = rng.random(one_NG.shape) < MUTATION
            children_NG = np.where(changed_NG, rng.random(one_NG.shape), one_NG)
            from_one_NG = rng.random(one_NG.shape) < 0.5
            children_NG[:crossed] = np.where(from_one_NG, one_NG, other_NG)[:crossed]
            population += _judged(race, children_NG)


METHODS: dict[str, Callable[[Race, int], None]] = {
    "Optuna TPE": tpe,
    "Optuna NSGA-II": nsga2,
    "evolution": evolution,
}


def _judged(race: Race, genes_NG: np.ndarray) -> list[tuple[Verdict, list[float]]]:
    return [(race.judge(genes), genes) for genes in genes_NG.tolist()]


def _optuna(race: Race, sampler: BaseSampler, chosen_alone: bool) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, study = race.space, optuna.create_study(sampler=sampler)
    every_point = range(len(space.exits_at))
    while not race.over:
        trial = study.ask()
        subset, subset_gene = _category(trial, "points", len(space.subsets))
        genes = np.zeros(space.genes)
        genes[0] = subset_gene
        for point in space.subsets[subset] if chosen_alone else every_point:
            genes[1 + 3 * point] = trial.suggest_float(f"exit at {point}", 0, ALMOST_1)
            if chosen_alone and point == space.subsets[subset][-1]:
                continue
            _, genes[2 + 3 * point] = _category(
                trial, f"signal at {point}", len(space.tables.signal_names)
            )
            genes[3 + 3 * point] = trial.suggest_float(f"threshold at {point}", 0, ALMOST_1)
        verdict = race.judge(genes.tolist())
        trial.set_constraint("mIoU", verdict.violation)
        study.tell(trial, verdict.cost)


def _category(trial: Trial, name: str, choices: int) -> tuple[int, float]:
    """A choice among things without an order, and the gene that stands for it."""
    choice = trial.suggest_categorical(name, range(choices))
    return choice, (choice + 0.5) / choices
