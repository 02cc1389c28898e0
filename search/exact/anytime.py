"""Every selected exit delivers on the way to the end of the network: exhaustive search.

The network's own head always runs last; early exits sit before the last point. Exits delay each
other by their own cost, so deadlines couple the points and the choices are searched depth first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mess.errors import ConfigError
from mess.search.exact.kernel_inputs import pack_aim, pack_prices
from mess.search.exact.workers import ALL_CORES, Workers, run_rounds
from mess.search.kernels.anytime import Checkpoints, Early, Last, scan_anytime
from mess.search.kernels.arrays import Aim, Prices
from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.findings import Arrays, Findings, Scan
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import Goal, miou_steps


def search_anytime(
    goal: Goal,
    found: Findings,
    collect: bool = True,
    workers: Workers = ALL_CORES,
    done: Callable[[float], None] = lambda _: None,
) -> None:
    """Every choice of early exits before the network's own head; `done` hears the share covered."""
    tables, depth = goal.tables, min(goal.request.max_exits, goal.tables.points) - 1
    _final_alone(goal, found)
    early = _early(goal)
    starts = range(len(early.index_E))
    if depth == 0 or len(early.index_E) == 0:
        found.proven = found.front_proven = True
        return
    # Codes stay below `NOTHING`, with the number of exits as their first digit.
    if (depth + 2) * tables.exits ** (depth + 1) >= 2**62:
        raise ConfigError(
            f"max_exits={goal.request.max_exits} with {tables.exits} exits gives more choices than "
            "can be numbered; lower max_exits"
        )
    # Every choice ends in the network's own head, so none answers more accurately in the end.
    if goal.miou_limit > miou_steps(goal.baseline.miou):
        found.proven = True
        return
    scan = partial(
        _scan,
        early,
        _last(goal),
        _checkpoints(goal, early),
        pack_prices(goal),
        # The kernel's mIoU is a sum over checkpoints; the limit on the last answer is met by now.
        pack_aim(goal, collect)._replace(miou=-1),
        depth,
        tables.exits,
    )
    decode = partial(_decode, tables.exits, depth)
    run_rounds(
        found, starts, scan, 0, decode, workers, lambda finished: done(finished / len(starts))
    )
    found.proven, found.front_proven = True, collect


def _final_alone(goal: Goal, found: Findings) -> None:
    configuration = (Choice(goal.tables.final),)
    evaluation = goal.evaluate(configuration)
    totals = evaluation.totals
    delivered = [miou_steps(miou) for miou in goal.delivered(evaluation)]
    quality = sum(delivered)
    found.evaluated += 1
    met = all(got >= point.miou for got, point in zip(delivered, goal.checkpoints, strict=True))
    accurate = miou_steps(goal.baseline.miou) >= goal.miou_limit
    if met and accurate and goal.affordable(totals):
        found.offer(goal.rank(totals, quality, goal.tables.final), configuration)
    found.front.insert(
        FrontPoint(totals[goal.front_metric], quality, goal.tables.final, configuration)
    )


def _early(goal: Goal) -> Early:
    tables, images = goal.tables, goal.tables.images
    index = np.flatnonzero(tables.point < tables.points)
    index = index[np.argsort(tables.point[index], kind="stable")]
    point = tables.point[index]
    front = goal.ticks[goal.front_metric]
    mious = [goal.evaluate((Choice(int(exit_)),)).miou for exit_ in index]
    ticks = [goal.ticks[metric] for metric in goal.metrics]
    # Going on past an exit delays the deeper ones as the exit itself does, but not its own answer.
    return Early(
        own_ME=np.stack([(cost.exit + cost.resume)[index] * images for cost in ticks]),
        reach_E=(front.backbone + front.answer - front.resume)[index] * images,
        miou_E=np.array([miou_steps(miou) for miou in mious], dtype=np.int64),
        after_E=np.searchsorted(point, point, side="right"),
        index_E=index,
    )


def _last(goal: Goal) -> Last:
    final, images = goal.tables.final, goal.tables.images
    paths = [goal.ticks[metric].paths([final], [])[0] * images for metric in goal.metrics]
    return Last(np.array(paths), miou_steps(goal.baseline.miou), final)


def _checkpoints(goal: Goal, early: Early) -> Checkpoints:
    deadline = np.array([checkpoint.deadline for checkpoint in goal.checkpoints])
    last = np.where([checkpoint.early for checkpoint in goal.checkpoints], -1, deadline)
    own = early.own_ME[goal.metrics.index(goal.front_metric)]
    # `own` holds what going on costs and `reach_E` is less by it: the exit's own answer remains.
    alone = early.reach_E + own
    final = (miou_steps(goal.baseline.miou), goal.baseline.totals[goal.front_metric])
    bounds = [
        max(
            int(early.miou_E[alone <= limit].max(initial=0)),
            final[0] if final[1] <= last_limit else 0,
        )
        for limit, last_limit in zip(deadline, last, strict=True)
    ]
    least = np.array([checkpoint.miou for checkpoint in goal.checkpoints])
    return Checkpoints(deadline, last, least, sum(bounds))


def _decode(exits: int, depth: int, code: int) -> Configuration:
    count, code = divmod(code, exits ** (depth + 1))
    choices = []
    for _ in range(count):
        code, exit_ = divmod(code, exits)
        choices.append(Choice(exit_))
    return tuple(reversed(choices))


def _scan(
    early: Early,
    last: Last,
    checkpoints: Checkpoints,
    prices: Prices,
    aim: Aim,
    depth: int,
    radix: int,
    start: int,
    best: Arrays,
    front: tuple[Arrays, Arrays, Arrays],
) -> Scan:
    return Scan._make(
        scan_anytime(early, last, checkpoints, prices, aim, start, depth, radix, best, front)
    )
