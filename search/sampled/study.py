"""Studies of Optuna in a journal that several processes share: the only file that knows Optuna.

Optuna is imported when a study begins, for it takes as long to load as many a search.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from mess.common.seeds import derive
from mess.errors import CacheError
from mess.search.problem.definition import Configuration
from mess.search.sampled.score import Score
from mess.search.sampled.space import Axis, Params, Space

if TYPE_CHECKING:
    import optuna


SAMPLERS = ("tpe", "nsga2")


_ATTEMPTS = 10
"""Neighbours that are looked at for one that was not tried yet."""


_POPULATION = 20
"""Of NSGA-II: few, so that a few hundred trials make many generations."""


class _Proposal(NamedTuple):
    """What the sampler proposed, and what it has to find again with the finished trial."""

    params: Params
    attributes: dict[str, Any]


class Study:
    """The trials of a goal: a log that processes may share, and a copy of it to ask.

    Only finished trials go to the log, each in one piece. A process that is killed leaves nothing
    behind in it, and a trial costs one write instead of one for each parameter.

    tried: the configurations of the trials so far, with their scores.
    trials: how many trials there are; some configuration may have been tried twice.
    """

    def __init__(
        self, space: Space, sampler: str, seed: int, storage: Path | None, name: str
    ) -> None:
        import optuna

        self.tried: dict[Configuration, Score] = {}
        self.trials = 0
        self._space, self._path = space, storage
        self._distributions = {name: _distribution(axis) for name, axis in space.axes.items()}
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
        # Samplers hand their seed to an older generator of numpy's, which takes 32 bits.
        draw = derive(seed, "sampler", worker) % 2**32
        self._copy = optuna.create_study(
            # No trial of the copy is ever running (see `ask`), so there is none to lie about.
            sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=False, seed=draw)
            if sampler == "tpe"
            else optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=draw)
        )
        self._pull()

    @property
    def exhausted(self) -> bool:
        """Whether the whole space was tried."""
        return len(self.tried) >= self._space.configurations

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
                improved = self._space.improved(proposed)
                if improved not in self.tried:
                    return improved
                spare = proposed
            params = self._space.neighbour(params, self._rng)
        return spare or self._space.decode(params)

    def add(self, proposal: _Proposal, configuration: Configuration, trials: int) -> None:
        """Log a finished trial, unless there are `trials` by now, and what others logged."""
        from optuna.trial import create_trial

        # Before the lock is taken, which other processes wait for.
        score = self._space.score(configuration)
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
        # They are only read; copies of all trials for each new one would be a square of them.
        for trial in self._log.get_trials(deepcopy=False)[self.trials :]:
            if trial.distributions != self._distributions:
                raise CacheError(f"{self._path} holds trials of another space. Delete it.")
            configuration = self._space.decode(trial.params)
            self.tried[configuration] = self._space.score(configuration)
            self._copy.add_trial(trial)
            self.trials += 1


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    if axis.high is None:
        return distributions.FloatDistribution(0.0, 1.0)
    if axis.ordered:
        return distributions.IntDistribution(axis.low, axis.high)
    return distributions.CategoricalDistribution(range(axis.low, axis.high + 1))


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
            # Makes the file where there is none, and never empties one that another process writes.
            file = self._path.open("ab+")
            fcntl.flock(file, fcntl.LOCK_EX)
            _drop_torn_line(file)
            self._file = file
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0 and self._file is not None:
            # Closing gives the lock back.
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
def quiet() -> Iterator[None]:
    """Without Optuna's line on stderr for every trial."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
