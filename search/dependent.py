"""Early exits before a last one, each image leaving by itself: exhaustive search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mess.errors import ConfigError
from mess.search.budgeted import search_single
from mess.search.costs import LATENCY, PARAMS
from mess.search.evaluate import Choice, Configuration
from mess.search.found import NOTHING, Arrays, Found, Scan
from mess.search.goal import Goal
from mess.search.kernels import Aim, Pixels, Prices, scan_rows
from mess.search.request import ACCURACY
from mess.search.rounds import ALL_CORES, Workers, run_rounds
from mess.search.screen import MEAN, NOBODY, P90, STORED, Window, screen
from mess.search.tables import Tables
from mess.search.thresholds import Ladder, grid_size, ladder
from mess.search.windows import Frame, along, bands, reaching, window

MOST_EXITS = 4
"""Exits in all that the exhaustive search covers."""

Done = Callable[[int, float], None]
"""Hears which share of the configurations with a number of early exits is done."""

FrontArrays = tuple[Arrays, Arrays, Arrays]

_NO_FRONT = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

_OFFSET = 2**63
"""Above any code of a kernel: configurations with fewer exits come first in order."""


def count_configurations(tables: Tables, rungs: Ladder, early: int) -> int:
    """Configurations with `early` early exits and one last exit."""
    per_exit = rungs.number.sum(axis=1)
    chains = [1] + [0] * early
    total = 0
    for point in range(1, tables.points + 1):
        here = tables.point == point
        total += chains[early] * int(here.sum())
        thresholds = int(per_exit[here].sum())
        for size in range(early, 0, -1):
            chains[size] += chains[size - 1] * thresholds
    return total


def ladders(goal: Goal) -> dict[int, Ladder]:
    """Thresholds by number of early exits: all of them for one, a grid for more.

    Empty without signals: no image can leave early then.
    """
    most = min(goal.request.max_exits, goal.tables.points) - 1 if goal.tables.signal_names else 0
    rungs = {
        early: ladder(goal.tables, grid_size(early, goal.request.thresholds))
        for early in range(1, most + 1)
    }
    exits = goal.tables.exits
    for early, steps in rungs.items():
        if (exits * steps.number.shape[1] * int(steps.number.max())) ** early * exits >= NOTHING:
            raise ConfigError(
                f"{exits} exits with {steps.number.shape[1]} signals and {steps.number.max()} "
                "thresholds give more configurations than can be numbered; lower thresholds or "
                "max_exits"
            )
    return rungs


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
    searches = [_Search(goal, frame, steps, early, workers) for early, steps in rungs.items()]
    for search in searches:
        if search.early == 1:
            search.run_all(found, collect, done)
        else:
            search.run_best(found, done)
    found.proven = True
    if collect:
        for search in searches[1:]:
            search.run_front(found, done)
        found.front_proven = True


class _Task(NamedTuple):
    """The first early exit (or `NOBODY`) with its signal, and the second ones to try behind it.

    All of them are positions by rising point.
    """

    first: int
    signal: int
    seconds: Arrays


class _Search:
    """Every configuration with a number of early exits."""

    def __init__(
        self, goal: Goal, frame: Frame, steps: Ladder, early: int, workers: Workers
    ) -> None:
        self.goal, self.frame, self.steps = goal, frame, steps
        self.early, self.workers = early, workers
        self.pixels, self.prices = pack_pixels(goal.tables), pack_prices(goal)
        self.sorted_prices = frame.sorted_prices(self.prices)
        self.sorted_bins, self.sorted_number = frame.sorted_ladder(steps)

    def run_all(self, found: Found, collect: bool, done: Done) -> None:
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
        self._rounds(found, thirds, scan, partial(done, 1))

    def run_best(self, found: Found, done: Done) -> None:
        """Several early exits, for the best configuration within the limits."""
        goal, aim = self.goal, pack_aim(self.goal, False)
        near = found.best[1] if found.best else found.front.points[-1].payload
        place = self._window(near)
        additive = aim.target < 0 or self.prices.kind_M[aim.target] == MEAN

        def scan(task: _Task, best: Arrays, front: FrontArrays, ties: bool = False) -> Scan:
            limit_M, miou = self.prices.limit_M.copy(), goal.miou_limit
            if aim.target < 0:
                miou = max(miou, -int(best[0]))
            elif ties:
                limit_M[aim.target], miou = best[0], -int(best[1])
            else:
                limit = int(best[0]) if additive else int(best[0]) - 1
                limit_M[aim.target] = min(int(limit_M[aim.target]), limit)
            return self._screen_and_scan(task, reaching(place, miou), limit_M, aim, best, front)

        self._rounds(found, self._tasks(), scan, partial(done, self.early))
        if not additive and found.best:
            # Very many configurations cost the same then: only the most accurate ones matter.
            self._rounds(found, self._tasks(), partial(scan, ties=True), None)

    def run_front(self, found: Found, done: Done) -> None:
        """Several early exits, for the front over all of them, whatever the limits."""
        metric, aim = self.goal.metrics.index(self.goal.front_metric), pack_aim(self.goal, True)
        pieces = list(bands(found.front.points, int(self.prices.kind_M[metric])))
        for position, band in enumerate(pieces):
            place = along(self._window(band.reference), band, self.goal, self.steps)
            limit_M = np.full(len(self.prices.limit_M), NOTHING)
            limit_M[metric] = band.limit

            def scan(
                task: _Task,
                best: Arrays,
                front: FrontArrays,
                place: Window = place,
                limit_M: Arrays = limit_M,
            ) -> Scan:
                return self._screen_and_scan(task, place, limit_M, aim, best, front)

            self._rounds(found, self._tasks(), scan, None)
            done(self.early, (position + 1) / len(pieces))

    def _tasks(self) -> list[_Task]:
        after, exits = self.frame.after_E, self.goal.tables.exits
        firsts = [e for e in range(exits) if after[e] < exits]
        if self.early == 2:
            return [_Task(NOBODY, 0, np.array([second])) for second in firsts]
        return [
            _Task(first, signal, np.arange(after[first], exits))
            for first in firsts
            for signal in range(self.steps.number.shape[1])
        ]

    def _window(self, reference: Configuration) -> Window:
        with self.workers.pool() as pool:
            return window(self.goal, self.frame, self.steps, reference, pool)

    def _screen_and_scan(
        self,
        task: _Task,
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
            self.sorted_number,
            self.frame.point_E,
            self.frame.after_E,
            *task,
            front[:2] if aim.collect else _NO_FRONT,
        )
        scanned = self._scan_rows(aim, self.frame.original(rows), best, front)
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
            self.early * _OFFSET,
            partial(decode, self.steps, self.goal.tables.exits, self.early),
            self.workers,
            (lambda finished: done(finished / len(tasks))) if done else None,
        )


def decode(steps: Ladder, exits: int, early: int, code: int) -> Configuration:
    """The configuration behind a kernel's code."""
    radix = max(1, int(steps.number.max()))
    code, last = divmod(code, exits)
    choices = [Choice(last)]
    for _ in range(early):
        code, step = divmod(code, radix)
        code, signal = divmod(code, steps.number.shape[1])
        code, exit_ = divmod(code, exits)
        choices.append(Choice(exit_, signal, float(steps.values[exit_][signal][step])))
    return tuple(reversed(choices))


