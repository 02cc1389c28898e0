"""Up to two early exits before a last one, each image leaving by itself: exhaustive search."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mess.errors import ConfigError
from mess.search.budgeted import search_single
from mess.search.costs import LATENCY, PARAMS
from mess.search.evaluate import Choice, Configuration
from mess.search.found import NOTHING, Arrays, Found, Scan
from mess.search.goal import Goal
from mess.search.kernels import MEAN, NOBODY, P90, STORED, Aim, Pixels, Prices, scan_exits
from mess.search.request import ACCURACY
from mess.search.rounds import run_rounds
from mess.search.tables import Tables
from mess.search.thresholds import Ladder, ladder

MOST_EXITS = 3
"""Exits in all that the exhaustive search covers."""

_OFFSET = 2**63
"""Above any code of a kernel: configurations with fewer exits come first in order."""

Pair = tuple[int, int]
"""First (or `NOBODY`) and second early exit."""


def count_configurations(tables: Tables, rungs: Ladder, early: int) -> int:
    """Configurations with `early` (1 or 2) early exits and one last exit."""
    per_exit = rungs.number.sum(axis=1)
    return sum(
        (int(per_exit[first]) if first != NOBODY else 1)
        * int(per_exit[second])
        * int((tables.point > tables.point[second]).sum())
        for first, second in _pairs(tables, early)
    )


def ladders(goal: Goal) -> dict[int, Ladder]:
    """Thresholds by number of early exits: all of them for one, a grid for two.

    Empty without signals: no image can leave early then.
    """
    most = min(goal.request.max_exits, MOST_EXITS) - 1 if goal.tables.signal_names else 0
    sizes = {1: None, 2: goal.request.thresholds}
    rungs = {early: ladder(goal.tables, sizes[early]) for early in range(1, most + 1)}
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
    threads: int | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> None:
    """Single exits, then every configuration with one and with two early exits.

    `rungs` come from `ladders`; `done` hears how many configurations are covered so far.
    """
    search_single(goal, found, range(goal.tables.exits))
    pixels, prices, aim = pack_pixels(goal.tables), pack_prices(goal), pack_aim(goal, collect)
    for early, steps in rungs.items():
        scan = partial(_scan, pixels, prices, aim, steps, goal.tables.point.astype(np.int64))
        run_rounds(
            found,
            _pairs(goal.tables, early),
            scan,
            early * _OFFSET,
            partial(decode, steps, goal.tables.exits, early),
            threads,
            lambda _: done(found.evaluated + found.pruned),
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
        macs=goal.metrics.index("macs"),
        front=goal.metrics.index(goal.front_metric),
        collect=collect,
        miou=goal.miou_limit,
    )


def _pairs(tables: Tables, early: int) -> list[Pair]:
    """Pairs of early exits that leave a deeper point for a last one."""
    seconds = [e for e in range(tables.exits) if tables.point[e] < tables.point.max()]
    if early == 1:
        return [(NOBODY, second) for second in seconds]
    return [
        (first, second)
        for first in seconds
        for second in seconds
        if tables.point[first] < tables.point[second]
    ]


def _scan(
    pixels: Pixels,
    prices: Prices,
    aim: Aim,
    steps: Ladder,
    point: Arrays,
    pair: Pair,
    best: Arrays,
    front: tuple[Arrays, Arrays, Arrays],
) -> Scan:
    first, second = pair
    lasts = np.flatnonzero(point > point[second])
    return Scan._make(
        scan_exits(pixels, prices, aim, steps.bins, steps.number, first, second, lasts, best, front)
    )
