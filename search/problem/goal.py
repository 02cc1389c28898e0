"""A request made concrete for given tables: limits, ranking and the tie rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from mess.errors import ConfigError
from mess.search.problem.costs import TICKS, Ticks
from mess.search.problem.definition import (
    Choice,
    Configuration,
    Evaluation,
    delivered_by,
    evaluate,
)
from mess.search.problem.request import ACCURACY, Request
from mess.search.problem.settings import Setting, find_setting
from mess.search.problem.tables import Tables

MIOU_STEPS = 10**12
"""mIoU is compared in whole steps of 1e-12, so that rounding in a sum decides nothing."""


def miou_steps(miou: float) -> int:
    """MIoU in whole steps."""
    return round(miou * MIOU_STEPS)


class Rank(NamedTuple):
    """The tie rule: the smallest rank wins.

    objective: the target's cost, or minus the mIoU when accuracy is maximised.
    tie: minus the mIoU, or the cost in the front's metric when accuracy is maximised.
    order: fewer exits first, then the configuration in lexicographic order of (exit index, signal
        index, threshold), as one number.
    Costs are totals over the images in whole steps, mIoU is in steps of 1e-12.
    """

    objective: int
    tie: int
    order: int


NO_DEADLINE = 2**61
"""A total that none reaches, in whole steps."""


class Checkpoint(NamedTuple):
    """By `deadline` (a total in whole steps) some exit delivers an mIoU of `miou` steps.

    early: the network's own head, which ends the instance, does not count.
    """

    deadline: int
    miou: int
    early: bool = False


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Limits and ranking of a request on given tables.

    metrics: the metrics that decide something: target, limits and front.
    limits: totals over the images in whole steps, by metric.
    miou_limit: in steps; -1 without an accuracy constraint.
    """

    tables: Tables
    ticks: Mapping[str, Ticks]
    request: Request
    baseline: Evaluation
    front_metric: str
    metrics: tuple[str, ...]
    limits: Mapping[str, int]
    miou_limit: int
    checkpoints: tuple[Checkpoint, ...]

    @classmethod
    def of(cls, tables: Tables, ticks: Mapping[str, Ticks], request: Request) -> Goal:
        """Resolve the limits of `request` against the baseline, the `final` exit alone."""
        needed = set(request.limits) | {request.cost_metric(ticks)}
        for metric in sorted(needed - set(ticks)):
            raise ConfigError(
                f"the request needs {metric}, but only {', '.join(ticks)} are known; "
                "measure it first (`mess profile`) or choose another target"
            )
        baseline = evaluate(tables, ticks, (Choice(tables.final),), request.latency_stat)
        front_metric = request.cost_metric(ticks)
        miou_limit = _miou_limit(request, baseline)
        return cls(
            tables=tables,
            ticks=ticks,
            request=request,
            baseline=baseline,
            front_metric=front_metric,
            metrics=tuple(metric for metric in TICKS if metric in needed),
            limits={m: total_steps(m, limit, tables.images) for m, limit in request.limits.items()},
            miou_limit=miou_limit,
            checkpoints=_checkpoints(request, baseline, front_metric, miou_limit, tables.images),
        )

    @property
    def setting(self) -> Setting:
        """The setting that the request names."""
        return find_setting(self.request.setting)

    def rank(self, totals: Mapping[str, int], miou: int, order: int) -> Rank:
        """Rank of a candidate with the given totals, mIoU (steps) and order."""
        if self.request.target == ACCURACY:
            return Rank(-miou, totals[self.front_metric], order)
        return Rank(totals[self.request.target], -miou, order)

    def evaluate(self, configuration: Configuration) -> Evaluation:
        """Figures of a configuration in the request's setting."""
        stat = self.request.latency_stat
        return self.setting.evaluate(self.tables, self.ticks, configuration, stat)

    def delivered(self, evaluation: Evaluation) -> list[float]:
        """Anytime only: best mIoU delivered by each checkpoint."""
        return [
            delivered_by(
                evaluation,
                self.front_metric,
                point.deadline,
                self.tables.images,
                early=point.early,
            )
            for point in self.checkpoints
        ]

    def quality(self, evaluation: Evaluation) -> float:
        """The mIoU that is maximised: of the answers, or anytime the checkpoints' mean."""
        delivered = self.delivered(evaluation)
        return sum(delivered) / len(delivered) if delivered else evaluation.miou

    def quality_steps(self, evaluation: Evaluation) -> int:
        """The mIoU that is maximised, in whole steps; anytime the sum over the checkpoints.

        The `miou` of a front's points is the same number.
        """
        delivered = self.delivered(evaluation)
        return sum(map(miou_steps, delivered)) if delivered else miou_steps(evaluation.miou)

    def objective(self, evaluation: Evaluation) -> int:
        """What is minimised, in whole steps: a cost, or minus the mIoU."""
        if self.request.target == ACCURACY:
            return -self.quality_steps(evaluation)
        return evaluation.totals[self.request.target]

    def meets(self, evaluation: Evaluation) -> bool:
        """Whether a configuration keeps every limit."""
        delivered = map(miou_steps, self.delivered(evaluation))
        return (
            self.affordable(evaluation.totals)
            and miou_steps(evaluation.miou) >= self.miou_limit
            and all(
                got >= point.miou for got, point in zip(delivered, self.checkpoints, strict=True)
            )
        )

    def relaxed(self, dropped: Iterable[str], target: str) -> Goal:
        """The goal without the `dropped` limits (metrics or accuracy), and with another target."""
        dropped = set(dropped)
        accurate = ACCURACY not in dropped
        return replace(
            self,
            request=replace(self.request, target=target),
            metrics=tuple(m for m in TICKS if m in {*self.metrics, target}),
            limits={m: limit for m, limit in self.limits.items() if m not in dropped},
            miou_limit=self.miou_limit if accurate else -1,
            # They stay where they ask for nothing: accuracy is still what is delivered by them.
            checkpoints=tuple(
                point if accurate else point._replace(miou=0) for point in self.checkpoints
            ),
        )

    def affordable(self, totals: Mapping[str, int]) -> bool:
        """Whether the totals respect every cost limit."""
        return all(totals[metric] <= limit for metric, limit in self.limits.items())


def total_steps(metric: str, cost: float, images: int) -> int:
    """A limit on the cost of an image as a limit on the total, to the nearest step.

    Rounding to the nearest lets a limit that was copied from a reported cost admit that cost.
    """
    # A fraction, as picoseconds over many images are more than float64 holds in whole numbers.
    return round(Fraction(cost) * TICKS[metric] * images)


def _miou_limit(request: Request, baseline: Evaluation) -> int:
    limits = [-1]
    if request.min_miou is not None:
        limits.append(miou_steps(request.min_miou))
    if request.max_error is not None:
        limits.append(miou_steps(baseline.miou - request.max_error))
    return max(limits)


def _checkpoints(
    request: Request, baseline: Evaluation, metric: str, miou_limit: int, images: int
) -> tuple[Checkpoint, ...]:
    if not find_setting(request.setting).every_exit_answers:
        return ()
    if request.checkpoints:
        return tuple(
            Checkpoint(NO_DEADLINE, miou_steps(miou), early=True)
            if cost is None
            else Checkpoint(min(total_steps(metric, cost, images), NO_DEADLINE), miou_steps(miou))
            for cost, miou in request.checkpoints
        )
    required = 0 if request.target == ACCURACY else max(miou_limit, 0)
    return (Checkpoint(baseline.totals[metric] // 2, required),)