def pack_pixels(tables: Tables) -> Pixels:
    """Counts for the kernels, classes that have labels first."""
    label = tables.label.sum(axis=0, dtype=np.int64)
    order = np.argsort(label == 0, kind="stable")
    # Indexing may leave the classes outermost; kernels are compiled once, for C order.
    hits = np.ascontiguousarray(tables.intersection[:, :, order], dtype=np.int32)
    extra = np.ascontiguousarray(tables.predicted[:, :, order], dtype=np.int32) - hits
    return Pixels(hits, extra, label[order].astype(np.float64), int((label > 0).sum()))


def pack_prices(goal: Goal) -> Prices:
    """Costs of the metrics that matter, with their limits."""
    ticks = [goal.ticks[metric] for metric in goal.metrics]
    p90 = goal.request.latency_stat == "p90"
    kinds = {LATENCY: P90 if p90 else MEAN, PARAMS: STORED}
    return Prices(
        backbone_ME=np.stack([cost.backbone for cost in ticks]),
        exit_ME=np.stack([cost.exit for cost in ticks]),
        signal_MEK=np.stack([cost.signal for cost in ticks]),
        answer_ME=np.stack([cost.answer for cost in ticks]),
        resume_ME=np.stack([cost.resume for cost in ticks]),
        kind_M=np.array([kinds.get(metric, MEAN) for metric in goal.metrics]),
        limit_M=np.array(
            [min(goal.limits.get(metric, NOTHING), NOTHING) for metric in goal.metrics]
        ),
    )


def pack_aim(goal: Goal, collect: bool) -> Aim:
    """Target, front and accuracy limit for the kernels."""
    target = goal.request.target
    return Aim(
        target=-1 if target == ACCURACY else goal.metrics.index(target),
        front=goal.metrics.index(goal.front_metric),
        collect=collect,
        miou=goal.miou_limit,
    )
