"""Sampling a space that is too large to be proven: Optuna proposes, the plain definition judges.

A trial is what Optuna's sampler proposes with the threshold of each early exit moved to where it is
best, or where that was tried before a neighbour of it.

This is the only file that knows Optuna, and it imports it when a search starts.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from mess.common.seeds import derive
from mess.errors import CacheError, ConfigError, nearest
from mess.search.exact.anytime import count_choices
from mess.search.exact.input_dependent import count_configurations
from mess.search.problem.evaluate import Choice, Configuration, Evaluation
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import Goal, Rank, miou_steps
from mess.search.problem.ladder import grid, grid_size, ladder
from mess.search.problem.optimum import quality_steps
from mess.search.problem.progress import Found
from mess.search.problem.request import ANYTIME, INPUT_DEPENDENT

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "nsga2")

_ATTEMPTS = 10
"""Neighbours that are looked at for one that was not tried yet."""

_POPULATION = 20
"""Of NSGA-II: few, so that a few hundred trials make many generations."""

_NEAR = 0.1
"""Standard deviation of a small step along an axis, as a share of its length."""

Params = dict[str, Any]


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
    space = _Space(goal)
    for start in starts:
        if not space.contains(start):
            raise ValueError(f"{start} does not belong to the space of the request")
    scores = {start: _score(space, start) for start in starts}
    hear = progress or (lambda _done, _total: None)
    with _quiet():
        study = _Study(space, sampler, seed, storage, name)
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


class _Axis(NamedTuple):
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


class _Space:
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
        self.axes = {"exits": _Axis(1, most + 1), "exit-0": _Axis(0, len(self.lasts) - 1)}
        for slot in range(1, most + 1):
            self.axes[f"exit-{slot}"] = _Axis(0, len(self.early) - 1)
            if not self.anytime:
                self.axes[f"signal-{slot}"] = _Axis(0, signals - 1, ordered=False)
                self.axes[f"share-{slot}"] = _Axis()
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
        best, early = _score(self, configuration), 0 if self.anytime else len(configuration) - 1
        for position in range(early):
            choice = configuration[position]
            for value in grid(self._values(choice, early), self.goal.request.thresholds):
                moved = choice._replace(threshold=float(value))
                other = (*configuration[:position], moved, *configuration[position + 1 :])
                score = _score(self, other)
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


class _Score(NamedTuple):
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


def _score(space: _Space, configuration: Configuration) -> _Score:
    goal = space.goal
    evaluation = goal.evaluate(configuration)
    quality = quality_steps(goal, evaluation)
    excess = _excess(goal, evaluation)
    return _Score(
        violation=sum(over for over in excess.values() if over > 0),
        rank=goal.rank(evaluation.totals, quality, space.order(configuration)),
        cost=evaluation.totals[goal.front_metric],
        quality=quality,
        excess=excess,
    )


def _nearest_to_best(scores: Mapping[Configuration, _Score]) -> list[Configuration]:
    """The best one, then the others by the distance of their cost from its."""
    best = min(scores.values(), key=lambda score: score[:2], default=None)
    if best is None:
        return []
    return sorted(scores, key=lambda one: (abs(scores[one].cost - best.cost), scores[one][:2]))


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


class _Proposal(NamedTuple):
    """What the sampler proposed, and what it has to find again with the finished trial."""

    params: Params
    attributes: dict[str, Any]


class _Study:
    """The trials of a goal: a log that processes may share, and a copy of it to ask.

    Only finished trials go to the log, each in one piece. A process that is killed leaves nothing
    behind in it, and a trial costs one write instead of one for each parameter.

    tried: the configurations of the trials so far, with their scores.
    trials: how many trials there are; some configuration may have been tried twice.
    """

    def __init__(
        self, space: _Space, sampler: str, seed: int, storage: Path | None, name: str
    ) -> None:
        import optuna

        self.tried: dict[Configuration, _Score] = {}
        self.trials = 0
        self._space, self._path = space, storage
        self._distributions = {key: axis.distribution() for key, axis in space.axes.items()}
        lock = None if storage is None else _FileLock(storage)
        self._lock: AbstractContextManager[object] = lock or nullcontext()
        with self._lock:
            self._log = optuna.create_study(
                storage=None if lock is None else lock.journal(),
                study_name=name,
                load_if_exists=True,
            )
            # Processes that draw alike would try the same configurations.
            self._log.set_user_attr(uuid.uuid4().hex, None)
            worker = len(self._log.user_attrs)
        self._rng = np.random.default_rng(derive(seed, "neighbours", worker))
        draw = derive(seed, "sampler", worker) % 2**32
        self._copy = optuna.create_study(
            sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=False, seed=draw)
            if sampler == "tpe"
            else optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=draw)
        )
        self._pull()

    def ask(self) -> _Proposal:
        """What the sampler proposes next."""
        from optuna.trial import TrialState

        # Samplers ignore failed trials; the finished one comes back from the log.
        asked = self._copy.ask(self._distributions)
        finished = self._copy.tell(asked, state=TrialState.FAIL)
        return _Proposal(finished.params, finished.system_attrs)

    def untried(self, params: Params) -> Configuration:
        """The configuration of `params` for the next trial, or a neighbour that was not tried."""
        spare = None
        for _ in range(_ATTEMPTS):
            proposed = self._space.decode(params)
            if proposed not in self.tried:
                swept = self._space.swept(proposed)
                if swept not in self.tried:
                    return swept
                spare = proposed
            params = self._space.neighbour(params, self._rng)
        return spare or self._space.decode(params)

    def add(self, proposal: _Proposal, configuration: Configuration, trials: int) -> None:
        """Log a finished trial, unless there are `trials` by now, and what others logged."""
        from optuna.trial import create_trial

        score = _score(self._space, configuration)
        trial = create_trial(
            params=proposal.params | self._space.encode(configuration),
            distributions=self._distributions,
            value=float(score.rank.objective),
            constraints=score.excess,
            system_attrs=proposal.attributes,
        )
        with self._lock:
            self._pull()
            if self.trials < trials:
                self._log.add_trial(trial)
                self._pull()

    def _pull(self) -> None:
        for trial in self._log.get_trials(deepcopy=False)[self.trials :]:
            if trial.distributions != self._distributions:
                raise CacheError(f"{self._path} holds trials of another space. Delete it.")
            configuration = self._space.decode(trial.params)
            self.tried[configuration] = _score(self._space, configuration)
            self._copy.add_trial(trial)
            self.trials += 1


class _FileLock:
    """Keeps other processes from a study's file; the kernel frees it when its holder is killed.

    Optuna's own locks are files that a killed process leaves behind, which costs half a minute.
    May be taken again by its holder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._depth = path, 0
        self._file: IO[bytes] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)

    def acquire(self) -> bool:
        if self._file is None:
            file = self._path.open("ab+")
            fcntl.flock(file, fcntl.LOCK_EX)
            _drop_torn_line(file)
            self._file = file
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0 and self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def journal(self) -> optuna.storages.JournalStorage:
        """The file as a storage of Optuna's; raises CacheError where it holds something else."""
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        backend = JournalFileBackend(str(self._path), lock_obj=cast(Any, self))
        try:
            return JournalStorage(backend)
        except (KeyError, TypeError, ValueError):
            raise CacheError(
                f"{self._path} is damaged. Delete it to begin the study anew."
            ) from None


def _drop_torn_line(file: IO[bytes]) -> None:
    """Take away the half of a line that a full disk left at the end: nothing could follow it."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line on stderr for every trial."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
