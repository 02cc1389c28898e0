"""Sampling a space that is too large to be proven: Optuna proposes, the plain definition judges.

A trial is what Optuna's sampler proposes with the threshold of each early exit moved to where it is
best, or where that was tried before a neighbour of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mess.errors import ConfigError, nearest
from mess.search.problem.definition import Configuration
from mess.search.problem.findings import Findings
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import Goal
from mess.search.sampled.score import Score
from mess.search.sampled.space import SAMPLED_SPACES, Space
from mess.search.sampled.study import SAMPLERS, Study, quiet


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a study found; nothing in it is proven.

    found: the best configuration and the front of all trials; `found.evaluated` counts the trials.
    configurations: size of the whole space; `space` states it in words and numbers.
    """

    found: Findings
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
    """The best of `trials` configurations of the space of a setting with several exits.

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
    _check(goal, sampler, trials)
    space = SAMPLED_SPACES[goal.request.setting](goal)
    scores = _scores(space, starts)
    with quiet():
        study = Study(space, sampler, seed, storage, name)
        first = _nearest_to_best(scores)[: max(1, trials // 10)]
        _run(study, [start for start in first if start not in study.tried], trials, progress)
    return Sampled(
        found=_findings(study.trials, scores | study.tried),
        configurations=space.configurations,
        space=space.describe(),
    )


def _check(goal: Goal, sampler: str, trials: int) -> None:
    """Raise ConfigError for what cannot be sampled."""
    if goal.request.setting not in SAMPLED_SPACES:
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


def _scores(space: Space, starts: Sequence[Configuration]) -> dict[Configuration, Score]:
    for start in starts:
        if not space.contains(start):
            raise ValueError(f"{start} does not belong to the space of the request")
    return {start: space.score(start) for start in starts}


def _nearest_to_best(scores: Mapping[Configuration, Score]) -> list[Configuration]:
    """The best one, then the others by the distance of their cost from its."""
    best = min(scores.values(), key=lambda score: score[:2], default=None)
    if best is None:
        return []
    return sorted(scores, key=lambda one: (abs(scores[one].cost - best.cost), scores[one][:2]))


def _run(
    study: Study,
    starts: list[Configuration],
    trials: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Try the starts, then what the sampler proposes, until there are `trials` or at Ctrl-C."""
    hear = progress or (lambda _done, _total: None)
    try:
        while study.trials < trials and not study.exhausted:
            proposal = study.ask()
            next_ = starts.pop(0) if starts else study.untried(proposal.params)
            study.add(proposal, next_, trials)
            hear(study.trials, trials)
        # Also where the whole space was tried before.
        hear(trials, trials)
    except KeyboardInterrupt:
        pass


def _findings(trials: int, scores: Mapping[Configuration, Score]) -> Findings:
    found = Findings()
    found.evaluated = trials
    for configuration, score in scores.items():
        if score.violation == 0:
            found.offer(score.rank, configuration)
        found.front.insert(FrontPoint(score.cost, score.quality, score.rank.order, configuration))
    return found
