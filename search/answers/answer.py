"""`search`: a request in, the best instance and the front out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mess.errors import InfeasibleError
from mess.search.answers.explanation import explain
from mess.search.answers.gap import gap
from mess.search.answers.infeasible import Best, infeasible
from mess.search.answers.stopwatch import stopwatch
from mess.search.exact.cover import Progress, cover, optimum
from mess.search.exact.workers import ALL_CORES, Team, Workers
from mess.search.problem.costs import LATENCY, MACS, PARAMS, Cost, to_ticks
from mess.search.problem.definition import Configuration, Evaluation
from mess.search.problem.front import FrontPoint
from mess.search.problem.goal import MIOU_STEPS, Goal
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables
from mess.search.sampled.sample import sample

_KEYS = {MACS: "macs", LATENCY: "latency_ms", PARAMS: "params"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The best configuration of the stated space, and the front of all of them.

    evaluation: the figures of `configuration` by the plain definition, not the kernels'.
    front: empty where it was not asked for; front_proven: whether it is that of the whole space.
    evaluated, pruned: configurations whose mIoU was computed, and those ruled out by their cost
        alone (`by_cost`) or by a bound on the mIoU of many at once (`by_bound`). After an interrupt
        they are less than all.
    gap: 0 if `configuration` is proven optimal; otherwise by how much another one may be better, as
        `mess.search.answers.gap.gap` states it; None where no bound is known.
    seconds: without those that kernels took to compile, which later searches find compiled.
    """

    goal: Goal
    configuration: Configuration
    evaluation: Evaluation
    front: tuple[FrontPoint[Configuration], ...]
    front_proven: bool
    space: dict[str, Any]
    configurations: int
    evaluated: int
    pruned: Mapping[str, int]
    gap: float | None
    seconds: float
    algorithm: str = "exhaustive"

    def to_result(self) -> dict[str, Any]:
        """The content of `result.json`, without `cache`.

        `latency_ms` is null without a profile, and the mean or p90 as `constraints.latency_stat`
        says. In the anytime setting each exit also has its `delivered` cost and `miou`, and
        `checkpoints` lists what is delivered by when; `cost` is null where an early exit is asked
        for without a deadline.
        """
        request = self.goal.request
        result = {
            "setting": request.setting,
            "target": request.target,
            "constraints": request.constraints(),
            "exits": self._exits(self.configuration, self.evaluation),
            "predicted": _figures(self.evaluation),
            "baseline": _figures(self.goal.baseline),
            "error": self.goal.baseline.miou - self.evaluation.miou,
            "search": {
                "algorithm": self.algorithm,
                "space": self.space,
                "configurations": self.configurations,
                "evaluated": self.evaluated,
                "pruned": dict(self.pruned),
                "optimal": self.gap == 0,
                "gap": self.gap,
                "seconds": self.seconds,
            },
            "explanation": self._explanation(),
        }
        if self.goal.setting.every_exit_answers:
            result["checkpoints"] = self._checkpoints()
        return result

    def front_rows(self) -> list[dict[str, Any]]:
        """The rows of `front.parquet`, cheapest first.

        `miou` of an anytime configuration is the mean over the checkpoints of the best mIoU
        delivered by then; its last answer is always the baseline's.
        """
        rows = []
        for point in self.front:
            evaluation = self.goal.evaluate(point.payload)
            row = _figures(evaluation) | {"miou": self.goal.quality(evaluation)}
            row["configuration"] = json.dumps(self._exits(point.payload, evaluation))
            rows.append(row | {"proven": self.front_proven})
        return rows

    def _explanation(self) -> dict[str, Any]:
        """See `explain`; empty for an answer that is not proven, and where it is interrupted."""
        if self.gap != 0:
            return {}
        front = self.front if self.front_proven else None
        try:
            return explain(self.goal, front, self.configuration, _solve)
        except KeyboardInterrupt:
            # The answer is proven all the same, and not lost.
            return {}

    def _exits(self, configuration: Configuration, evaluation: Evaluation) -> list[dict[str, Any]]:
        tables, rows = self.goal.tables, []
        for position, choice in enumerate(configuration):
            row = {
                "exit_id": tables.exit_ids[choice.exit],
                "signal": None if choice.signal is None else tables.signal_names[choice.signal],
                "threshold": choice.threshold,
                "exit_rate": evaluation.exit_rates[position],
            }
            if evaluation.delivered:
                row["delivered"] = {
                    _KEYS[metric]: self.goal.ticks[metric].to_unit(cost)
                    for metric, cost in evaluation.delivered[position].items()
                }
                row["miou"] = evaluation.exit_mious[position]
            rows.append(row)
        return rows

    def _checkpoints(self) -> list[dict[str, Any]]:
        ticks, images = self.goal.ticks[self.goal.front_metric], self.goal.tables.images
        return [
            {
                "metric": self.goal.front_metric,
                "cost": None if checkpoint.early else ticks.to_unit(checkpoint.deadline / images),
                "required": checkpoint.miou / MIOU_STEPS,
                "miou": miou,
            }
            for checkpoint, miou in zip(
                self.goal.checkpoints, self.goal.delivered(self.evaluation), strict=True
            )
        ]


