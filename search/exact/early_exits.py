"""Searching every configuration with a number of early exits: what is common to all signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.exact.bound_reference import along, bands, bound_around, reaching
from mess.search.exact.kernel_inputs import ByDepth, pack_aim
from mess.search.exact.resolution import EXACT, Resolution, hurdles
from mess.search.exact.shared_threshold import one_threshold_space, with_one_threshold
from mess.search.exact.workers import ROUND, Workers, run_rounds
from mess.search.kernels.arrays import MEAN, NOBODY, Aim, Bound, Prices
from mess.search.kernels.bound import rows_that_matter
from mess.search.kernels.evaluate import evaluate_rows
from mess.search.kernels.one_early import scan_one_early
from mess.search.problem.definition import Configuration
from mess.search.problem.findings import NOTHING, Arrays, Findings, Scan
from mess.search.problem.goal import Goal
from mess.search.problem.thresholds import Thresholds

FrontArrays = tuple[Arrays, Arrays, Arrays]

_NO_HURDLES = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class Task(NamedTuple):
    """The first early exit (or `NOBODY`) with its signal, and the second ones to try behind it.

    Exits are positions by rising point. `number_EK` are the thresholds each exit has in this task.
    """

    first: int
    signal: int
    seconds: Arrays
    number_EK: Arrays


@dataclass(frozen=True, kw_only=True)
class EarlyExits:
    """Every configuration with a number of early exits, and how the kernels number them.

    steps: their thresholds; deepest_steps: those that the deepest one may have.
    prices: costs, exits as the tables number them.
    tasks: the parts it is searched in; none where there is one early exit, which needs no bound.
    offset, decode: configurations are numbered from `offset`, `decode` tells them from their code.
    shared: only configurations whose exits share a threshold count; same_signal: and the signal.
    """

    steps: Thresholds
    deepest_steps: Thresholds
    prices: Prices
    tasks: Sequence[Task]
    offset: int
    decode: Callable[[int], Configuration]
    shared: bool = False
    same_signal: bool = True


class EarlyExitSearch:
    """The search of `space`: with one early exit everything, with more what the bound leaves."""

    def __init__(self, goal: Goal, by_depth: ByDepth, space: EarlyExits, workers: Workers) -> None:
        self._goal, self._by_depth, self._space, self._workers = goal, by_depth, space, workers
        # Without a copy where tables are as caches hold them; kernels are compiled for these alone.
        self._hits_EIC, self._predicted_EIC = (
            np.ascontiguousarray(counts, dtype=np.int32)
            for counts in (goal.tables.intersection, goal.tables.predicted)
        )
        self._sorted_prices = by_depth.sorted_prices(space.prices)
        self._exits = by_depth.exits(space.steps)

    def run_all(self, found: Findings, collect: bool, done: Callable[[float], None]) -> None:
        """One early exit: every threshold."""
        aim, by_depth = pack_aim(self._goal, collect), self._by_depth

        def scan(early: int, best: Arrays, front: FrontArrays) -> Scan:
            return Scan._make(
                scan_one_early(
                    by_depth.slots,
                    by_depth.share,
                    self._sorted_prices,
                    aim,
                    self._exits,
                    by_depth.order_E,
                    early,
                    best,
                    front,
                )
            )

        early = np.flatnonzero(by_depth.after_E < len(by_depth.after_E))
        # Exits of all depths first: they soon have a front that rules out most of what follows.
        rounds = -(-len(early) // ROUND)
        tasks = [exit_ for start in range(rounds) for exit_ in early[start::rounds].tolist()]
        self._rounds(found, tasks, scan, done)

    def run_best(self, found: Findings, done: Callable[[float], None]) -> None:
        """Several early exits, for the best configuration within the limits.

        What matters is not dearer than the best so far and reaches the mIoU that is asked for; or
        is at least as accurate as the best so far, where accuracy is maximised.
        """
        goal, aim, prices = self._goal, pack_aim(self._goal, False), self._space.prices
        bound = self._bound(found.best[1] if found.best else found.front.points[-1].payload)
        # Where cost is a path's, very many configurations cost the same. First only cheaper ones
        # matter, then of those that cost as much as the best the more accurate ones.
        additive = aim.target < 0 or prices.kind_M[aim.target] == MEAN

        def scan(task: Task, best: Arrays, front: FrontArrays, ties: bool = False) -> Scan:
            limit_M, miou = prices.limit_M.copy(), goal.miou_limit
            # Where nothing was found yet `best` is NOTHING, and minus that asks for nothing.
            if aim.target < 0:
                miou = max(miou, -int(best[0]))
            elif ties:
                limit_M[aim.target], miou = best[0], -int(best[1])
            else:
                limit = int(best[0]) if additive else int(best[0]) - 1
                limit_M[aim.target] = min(int(limit_M[aim.target]), limit)
            return self._search(task, reaching(bound, miou), limit_M, aim, best, front)

        self._rounds(found, self._space.tasks, scan, done)
        # Without `done`: the first pass has counted these configurations.
        if not additive and found.best:
            self._rounds(found, self._space.tasks, partial(scan, ties=True), None)

    def run_front(
        self, found: Findings, done: Callable[[float], None], resolution: Resolution = EXACT
    ) -> None:
        """Several early exits, for the front over all of them, whatever the limits.

        First with likely exits alone: what they find rules out most of the rest before it is
        evaluated.
        """
        self._pass_front(found, unheard, resolution, self._likely(found))
        self._pass_front(found, done, resolution, np.ones(self._goal.tables.exits, dtype=np.bool_))

    def _likely(self, found: Findings) -> NDArray[np.bool_]:
        """The early exits that the front has by now, which are few; by rising point."""
        likely_E = np.zeros(self._goal.tables.exits, dtype=np.bool_)
        for point in found.front.points:
            likely_E[[choice.exit for choice in point.payload[:-1]]] = True
        return likely_E[self._by_depth.order_E]

    def _tasks(self, early_E: NDArray[np.bool_]) -> list[Task]:
        """All that have early exits of these alone."""
        return [
            task._replace(number_EK=task.number_EK * early_E[:, None])
            for task in self._space.tasks
            if early_E[task.seconds].any() and (task.first == NOBODY or early_E[task.first])
        ]

    def _pass_front(
        self,
        found: Findings,
        done: Callable[[float], None],
        resolution: Resolution,
        early_E: NDArray[np.bool_],
    ) -> None:
        """One look at every band, with early exits that `early_E` allows."""
        tasks = self._tasks(early_E)
        if not tasks:
            return
        metric, aim = self._goal.metrics.index(self._goal.front_metric), pack_aim(self._goal, True)
        kind_M = self._space.prices.kind_M
        pieces = list(bands(found.front.points, int(kind_M[metric]), resolution))
        for position, band in enumerate(pieces):
            around = self._bound(band.reference, np.flatnonzero(early_E).tolist())
            bound = along(around, band, self._goal, self._space.deepest_steps)
            # The front is that of all configurations: the goal's own limits do not count.
            limit_M = np.full(len(kind_M), NOTHING)
            limit_M[metric] = band.limit

            def scan(
                task: Task,
                best: Arrays,
                front: FrontArrays,
                bound: Bound = bound,
                limit_M: Arrays = limit_M,
            ) -> Scan:
                clear = hurdles(front[0], front[1], resolution)
                return self._search(task, bound, limit_M, aim, best, front, clear)

            # `run_best` has counted these configurations.
            self._rounds(found, tasks, scan, None)
            done((position + 1) / len(pieces))

    def _bound(self, reference: Configuration, deepest: Sequence[int] | None = None) -> Bound:
        with self._workers.pool() as pool:
            steps = self._space.deepest_steps
            return bound_around(self._goal, self._by_depth, steps, reference, pool, deepest)

    def _search(
        self,
        task: Task,
        bound: Bound,
        limit_M: Arrays,
        aim: Aim,
        best: Arrays,
        front: FrontArrays,
        clear: tuple[Arrays, Arrays] = _NO_HURDLES,
    ) -> Scan:
        """Evaluate what the bound does not rule out, nor the hurdles to `clear`."""
        space, exits = self._space, self._exits._replace(number_EK=task.number_EK)
        rows, bounded = rows_that_matter(
            self._by_depth.slots,
            bound,
            self._sorted_prices._replace(limit_M=limit_M),
            exits,
            task.first,
            task.signal,
            task.seconds,
            clear,
        )
        if space.shared:
            rows = with_one_threshold(rows, same_signal=space.same_signal)
        scanned = self._evaluate(aim, self._by_depth.original(rows), best, front)
        if space.shared:
            size = one_threshold_space(*task, self._exits.after_E, same_signal=space.same_signal)
            bounded = size - scanned.evaluated - scanned.pruned
        return scanned._replace(bounded=bounded)

    def _evaluate(self, aim: Aim, rows: Arrays, best: Arrays, front: FrontArrays) -> Scan:
        steps = self._space.steps
        return Scan._make(
            evaluate_rows(
                self._by_depth.slots,
                self._hits_EIC,
                self._predicted_EIC,
                self._space.prices,
                aim,
                steps.bins,
                steps.number,
                rows,
                best,
                front,
            )
        )

    def _rounds(
        self,
        found: Findings,
        tasks: Sequence[object],
        scan: Callable[..., Scan],
        done: Callable[[float], None] | None,
    ) -> None:
        """Run the tasks; with `done`, which hears the share that is, their counts are added."""
        run_rounds(
            found,
            tasks,
            scan,
            self._space.offset,
            self._space.decode,
            self._workers,
            (lambda finished: done(finished / len(tasks))) if done else None,
        )


def unheard(_share: float) -> None:
    """For who need not know how much is done."""
