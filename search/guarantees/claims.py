"""What a request promises of new images, as claims that can be tested.

A claim is of a figure that a configuration has on all images like these: what its answers lose to
the final exit's, or minus their mIoU. The claim is that it is at most a limit. A request makes one
for every limit on accuracy: of the answers, and anytime of what is delivered by each checkpoint.
Costs are not claimed: the parts of a network cost what they cost, and how many images reach them is
told with an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.guarantees.groups import Groups
from mess.search.guarantees.sampling_error import Counts
from mess.search.problem.definition import Configuration
from mess.search.problem.goal import MIOU_STEPS, Goal
from mess.search.problem.request import ACCURACY
from mess.search.problem.tables import Tables


class Claim(NamedTuple):
    """That a figure of all images is at most `limit`.

    against_final: the figure is what is lost to the final exit, in mIoU; otherwise it is minus the
        mIoU, and the limit minus the least mIoU.
    checkpoint: which of the goal's it is about; None for the answers.
    """

    limit: float
    against_final: bool
    checkpoint: int | None = None

    @property
    def counts(self) -> int:
        """Which of a run's counts it is about."""
        return 0 if self.checkpoint is None else 1 + self.checkpoint

    def value(self, final: Counts, answer: Counts) -> float:
        """The figure on these images."""
        return self.against_final * final.miou - answer.miou

    def moves_G(self, final: Counts, answer: Counts, groups: Groups) -> NDArray[np.float64]:
        """By how much each group moves it, shape (G,)."""
        without_G = self.against_final * final.without_G(groups) - answer.without_G(groups)
        return self.value(final, answer) - without_G

    def to_json(self) -> dict[str, Any]:
        """As a certificate names it: `max_error` or `min_miou`, and the checkpoint."""
        kind = "max_error" if self.against_final else "min_miou"
        return {kind: abs(self.limit), "checkpoint": self.checkpoint}


def claims_of(goal: Goal) -> tuple[Claim, ...]:
    """What the request promises; nothing where it asks for the most accurate and no more."""
    request, claims = goal.request, []
    if request.max_error is not None:
        claims.append(Claim(request.max_error, against_final=True))
    if request.min_miou is not None:
        claims.append(Claim(-request.min_miou, against_final=False))
    # Without checkpoints of its own an anytime request asks the same at half of the whole cost; one
    # for the most accurate asks for as much as there is.
    at_half = () if request.checkpoints or request.target == ACCURACY else tuple(claims)
    for index, point in enumerate(goal.checkpoints):
        claims += [claim._replace(checkpoint=index) for claim in at_half]
        if request.checkpoints and point.miou:
            claims.append(Claim(-point.miou / MIOU_STEPS, against_final=False, checkpoint=index))
    return tuple(claims)


class Picked(NamedTuple):
    """A configuration, and which exit is shown at each of the goal's checkpoints.

    That is the one which delivers most by then on the images it was picked on; -1 where none is in
    time. It has to be settled there: the best exit of new images is not known where they are.
    """

    configuration: Configuration
    shown: tuple[int, ...] = ()

    @classmethod
    def of(cls, goal: Goal, configuration: Configuration) -> Picked:
        """As picked on the images of the goal."""
        if not goal.checkpoints:
            return cls(configuration)
        found, images = goal.evaluate(configuration), goal.tables.images
        shown = []
        for point in goal.checkpoints:
            in_time = [
                (miou, choice.exit)
                for choice, miou, cost in zip(
                    configuration, found.exit_mious, found.delivered, strict=True
                )
                if cost[goal.front_metric] * images <= point.deadline
            ][: -1 if point.early else None]
            shown.append(max(in_time, default=(0.0, -1))[1])
        return cls(configuration, tuple(shown))


class Ran(NamedTuple):
    """What a configuration did on some images.

    counts: of the answers, then of what is shown at each checkpoint.
    cost_I: of each image in the front's metric, in MACs, ms or parameters.
    """

    counts: tuple[Counts, ...]
    cost_I: NDArray[np.float64]


def run(goal: Goal, picked: Picked, images: NDArray[np.intp]) -> Ran:
    """Run a configuration on the images of these indices, by the plain definition."""
    tables, metric = goal.tables, goal.ticks[goal.front_metric]
    # On all of them: tables of a part would be copied, which takes longer than to run the rest.
    found = goal.evaluate(picked.configuration)
    answer = found.answer[images]
    exits = np.array([choice.exit for choice in picked.configuration])
    counts = [counts_of(tables, exits[answer], images)]
    # Without an exit in time nothing is shown: no hit, and all that is labelled is missed.
    label = tables.label[images]
    counts += [
        counts_of(tables, np.full(len(images), exit_), images)
        if exit_ >= 0
        else Counts(np.zeros_like(label), label)
        for exit_ in picked.shown
    ]
    if found.delivered:
        paths = [cost[goal.front_metric] for cost in found.delivered]
    else:
        signals = [choice.signal for choice in picked.configuration[:-1]]
        paths = metric.paths(exits.tolist(), signals)
    cost_I = np.array([metric.to_unit(path) for path in paths])[answer]
    return Ran(tuple(counts), cost_I)


def counts_of(tables: Tables, exit_I: NDArray[np.integer], images: NDArray[np.integer]) -> Counts:
    """Counts of images by index, each answered by an exit."""
    return Counts.of(
        tables.intersection[exit_I, images], tables.predicted[exit_I, images], tables.label[images]
    )


def counts_of_parts(parts: Sequence[tuple[NDArray[np.intp], Counts]], images: int) -> Counts:
    """The counts of all images from those of parts, each with the indices of its images."""
    classes = parts[0][1].hits_IC.shape[1]
    hits, union = np.zeros((2, images, classes), dtype=np.int64)
    for indices, counts in parts:
        hits[indices], union[indices] = counts.hits_IC, counts.union_IC
    return Counts(hits, union)
