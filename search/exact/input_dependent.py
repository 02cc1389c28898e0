"""Early exits before a last one, each image leaving by itself: exhaustive search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from mess.search.exact.kernel_inputs import pack_aim, pack_pixels, pack_prices
from mess.search.exact.one_exit import search_single
from mess.search.exact.reference import Frame, along, bands, reaching, window
from mess.search.exact.shared_threshold import one_threshold_space, with_one_threshold
from mess.search.exact.workers import ALL_CORES, Workers, run_rounds
from mess.search.kernels.arrays import MEAN, NOBODY, Aim, Prices, Window
from mess.search.kernels.bound import screen
from mess.search.kernels.evaluate import scan_rows
from mess.search.problem.evaluate import Choice, Configuration
from mess.search.problem.goal import Goal
from mess.search.problem.ladder import Ladder
from mess.search.problem.progress import NOTHING, Arrays, Found, Scan
from mess.search.problem.space import OFFSET, Done, decode_steps

FrontArrays = tuple[Arrays, Arrays, Arrays]

_NO_FRONT = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def search_dependent(
    goal: Goal,
    found: Found,
    rungs: dict[int, Ladder],
    collect: bool = True,
    workers: Workers = ALL_CORES,
    done: Done = lambda _early, _share: None,
) -> None:
    """Single exits, then every configuration with one, two and three early exits.

    `rungs` come from `ladders`. First the best configuration is proven; then, to `collect` the
    front, those with several early exits are searched again in every piece of it.
    """
    search_single(goal, found, range(goal.tables.exits))
    frame = Frame.of(goal.tables)
    searches = [EarlyExits(goal, frame, steps, early, workers) for early, steps in rungs.items()]
    for search in searches:
        if search.early == 1:
            search.run_all(found, collect, partial(done, 1))
        else:
            search.run_best(found, partial(done, search.early))
    found.proven = True
    if collect:
        for search in searches[1:]:
            search.run_front(found, partial(done, search.early))
        found.front_proven = True


class Task(NamedTuple):
    """The first early exit (or `NOBODY`) with its signal, and the second ones to try behind it.

    Exits are positions by rising point. `number_EK` are the thresholds each exit has in this task.
    """

    first: int
    signal: int
    seconds: Arrays
    number_EK: Arrays


class EarlyExits:
    """Every configuration with a number of early exits.

    `steps` are their thresholds; `bound_steps` those that the deepest one may have, all of them by
    default. Configurations are numbered from `offset`, and `decode` tells them from their numbers.
    """

    same_signal: ClassVar[bool] = True
    """Whether exits that share a threshold share the signal, too."""

    def __init__(
        self,
        goal: Goal,
        frame: Frame,
        steps: Ladder,
        early: int,
        workers: Workers,
        *,
        prices: Prices | None = None,
        bound_steps: Ladder | None = None,
        offset: int | None = None,
        decode: Callable[[int], Configuration] | None = None,
    ) -> None:
        self.goal, self.frame, self.steps = goal, frame, steps
        self.early, self.workers = early, workers
        self.pixels, self.prices = pack_pixels(goal.tables), prices or pack_prices(goal)
        self.sorted_prices = frame.sorted_prices(self.prices)
        self.sorted_bins, self.sorted_number = frame.sorted_ladder(steps)
        self._bound_steps = bound_steps or steps
        self._offset = early * OFFSET if offset is None else offset
        self._decode = decode or partial(_decode, steps, goal.tables.exits, early)
        self._shared = goal.request.shared_threshold and early > 1

    def run_all(self, found: Found, collect: bool, done: Callable[[float], None]) -> None:
        """One early exit: every threshold."""
        aim, point = pack_aim(self.goal, collect), self.goal.tables.point

        def scan(third: int, best: Arrays, front: FrontArrays) -> Scan:
            lasts = np.flatnonzero(point > point[third])
            signals = np.flatnonzero(self.steps.number[third])
            rows = np.full((len(lasts) * len(signals), 11), NOBODY, dtype=np.int64)
            rows[:, 6], rows[:, 7] = third, np.repeat(signals, len(lasts))
            rows[:, 8], rows[:, 9] = 0, self.steps.number[third, rows[:, 7]]
            rows[:, 10] = np.tile(lasts, len(signals))
            return self._scan_rows(aim, rows, best, front)

        thirds = np.flatnonzero(point < point.max()).tolist()
        self._rounds(found, thirds, scan, done)

    def run_best(self, found: Found, done: Callable[[float], None]) -> None:
        """Several early exits, for the best configuration within the limits."""
        goal, aim = self.goal, pack_aim(self.goal, False)
        near = found.best[1] if found.best else found.front.points[-1].payload
        place = self._window(near)
        additive = aim.target < 0 or self.prices.kind_M[aim.target] == MEAN

        def scan(task: Task, best: Arrays, front: FrontArrays, ties: bool = False) -> Scan:
            limit_M, miou = self.prices.limit_M.copy(), goal.miou_limit
            if aim.target < 0:
                miou = max(miou, -int(best[0]))
            elif ties:
                limit_M[aim.target], miou = best[0], -int(best[1])
            else:
                limit = int(best[0]) if additive else int(best[0]) - 1
                limit_M[aim.target] = min(int(limit_M[aim.target]), limit)
            return self._screen_and_scan(task, reaching(place, miou), limit_M, aim, best, front)

        self._rounds(found, self.tasks(), scan, done)
        if not additive and found.best:
            # Very many configurations cost the same then: only the most accurate ones matter.
            self._rounds(found, self.tasks(), partial(scan, ties=True), None)

    def run_front(self, found: Found, done: Callable[[float], None]) -> None:
        """Several early exits, for the front over all of them, whatever the limits."""
        metric, aim = self.goal.metrics.index(self.goal.front_metric), pack_aim(self.goal, True)
        pieces = list(bands(found.front.points, int(self.prices.kind_M[metric])))
        for position, band in enumerate(pieces):
            place = along(self._window(band.reference), band, self.goal, self._bound_steps)
            limit_M = np.full(len(self.prices.limit_M), NOTHING)
            limit_M[metric] = band.limit

            def scan(
                task: Task,
                best: Arrays,
                front: FrontArrays,
                place: Window = place,
                limit_M: Arrays = limit_M,
            ) -> Scan:
                return self._screen_and_scan(task, place, limit_M, aim, best, front)

            self._rounds(found, self.tasks(), scan, None)
            done((position + 1) / len(pieces))

    def tasks(self) -> list[Task]:
        """What is to be searched, in parts."""
        after, exits = self.frame.after_E, self.goal.tables.exits
        number = self.sorted_number
        firsts = [e for e in range(exits) if after[e] < exits]
        if self.early == 2:
            return [Task(NOBODY, 0, np.array([second]), number) for second in firsts]
        return [
            Task(first, signal, np.arange(after[first], exits), number)
            for first in firsts
            for signal in range(self.steps.number.shape[1])
        ]

    def _window(self, reference: Configuration) -> Window:
        with self.workers.pool() as pool:
            return window(self.goal, self.frame, self._bound_steps, reference, pool)

    def _screen_and_scan(
        self,
        task: Task,
        place: Window,
        limit_M: Arrays,
        aim: Aim,
        best: Arrays,
        front: FrontArrays,
    ) -> Scan:
        rows, bounded = screen(
            self.frame.counts,
            place,
            self.sorted_prices._replace(limit_M=limit_M),
            self.sorted_bins,
            task.number_EK,
            self.frame.point_E,
            self.frame.after_E,
            task.first,
            task.signal,
            task.seconds,
            front[:2] if aim.collect else _NO_FRONT,
        )
        if self._shared:
            rows = with_one_threshold(rows, same_signal=self.same_signal)
        scanned = self._scan_rows(aim, self.frame.original(rows), best, front)
        if self._shared:
            space = one_threshold_space(*task, self.frame.after_E, same_signal=self.same_signal)
            bounded = space - scanned.evaluated - scanned.pruned
        return scanned._replace(bounded=bounded)

    def _scan_rows(self, aim: Aim, rows: Arrays, best: Arrays, front: FrontArrays) -> Scan:
        bins, number = self.steps.bins, self.steps.number
        return Scan._make(scan_rows(self.pixels, self.prices, aim, bins, number, rows, best, front))

    def _rounds(
        self,
        found: Found,
        tasks: Sequence[object],
        scan: Callable[..., Scan],
        done: Callable[[float], None] | None,
    ) -> None:
        """Run the tasks; with `done`, which hears the share that is, their counts are added."""
        run_rounds(
            found,
            tasks,
            scan,
            self._offset,
            self._decode,
            self.workers,
            (lambda finished: done(finished / len(tasks))) if done else None,
        )


def _decode(steps: Ladder, exits: int, early: int, code: int) -> Configuration:
    """The configuration behind a kernel's code."""
    *choices, last = decode_steps(steps, exits, early, code)
    return (
        *(Choice(e, signal, float(steps.values[e][signal][step])) for e, signal, step in choices),
        Choice(last[0]),
    )