def search(
    tables: Tables,
    costs: Mapping[str, Cost],
    request: Request,
    progress: Progress | None = None,
    threads: int | None = None,
    front: bool = True,
    algorithm: str = "exhaustive",
    team: Team | None = None,
    **sampling: Any,
) -> Answer:
    """The best configuration for `request`, proven so within the space that the answer states.

    First the answer is proven, then the `front` of the whole space. An interrupt (Ctrl-C) returns
    the best so far with its proven gap, or the proven answer with an unproven front. Neither answer
    nor counts depend on `threads` (default: all cores) or the `team`, each of whose processes
    searches a part and returns the answer. Raises `InfeasibleError` with the nearest feasible
    requests, and `ConfigError` for a request that cannot be searched.

    Algorithm `optuna` samples instead, and proves nothing beyond instances with two exits, which it
    starts from; `sampling` are options of `mess.search.sampled.sample.sample`.
    """
    goal, workers = Goal.of(tables, to_ticks(tables, costs), request), Workers(threads, team)
    with stopwatch() as elapsed:
        if algorithm == "optuna":
            return _sampled(goal, elapsed, progress, workers, **sampling)
        return _covered(goal, elapsed, progress, workers, front=front)


def _covered(
    goal: Goal,
    elapsed: Callable[[], float],
    progress: Progress | None,
    workers: Workers,
    *,
    front: bool,
) -> Answer:
    """The best of the whole space."""
    covered = cover(goal, collect=front, progress=progress, workers=workers)
    found = covered.found
    if found.best is None:
        raise infeasible(goal, partial(_solve, workers=workers))
    rank, configuration = found.best
    return Answer(
        goal=goal,
        configuration=configuration,
        evaluation=goal.evaluate(configuration),
        front=found.front.points if front else (),
        front_proven=front and found.front_proven,
        space=covered.space,
        configurations=covered.configurations,
        evaluated=found.evaluated,
        pruned={"by_cost": found.pruned, "by_bound": found.bounded},
        gap=0.0 if found.proven else gap(goal, rank.objective),
        seconds=elapsed(),
    )


def _sampled(
    goal: Goal,
    elapsed: Callable[[], float],
    progress: Progress | None,
    workers: Workers,
    **sampling: Any,
) -> Answer:
    """The best of a study that begins with the exact answer and front of up to two exits."""
    few = replace(goal, request=replace(goal.request, max_exits=min(2, goal.request.max_exits)))
    exact = cover(few, workers=workers).found
    if not exact.front_proven:
        # An interrupt is of the whole command, not of where the study starts.
        raise KeyboardInterrupt
    starts = [point.payload for point in exact.front.points]
    if exact.best is not None:
        starts.insert(0, exact.best[1])
    sampled = sample(goal, starts=starts, progress=progress, **sampling)
    found = sampled.found
    if found.best is None:
        raise InfeasibleError(
            f"none of {found.evaluated} trials meets the limits. Raise --trials or relax a limit; "
            "a search with fewer exits, without --algorithm optuna, says by how much."
        )
    configuration = found.best[1]
    return Answer(
        goal=goal,
        configuration=configuration,
        evaluation=goal.evaluate(configuration),
        front=found.front.points,
        front_proven=False,
        space=sampled.space,
        configurations=sampled.configurations,
        evaluated=found.evaluated,
        pruned={"by_cost": 0, "by_bound": 0},
        gap=None,
        seconds=elapsed(),
        algorithm="optuna",
    )


def _solve(goal: Goal, workers: Workers = ALL_CORES) -> Best | None:
    best = optimum(goal, workers)
    return None if best is None else Best.of(goal, best)


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    costs = evaluation.costs
    return {
        "miou": evaluation.miou,
        "macs": costs[MACS],
        "latency_ms": costs.get(LATENCY),
        "params": int(costs[PARAMS]),
    }
