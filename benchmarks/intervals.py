"""How often intervals hold what they are for, and how long the bootstrap takes.

    python benchmarks/intervals.py [--parts speed independent groups classes] [--draws N]
        [--workers N] [--output FILE]

Coverage: of a population of 20,000 images (that of `guarantees.py`) some are drawn, groups whole.
An instance that answers half of them early is held against the population: is the truth within the
interval at 95%, and how wide is that? By two methods:

- bootstrap: that of `mess.search.guarantees.intervals`, shown of mIoU and of the IoU of a class.
- jackknife: that of `mess.search.guarantees.sampling_error`, which certificates rest on, and which
  is shown of an error.

For mIoU and error (over the classes that are not rare in the draw, in the population too), and for
the IoU of these classes by the number of groups that have them; `error skewed` is the share of
draws whose error is said to be uncertain. `all_error` is the error over all
classes by the jackknife, rare ones included, as certificates bound it. Speed: of 10,000 draws of an
instance beside the network run to its end, every interval made, in seconds and in those that
processors worked, which other work on the machine lengthens less.

Every figure is in FILE as soon as it is measured: given again, the command goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from guarantees import Case, Population, population
from numpy.typing import NDArray
from results import Results, Row, machine_facts

from mess.search.guarantees.claims import counts_of
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.intervals import DRAWS, Accuracies, Interval
from mess.search.guarantees.sampling_error import (
    Counts,
    Estimate,
    error_estimate,
    miou_estimate,
)

CONFIDENCE = 0.95

OF_CLASS = (8, 12, 20, 50)
"""Classes are told apart by how many groups have them: up to so many, and more."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What is drawn: groups of so many images each."""

    part: str
    groups: int
    group: int = 1
    classes: int = 21


COVERAGE = [
    *(Drawn(part="independent", groups=n) for n in (20, 50, 120, 500)),
    *(Drawn(part="groups", groups=n, group=10) for n in (6, 10, 20, 50)),
    *(Drawn(part="classes", groups=n, group=10, classes=60) for n in (10, 20, 50)),
    Drawn(part="classes", groups=500, classes=60),
]

SPEED = [(240, 6), (500, 21), (1449, 21), (1449, 60), (1449, 150), (5000, 21)]
"""Images and classes; 1,449 are those of VOC's val."""


class Instance(NamedTuple):
    """Counts of the network run to its end and of the instance, and the labels."""

    final: Counts
    answer: Counts
    label_IC: NDArray[np.int64]

    def of(self, images: NDArray[np.intp], classes: NDArray[np.bool_] | None = None) -> Instance:
        """On some images, and some classes alone."""
        columns = slice(None) if classes is None else classes
        final, answer = (
            Counts(c.hits_IC[images][:, columns], c.union_IC[images][:, columns])
            for c in (self.final, self.answer)
        )
        return Instance(final, answer, self.label_IC[images][:, columns])


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = list(dict.fromkeys(["speed", *(case.part for case in COVERAGE)]))
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("runs/intervals.json"))
    options = parser.parse_args()
    results = Results(options.output, machine_facts("mess", "numpy", "scipy"))
    if "speed" in options.parts:
        for images, classes in SPEED:
            case = {"part": "speed", "images": images, "classes": classes, "draws": DRAWS}
            row = results.measure(case, partial(measure_speed, images, classes))
            times = f"{row['seconds']:.2f} s | {row['processor_seconds']:.2f} s"
            print(f"| {images:,} | {classes} | {times} |")
    for case in COVERAGE:
        if case.part in options.parts:
            row = results.measure(
                asdict(case) | {"draws": options.draws},
                partial(measure_coverage, case, options.draws, options.workers),
            )
            print(line(row))


def measure_speed(images: int, classes: int, rounds: int = 5) -> Row:
    """Of the fastest of some rounds: seconds, and those that processors worked, of all cores."""
    rng = np.random.default_rng(0)
    label = rng.poisson(100, (images, classes))
    hits = rng.binomial(label, 0.8)
    answer, final = Counts.of(hits, hits + 20, label), Counts.of(hits, hits + 10, label)
    seconds, worked = [], []
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        found = Accuracies.of((final, answer), label, Groups.alone(images), CONFIDENCE, rng)
        for _ in intervals(found):
            pass
        seconds.append(time.perf_counter() - start)
        worked.append(time.process_time() - busy)
    return {"seconds": min(seconds), "processor_seconds": min(worked)}


