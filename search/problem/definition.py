"""What one configuration does and costs: the plain definition every search is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.common.metrics import mean_iou
from mess.search.problem.costs import LATENCY, Ticks
from mess.search.problem.tables import Tables
from mess.signals.decision import answering_exit


class Choice(NamedTuple):
    """A selected exit by its index; every one but the last has a signal (index) and threshold.

    Where a signal compares exits the first one has neither: it is only compared with.
    """

    exit: int
    signal: int | None = None
    threshold: float | None = None


Configuration = tuple[Choice, ...]
"""Selected exits in order of depth; the last one answers what reaches it."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one configuration.

    answer: shape (I,), position of each image's answering exit; in the anytime setting the last.
    exit_rates: share of the images each exit answers; in the anytime setting each answers all.
    miou: mIoU of the answers; in the anytime setting of the last one.
    totals: cost summed over the images, by metric, in whole steps (`costs.TICKS`).
    costs: cost of an image, by metric, in MACs, ms and parameters; latency is the mean or the p90.
    delivered: anytime only, cost by metric at which each exit delivers its answer, in whole steps.
    exit_mious: anytime only, mIoU of each exit.
    """

    answer: NDArray[np.intp]
    exit_rates: tuple[float, ...]
    miou: float
    totals: dict[str, int]
    costs: dict[str, float]
    delivered: tuple[dict[str, int], ...] = ()
    exit_mious: tuple[float, ...] = ()


def evaluate(
    tables: Tables,
    ticks: Mapping[str, Ticks],
    configuration: Configuration,
    latency_stat: str = "mean",
) -> Evaluation:
    """Run every image through a configuration, each answered by one exit (MESS paper, Table 1).

    Covers the input-dependent, budgeted and final-only settings. Mean costs weigh each exit's path
    with its rate; the p90 latency is the path of the first exit by which 90% of the images have
    left.
    """
    exits = [choice.exit for choice in configuration]
    signals, observed, thresholds = _policy(tables, configuration)
    answer = answering_exit(observed, thresholds, tables.images)
    counts = np.bincount(answer, minlength=len(exits))

    totals = {}
    for metric, cost in ticks.items():
        paths = cost.paths(exits, signals)
        if metric == LATENCY and latency_stat == "p90":
            # In whole numbers: 0.9 times the images would be rounded where it matters.
            left = 10 * np.cumsum(counts) >= 9 * tables.images
            totals[metric] = paths[int(np.argmax(left))] * tables.images
        else:
            totals[metric] = sum(int(n) * path for n, path in zip(counts, paths, strict=True))
    return Evaluation(
        answer=answer,
        exit_rates=tuple(float(rate) for rate in counts / tables.images),
        miou=_miou(tables, np.asarray(exits)[answer]),
        totals=totals,
        costs=_per_image(totals, ticks, tables.images),
    )


def evaluate_anytime(
    tables: Tables, ticks: Mapping[str, Ticks], configuration: Configuration
) -> Evaluation:
    """Run the whole network with all selected exits, each delivering an answer on the way.

    The last selected exit sits at the last point. An exit delivers after the backbone up to its
    point, the exits up to itself and its own upsampling and argmax: an earlier answer is upsampled
    only if it is asked for.
    """
    exits = [choice.exit for choice in configuration]
    delivered: tuple[dict[str, int], ...] = tuple({} for _ in exits)
    for metric, cost in ticks.items():
        for exit_, path in zip(delivered, cost.deliveries(exits), strict=True):
            exit_[metric] = path
    totals = {metric: path * tables.images for metric, path in delivered[-1].items()}
    mious = tuple(_miou(tables, np.full(tables.images, exit_)) for exit_ in exits)
    return Evaluation(
        answer=np.full(tables.images, len(exits) - 1),
        exit_rates=(1.0,) * len(exits),
        miou=mious[-1],
        totals=totals,
        costs=_per_image(totals, ticks, tables.images),
        delivered=delivered,
        exit_mious=mious,
    )


def delivered_by(
    evaluation: Evaluation, metric: str, deadline: int, images: int, *, early: bool = False
) -> float:
    """Best mIoU that an exit delivers by `deadline` steps over all images; 0.0 if none does.

    With `early` the last exit does not count.
    """
    counting = len(evaluation.exit_mious) - early
    in_time = [
        miou
        for miou, cost in zip(
            evaluation.exit_mious[:counting], evaluation.delivered[:counting], strict=True
        )
        if cost[metric] * images <= deadline
    ]
    return max(in_time, default=0.0)


def _policy(
    tables: Tables, configuration: Configuration
) -> tuple[list[int | None], list[NDArray[np.float32] | None], list[float | None]]:
    """Signals, what they are on every image, and thresholds of the exits but the last."""
    signals: list[int | None] = []
    observed: list[NDArray[np.float32] | None] = []
    thresholds: list[float | None] = []
    before = None
    for choice in configuration[:-1]:
        compared_with = tables.pairs is not None and before is None
        if compared_with != (choice.signal is None) or compared_with != (choice.threshold is None):
            raise ValueError(
                f"exit {choice.exit} is the first of a policy that compares exits and takes "
                "neither signal nor threshold"
                if compared_with
                else f"exit {choice.exit} is not the last one and needs a signal and threshold"
            )
        signals.append(choice.signal)
        thresholds.append(choice.threshold)
        observed.append(
            None if choice.signal is None else tables.observed(choice.exit, choice.signal, before)
        )
        before = choice.exit
    return signals, observed, thresholds


def _miou(tables: Tables, exit_of_image: NDArray[np.integer]) -> float:
    """MIoU when image i is answered by `exit_of_image[i]`; shape (I,)."""
    images = np.arange(tables.images)
    intersection = tables.intersection[exit_of_image, images].sum(axis=0, dtype=np.int64)
    predicted = tables.predicted[exit_of_image, images].sum(axis=0, dtype=np.int64)
    label = tables.label.sum(axis=0, dtype=np.int64)
    return float(mean_iou(intersection, predicted, label))


def _per_image(
    totals: Mapping[str, int], ticks: Mapping[str, Ticks], images: int
) -> dict[str, float]:
    return {metric: ticks[metric].to_unit(total / images) for metric, total in totals.items()}
