"""Sampling a space that is too large to be proven: Optuna proposes, the plain definition judges.

A trial is what Optuna's sampler proposes with the threshold of each early exit moved to where it is
best, or where that was tried before a neighbour of it.

This is the only file that knows Optuna, and it imports it when a search starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mess.errors import ConfigError, nearest
from mess.search.problem.evaluate import Configuration
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import Goal
from mess.search.problem.progress import Found
from mess.search.problem.request import ANYTIME, INPUT_DEPENDENT
from mess.search.sampled.space import Score, Space, score_of
from mess.search.sampled.study import SAMPLERS, Study, quiet

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a study found; nothing in it is proven.

    found: the best configuration and the front of all trials; `found.evaluated` counts the trials.
    configurations: size of the whole space; `space` states it in words and numbers.
    """

    found: Found
    configurations: int
    space: dict[str, Any]


def sample(
    goal: Goal,
    *,
    starts: Sequence[Configuration] = (),
    trials: int = 2000,
    seed: int = 0,
    sampler: str = "tpe",
    storage: Path | None = None,
    name: str = "search",
    progress: Callable[[int, int], None] | None = None,
) -> Sampled:
    """The best of `trials` configurations of the input-dependent or the anytime space.

    starts: configurations of the space, such as the exact answer and the front of a smaller one.
        The first trials, a tenth of all and at least one, are the best of them and those nearest to
        it in cost. None is lost: the outcome is never worse than any of them.
    trials: of the study in all, those of earlier runs and other processes included.
    sampler: `tpe` (multivariate tree-structured Parzen estimator) or `nsga2`, which takes a
        fraction of the time for a trial.
    storage: a file that keeps the study, so that it goes on where it was, also after a kill, and
        several processes can work on it at the same time. One process alone finds the same again
        from the same `seed` and `trials`.
    name: of the study within the file; it has to differ where goals do.
    progress: hears the trials so far and in all.

    Ends early where the whole space was tried, and at Ctrl-C, with what was found by then. Raises
    ConfigError for another setting, an unknown sampler and less than one trial, ValueError for a
    start outside the space, and CacheError for a file that holds something else.
    """
    if goal.request.setting not in (INPUT_DEPENDENT, ANYTIME):
        raise ConfigError(
            f"the {goal.request.setting} setting is scanned in full at once, so there is nothing "
            "to sample; use algorithm 'exhaustive'"
        )
    if goal.tables.pairs is not None or goal.request.shared_threshold:
        kind = "signals that compare exits" if goal.tables.pairs is not None else "a shared one"
        raise ConfigError(
            f"optuna samples a signal and threshold of each exit; for {kind} use algorithm "
            "'exhaustive', which is proven"
        )
    if sampler not in SAMPLERS:
        raise ConfigError(f"unknown sampler {sampler!r}; {nearest(sampler, SAMPLERS)}")
    if trials < 1:
        raise ConfigError(f"trials must be a whole number >= 1, got {trials}")
    space = Space(goal)
    for start in starts:
        if not space.contains(start):
            raise ValueError(f"{start} does not belong to the space of the request")
    scores = {start: score_of(space, start) for start in starts}
    hear = progress or (lambda _done, _total: None)
    with quiet():
        study = Study(space, sampler, seed, storage, name)
        first = _nearest_to_best(scores)[: max(1, trials // 10)]
        seeds = [start for start in first if start not in study.tried]
        try:
            while study.trials < trials and len(study.tried) < space.configurations:
                proposal = study.ask()
                if seeds:
                    study.add(proposal, seeds.pop(0), trials)
                else:
                    study.add(proposal, study.untried(proposal.params), trials)
                hear(study.trials, trials)
            hear(trials, trials)
        except KeyboardInterrupt:
            pass
    found = Found()
    found.evaluated = study.trials
    for configuration, score in (scores | study.tried).items():
        if score.violation == 0:
            found.offer(score.rank, configuration)
        found.front.insert(FrontPoint(score.cost, score.quality, score.rank.order, configuration))
    return Sampled(found=found, configurations=space.configurations, space=space.statement())


def _nearest_to_best(scores: Mapping[Configuration, Score]) -> list[Configuration]:
    """The best one, then the others by the distance of their cost from its."""
    best = min(scores.values(), key=lambda score: score[:2], default=None)
    if best is None:
        return []
    return sorted(scores, key=lambda one: (abs(scores[one].cost - best.cost), scores[one][:2]))
