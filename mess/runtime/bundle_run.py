"""Running bundles on a split: the label maps they give, the exits they take, the time they need."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mess.common.metrics import VOID, mean_iou
from mess.common.progress import Task
from mess.runtime.bundle import Answer, Bundle

_WARM_UP = 3


@dataclass
class BundleRun:
    """What a bundle did on a split, image by image; times in milliseconds.

    `until` is the exit that answers at the latest, the last one where it is None. The lists of
    counts have one array of shape (C,) an image.
    """

    bundle: Bundle
    until: int | None = None
    intersection: list[NDArray[np.int64]] = field(default_factory=list)
    predicted: list[NDArray[np.int64]] = field(default_factory=list)
    label: list[NDArray[np.int64]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    """Position of the exit that answered each image."""
    signal: list[float | None] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def add(self, answer: Answer, label_HW: NDArray[np.uint8], milliseconds: float) -> None:
        """Count one image."""
        classes = len(self.bundle.facts["classes"])
        # Void is left out of all three counts, as in the cache.
        valid = label_HW != VOID
        label, predicted = label_HW[valid], answer.label_map[valid]
        self.intersection.append(np.bincount(label[label == predicted], minlength=classes))
        self.predicted.append(np.bincount(predicted, minlength=classes))
        self.label.append(np.bincount(label, minlength=classes))
        self.taken.append(answer.exit_index)
        self.signal.append(answer.signal)
        self.milliseconds.append(milliseconds)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes with a non-zero union."""
        counts = (np.sum(part, axis=0) for part in (self.intersection, self.predicted, self.label))
        return float(mean_iou(*counts))

    @property
    def exit_rates(self) -> list[float]:
        """Share of the images each exit answered last."""
        exits = len(self.bundle.manifest["exits"])
        return (np.bincount(self.taken, minlength=exits) / len(self.taken)).tolist()

    @property
    def macs_I(self) -> list[float]:
        """MACs of each image."""
        costs = [exit_["macs"] for exit_ in self.bundle.manifest["exits"]]
        return [costs[index] for index in self.taken]

    @property
    def macs(self) -> float:
        """Mean MACs of an image."""
        return float(np.mean(self.macs_I))

    @property
    def latency_I(self) -> list[float]:
        """Time of each image: the median of all that its exit answered.

        Single times would carry every pause of the machine; this is also how latencies are
        predicted.
        """
        taken, times = np.array(self.taken), np.array(self.milliseconds)
        medians = {exit_: float(np.median(times[taken == exit_])) for exit_ in set(self.taken)}
        return [medians[exit_] for exit_ in self.taken]

    @property
    def latency_ms(self) -> float:
        """Mean time of an image."""
        return float(np.mean(self.latency_I))


def run_in_turns(
    runs: Sequence[BundleRun],
    images: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    task: Task,
    reference: BundleRun | None = None,
) -> None:
    """Run the bundle of each on every image, (H, W, 3), with its label, (H, W); both uint8.

    Images have the bundles' size. The label maps of `reference`, one of the runs, are in the place
    of labels that are not void where it is given.

    They take turns image by image, in alternating order, so that a slow moment of the machine
    falls on all of them.
    """
    for number, (pixels, label) in enumerate(images):
        # By the settings of each, once for all that have the same.
        normalised = {kind: kind.apply(pixels) for kind in {r.bundle.normalisation for r in runs}}
        turns = [(run, normalised[run.bundle.normalisation]) for run in runs]
        # The first runs of a program are slower; they count for no image. To every exit, which few
        # images may take.
        if number == 0:
            for run, image in turns:
                for _ in range(_WARM_UP):
                    list(run.bundle.answers(image))
        taken: list[tuple[BundleRun, Answer, float]] = []
        for run, image in turns if number % 2 else reversed(turns):
            # From the normalised tensor to the label map, as latencies are measured.
            start = time.perf_counter()
            answer = run.bundle.answer(image, until=run.until)
            taken.append((run, answer, 1000 * (time.perf_counter() - start)))
        for answer in (answer for one, answer, _ in taken if one is reference):
            label = np.where(label == VOID, np.uint8(VOID), answer.label_map)
        for run, answer, milliseconds in taken:
            run.add(answer, label, milliseconds)
        task.advance()
