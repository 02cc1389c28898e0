"""What an instance did on some images, with intervals for all images like them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.errors import ConfigError, DataError
from mess.runs.groups import distinct_groups
from mess.runs.run import Run
from mess.search.answers.answer import Answer
from mess.search.guarantees.claims import counts_of
from mess.search.guarantees.confidence import EXPECTED
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.intervals import (
    DRAWS,
    FEWER_DRAWS,
    Accuracies,
    Interval,
    mean_interval,
    rare_classes,
    share_interval,
)
from mess.search.guarantees.sampling_error import Counts, Estimate
from mess.search.problem.costs import LATENCY, MACS

COSTS = {MACS: "macs", LATENCY: "latency_ms"}
"""Keys of what an image costs on average; parameters are the same for all images."""

_STREAM = (0x696E74,)
"""So that no other draw of the same seed takes the same groups."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an instance did, image by image (I images, C classes).

    final, answer: counts of the network run to its end, and of each image's answering exit.
    label_IC: labelled pixels.
    answered: by exit that images may leave at, which of them it answered, shape (I,); None for one
        that is only compared with. Empty where the exit does not depend on the image.
    costs: of each image, shape (I,), by its key in results.
    exits: counts of each exit's own answers, by its id, where every exit answers.
    searched: how many of the images chose the instance; None where that is not known.
    """

    final: Counts
    answer: Counts
    label_IC: NDArray[np.int64]
    answered: Sequence[NDArray[np.bool_] | None] = ()
    costs: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    exits: Mapping[str, Counts] = field(default_factory=dict)
    searched: int | None = None


def answered_by(
    taken_I: NDArray[np.integer], may_leave: Sequence[bool]
) -> list[NDArray[np.bool_] | None]:
    """See `Measured.answered`, from the position of each image's exit."""
    return [taken_I == n if may else None for n, may in enumerate(may_leave)]


def groups_or_reason(place: Run, images: Mapping[str, str]) -> Groups | str:
    """The groups of images as the run names them, or why they tell nothing about others.

    images: the fingerprint of each, by id: copies of one image tell no more than it does.
    """
    try:
        groups = distinct_groups(place.config.data, images)
        groups.strength()
    except (ConfigError, DataError) as error:
        return str(error)
    return groups


def rare_names(label_IC: NDArray[np.integer], groups: Groups, classes: Sequence[str]) -> list[str]:
    """The classes that too few groups have to promise anything about."""
    rare_C = rare_classes(label_IC, groups)
    return [name for name, rare in zip(classes, rare_C, strict=True) if rare]


def intervals_of(
    measured: Measured,
    groups: Groups | str,
    classes: Sequence[str],
    seed: int,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """The `intervals` of a result (docs/files.md), at 95%.

    groups: those of the images, or the reason why there are no intervals.
    """
    told = _about(groups, len(measured.label_IC)) | {"searched": measured.searched}
    if isinstance(groups, str):
        return told
    found = Accuracies.of(
        (measured.final, measured.answer, *measured.exits.values()),
        measured.label_IC, groups, EXPECTED, _rng(seed), draws,
    )  # fmt: skip
    error = found.error(1, 0)
    told |= {
        "rare": rare_names(measured.label_IC, groups, classes),
        "miou": _json(found.miou(1)),
        "error": _error(error),
        "skewed": error is not None and error.is_skewed,
        "baseline": {"miou": _json(found.miou(0))},
        "exit_rates": [
            None if which is None else share_interval(which, groups, EXPECTED).to_json()
            for which in measured.answered
        ],
        "classes": [_class(found, index, name) for index, name in enumerate(classes)],
    }
    for key, cost_I in measured.costs.items():
        told[key] = mean_interval(cost_I, groups, EXPECTED).to_json()
    if measured.exits:
        told["exits"] = [
            {"exit_id": exit_id, "miou": _json(found.miou(n)), "error": _error(found.error(n, 0))}
            for n, exit_id in enumerate(measured.exits, start=2)
        ]
    return told


def _class(found: Accuracies, index: int, name: str) -> dict[str, Any]:
    """The figures of a class; those of a rare one have no ends."""
    whole, answer = found.iou_KC[:2, index]

    def figure(interval: Interval | None, value: float) -> dict[str, float | None]:
        if interval is not None:
            return {**interval.to_json()}
        return {"value": None if np.isnan(value) else float(value), "low": None, "high": None}

    return {
        "class": name,
        "groups": int(found.groups_C[index]),
        "iou": figure(found.iou(1, index), answer),
        "baseline": figure(found.iou(0, index), whole),
        "error": figure(found.lost_iou(1, index, 0), whole - answer),
    }


def measured_answer(answer: Answer) -> Measured:
    """What a search's answer did on the images that chose it."""
    goal, configuration = answer.goal, answer.configuration
    tables, images = goal.tables, np.arange(goal.tables.images)
    exits = np.array([choice.exit for choice in configuration])
    taken_I = answer.evaluation.answer
    # With a single exit, too, every image takes the same way.
    routed = goal.setting.signals_decide and len(exits) > 1
    may_leave = [*(choice.signal is not None for choice in configuration[:-1]), True]
    costs: dict[str, NDArray[np.float64]] = {}
    for metric, key in COSTS.items():
        # A percentile is no mean.
        is_mean = metric != LATENCY or goal.request.latency_stat == "mean"
        if not (is_mean and metric in goal.ticks):
            continue
        ticks = goal.ticks[metric]
        paths = ticks.paths(exits.tolist(), [choice.signal for choice in configuration[:-1]])
        costs[key] = np.array([ticks.to_unit(path) for path in paths])[taken_I]
    return Measured(
        final=counts_of(tables, np.full(tables.images, tables.final), images),
        answer=counts_of(tables, exits[taken_I], images),
        label_IC=tables.label,
        answered=answered_by(taken_I, may_leave) if routed else (),
        costs=costs,
        exits={
            tables.exit_ids[exit_]: counts_of(tables, np.full(tables.images, exit_), images)
            for exit_ in (exits if goal.setting.every_exit_answers else ())
        },
        searched=tables.images,
    )


def held_against(
    best: Measured,
    others: Sequence[Measured],
    groups: Groups | str,
    classes: Sequence[str],
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What each of the others loses to the best one and costs more, paired image by image.

    First what is said of all of them, then a row each; no rows where there are no intervals.
    """
    told = _about(groups, len(best.label_IC))
    if isinstance(groups, str):
        return told, []
    found = Accuracies.of(
        (best.answer, *(other.answer for other in others)),
        best.label_IC, groups, EXPECTED, _rng(seed), FEWER_DRAWS,
    )  # fmt: skip
    rows = [
        {"error": _error(found.error(n, 0))}
        | {
            key: mean_interval(cost_I - best.costs[key], groups, EXPECTED).to_json()
            for key, cost_I in other.costs.items()
        }
        for n, other in enumerate(others, start=1)
    ]
    told["rare"] = rare_names(best.label_IC, groups, classes)
    return told, rows


def _about(groups: Groups | str, images: int) -> dict[str, Any]:
    """What is said of every figure; `strength` is None where there are no intervals."""
    told: dict[str, Any] = {"confidence": EXPECTED, "images": images}
    if isinstance(groups, str):
        return told | {"groups": None, "strength": None, "reason": groups}
    return told | {"groups": len(groups), "strength": groups.strength(), "reason": None}


def _rng(seed: int) -> np.random.Generator:
    # A negative seed is one, too, and numpy takes none.
    return np.random.default_rng([seed % 2**64, *_STREAM])


def _error(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else estimate.to_json(EXPECTED)


def _json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval.to_json()