def intervals(found: Accuracies) -> Iterator[Interval | Estimate | None]:
    """Every interval that is shown of an instance."""
    yield from (found.miou(0), found.miou(1), found.error(1, 0))
    for class_ in range(len(found.groups_C)):
        yield from (found.iou(1, class_), found.lost_iou(1, class_, 0))


def measure_coverage(case: Drawn, draws: int, workers: int) -> Row:
    """Share of the draws whose interval holds the truth, and its mean width; by figure, method."""
    instance_of(case)
    held: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    # The tables are large: forked processes share what was made before.
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        for found in pool.map(partial(draw, case), range(draws), chunksize=4):
            for name, value in found:
                held[name].append(value)
    return {
        name: {
            "covered": float(np.mean([inside for inside, _ in found])),
            "width": float(np.mean([width for _, width in found])),
            "count": len(found),
        }
        for name, found in sorted(held.items())
    }


def draw(case: Drawn, number: int) -> list[tuple[str, tuple[bool, float]]]:
    """Whether each interval of one draw holds the truth, and its width."""
    rng = np.random.default_rng([number, 3])
    whole, instance = of_population(case), instance_of(case)
    images, groups = whole.draw(rng, case.groups)
    some = instance.of(images)
    found = Accuracies.of((some.final, some.answer), some.label_IC, groups, CONFIDENCE, rng)
    common = ~found.rare_C
    everything = np.arange(len(instance.label_IC))
    truth, there = instance.of(everything, common), some.of(np.arange(len(images)), common)
    rows: list[tuple[str, tuple[bool, float]]] = []

    def hold(name: str, found: Interval | Estimate | None, true: float) -> None:
        if found is None:
            return
        is_estimate = isinstance(found, Estimate)
        low, high = found.interval(CONFIDENCE) if is_estimate else (found.low, found.high)
        rows.append((name, (low <= true <= high, high - low)))

    error = instance.final.miou - instance.answer.miou
    hold("all_error jackknife", error_estimate(some.final, some.answer, groups), error)
    if not common.any():
        return rows
    miou, error = truth.answer.miou, truth.final.miou - truth.answer.miou
    hold("miou bootstrap", found.miou(1), miou)
    hold("miou jackknife", miou_estimate(there.answer, groups), miou)
    shown = found.error(1, 0)
    hold("error jackknife", shown, error)
    rows.append(("error skewed", (shown is not None and shown.is_skewed, 0.0)))
    true_C = ious(instance.answer)
    for class_ in np.flatnonzero(common).tolist():
        count = int(found.groups_C[class_])
        name = f"class in {next((f'<= {n}' for n in OF_CLASS if count <= n), f'> {OF_CLASS[-1]}')}"
        alone = some.of(np.arange(len(images)), np.arange(len(common)) == class_).answer
        hold(f"{name} bootstrap", found.iou(1, class_), true_C[class_])
        hold(f"{name} jackknife", miou_estimate(alone, groups), true_C[class_])
    return rows


def ious(counts: Counts) -> NDArray[np.float64]:
    return counts.hits_IC.sum(axis=0) / counts.union_IC.sum(axis=0)


def of_population(case: Drawn) -> Population:
    """All the images there are."""
    return population(Case(part="", classes=case.classes, group=case.group))


@lru_cache(maxsize=1)
def instance_of(case: Drawn) -> Instance:
    """Half of the images leave at the second point."""
    tables = of_population(case).tables
    everything, early = np.arange(tables.images), 2
    signal = tables.signals[early, :, 0]
    exit_I = np.where(signal >= np.median(signal), early, tables.final)
    return Instance(
        counts_of(tables, np.full(tables.images, tables.final), everything),
        counts_of(tables, exit_I, everything),
        tables.label,
    )


def line(row: Row) -> str:
    """A row of the table in docs/guarantees.md."""
    size = "" if row["group"] == 1 else f" of {row['group']}"
    names = ["miou", f"class in <= {OF_CLASS[0]}", f"class in <= {OF_CLASS[2]}"]

    def percent(name: str) -> str:
        return f"{100 * row[name]['covered']:.1f}%" if name in row else "–"

    cells = [f"{percent(f'{name} bootstrap')}, {percent(f'{name} jackknife')}" for name in names]
    cells.insert(1, percent("error jackknife"))
    question = f"{row['groups']} groups{size}, {row['classes']} classes"
    return f"| {' | '.join([question, *cells, percent('all_error jackknife')])} |"


if __name__ == "__main__":
    main()
