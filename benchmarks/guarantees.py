"""How often promises are broken, and what keeping them costs, where the truth is known.

    python benchmarks/guarantees.py [--parts images classes limits groups exits lost] [--draws N]
        [--workers N] [--output FILE]

A population of 20,000 images, whose exits, signals and class frequencies look like a trained
network's (`random_caches.py`), is all the images there are. A draw takes some of them at random,
searches those, and holds what it finds against the whole population, in five ways:

- naive: the answer that keeps the limit on the images drawn, as without `--confidence`.
- split: searched on one half, certified on the other.
- cross: certified by cross-fitting, on all of them.
- lost: searched on one half, and on the other at most so many lost pixels are certified, by a bound
  that holds for every number of images. Broken is that limit, not the error's. Part `lost` alone.
- oracle: the cheapest configuration of all that keeps the limit in the population.

`broken` is the share of draws whose answer loses more than the limit in the population, with the
95% interval of that share; a certificate at 95% may break in 5%. `saving` is the mean of what is
saved there, in the oracle's saving; of lost pixels the oracle is the cheapest point of the front
that keeps them. `refused` is how often nothing but the whole network was certified, which saves
nothing and breaks nothing.

Groups are images next to each other in difficulty, as frames of a video are: draws take whole
groups. Every figure is in FILE as soon as it is measured: given again, the command goes on.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from random_caches import CacheSize, random_cache
from results import Results, Row, machine_facts

from mess.search.exact.cover import collect, cover
from mess.search.exact.resolution import EXACT
from mess.search.exact.workers import Workers
from mess.search.guarantees.certify import Certificate, certify_cross, certify_fresh
from mess.search.guarantees.confidence import EXPECTED
from mess.search.guarantees.groups import LEAST, Groups
from mess.search.guarantees.intervals import clopper_pearson
from mess.search.guarantees.lost_pixels import certify_lost, halves, lost_shares
from mess.search.guarantees.methods import SPLIT
from mess.search.guarantees.picking import picks, whole_network
from mess.search.problem.costs import MACS, to_ticks
from mess.search.problem.definition import Configuration
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables

POPULATION, CONFIDENCE = 20_000, 0.95

ONE = Workers(1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is drawn and promised; groups of one image are images that depend on no other."""

    part: str
    images: int = 500
    classes: int = 8
    architectures: int = 2
    max_exits: int = 2
    thresholds: int = 64
    error: float = 0.01
    group: int = 1
    lost: float | None = None
    """The limit on lost pixels, and then nothing but these is promised."""


CASES = [
    *(Case(part="images", images=n) for n in (60, 120, 240, 500, 1000, 1500)),
    *(Case(part="classes", classes=n) for n in (21, 60, 150)),
    *(Case(part="limits", error=limit) for limit in (0.001, 0.003, 0.03)),
    *(Case(part="groups", images=n, group=g) for n, g in ((1000, 10), (500, 10), (500, 25))),
    Case(part="groups", images=500, group=50),
    Case(part="exits", images=240, architectures=1, max_exits=3, thresholds=16),
    *(Case(part="lost", images=n, lost=0.02) for n in (500, 1000, 1500)),
    *(Case(part="lost", images=1000, lost=0.02, group=g) for g in (2, 10)),
    Case(part="lost", images=120, lost=0.1),
]


class Truth(NamedTuple):
    """What a configuration loses and costs in the population; `lost` is the mean over groups."""

    error: float
    cost: float
    lost: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = list(dict.fromkeys(case.part for case in CASES))
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("runs/guarantees.json"))
    options = parser.parse_args()
    results = Results(options.output, machine_facts("mess", "numpy", "numba"))
    for case in CASES:
        if case.part in options.parts:
            row = results.measure(
                asdict(case) | {"draws": options.draws},
                partial(measure, case, options.draws, options.workers),
            )
            print(line(row))


def measure(case: Case, draws: int, workers: int) -> Row:
    """Shares and means over the draws, by way."""
    whole = population(case)
    oracle = whole.oracle()
    # The tables are large: forked processes share what was made before.
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        found = list(pool.map(partial(draw, case), range(draws), chunksize=4))
    saving = whole.goal.baseline.costs[MACS] - oracle.cost
    ways = {}
    for way in found[0]:
        errors, costs, lost = (
            np.array([each[way][name] for each in found]) for name in ("error", "cost", "lost")
        )
        over = errors > case.error + 1e-12 if case.lost is None else lost > case.lost + 1e-12
        broken = int(over.sum())
        ways[way] = {
            "broken": broken / draws,
            "interval": clopper_pearson(broken, draws, EXPECTED),
            "error": float(errors.mean()),
            "lost": float(lost.mean()),
            "saving": float((whole.goal.baseline.costs[MACS] - costs).mean() / saving),
            "refused": float(np.mean([each[way]["refused"] for each in found])),
        }
    saved = whole.goal.baseline.costs[MACS] / oracle.cost
    return {
        "oracle_saves": saved,
        "oracle_error": oracle.error,
        "oracle_lost": oracle.lost,
        "ways": ways,
    }


def draw(case: Case, number: int) -> dict[str, Row]:
    """Search and certify images drawn at random."""
    rng = np.random.default_rng([number, 7])
    whole, count = population(case), case.images // case.group
    drawn, groups = whole.draw(rng, count)
    if case.lost is not None:
        return draw_lost(whole, drawn, groups, case.lost, number)
    half = groups.of_image < count // 2
    goal = whole.on(drawn)
    (naive,) = picks(goal, (0.0,), ONE)
    found = {"naive": whole.row(naive.configuration)}
    if count >= LEAST:
        certificate = certify_cross(goal, groups, CONFIDENCE, number, ONE)
        found["cross"] = whole.certified(certificate)
    if count // 2 >= LEAST:
        searched, other = whole.on(drawn[half]), whole.on(drawn[~half])
        theirs = Groups.of([str(g) for g in groups.of_image[~half]])
        certificate = certify_fresh(searched, other.tables, other.ticks, theirs, CONFIDENCE, ONE)
        found["split"] = whole.certified(certificate)
    return found


def draw_lost(
    whole: Population, drawn: NDArray[np.intp], groups: Groups, limit: float, number: int
) -> dict[str, Row]:
    """The cheapest that keeps the limit where it was searched, and what is certified."""
    searched, certifies = halves(groups, number)
    on_searched, there = whole.on(drawn[searched]), whole.on(drawn[certifies])
    theirs = groups.subset(certifies)
    found = certify_lost(
        on_searched, there, theirs, limit, CONFIDENCE, number, method=SPLIT, workers=ONE
    )
    goal = whole.on(drawn)
    naive = cheapest_that_loses(goal, Groups.alone(len(drawn)), limit)
    return {"naive": whole.row(naive), "lost": whole.certified(found.certificate)}


def cheapest_that_loses(goal: Goal, groups: Groups, limit: float) -> Configuration:
    """At most so many pixels, of the points of the front; the whole network where none does."""
    for point in collect(goal, EXACT, ONE):
        if lost_share(goal, point.payload, groups) <= limit:
            return point.payload
    return whole_network(goal).configuration


def lost_share(goal: Goal, configuration: Configuration, groups: Groups) -> float:
    """The mean over groups."""
    exits = np.array([choice.exit for choice in configuration])
    answer = goal.evaluate(configuration).answer
    return float(lost_shares(goal.tables, exits[answer], groups).mean())


class Population:
    """All the images there are, in groups."""

    def __init__(self, case: Case) -> None:
        size = CacheSize(images=POPULATION, classes=case.classes, architectures=case.architectures)
        (tables, costs), self._case = random_cache(size, seed=1), case
        self.tables = self._in_groups(tables)
        self.costs = costs
        self.request = Request(
            target=MACS, max_error=case.error if case.lost is None else None,
            max_exits=case.max_exits, thresholds=case.thresholds,
        )  # fmt: skip
        self.groups = Groups.of([str(image // case.group) for image in range(POPULATION)])
        self.goal = Goal.of(self.tables, to_ticks(tables, costs), self.request)
        self._known: dict[Configuration, Truth] = {}

    def _in_groups(self, tables: Tables) -> Tables:
        """Images in order of what the first exit gets wrong, with some noise."""
        if self._case.group == 1:
            return tables
        wrong = 1 - tables.intersection[0].sum(axis=1) / tables.label.sum(axis=1)
        noise = np.random.default_rng(2).normal(0, 0.5 * wrong.std(), len(wrong))
        return tables.subset(np.argsort(wrong + noise))

    def draw(self, rng: np.random.Generator, groups: int) -> tuple[NDArray[np.intp], Groups]:
        """Images of so many groups, and their groups; the same one may be drawn again."""
        size = self._case.group
        firsts = rng.integers(POPULATION // size, size=groups) * size
        images = (firsts[:, None] + np.arange(size)).ravel()
        return images, Groups.of([str(n) for n in np.repeat(np.arange(groups), size)])

    def on(self, images: NDArray[np.intp]) -> Goal:
        """The question on these images alone."""
        tables = self.tables.subset(images)
        return Goal.of(tables, to_ticks(tables, self.costs), self.request)

    def oracle(self) -> Truth:
        """The best of who knows the population."""
        if self._case.lost is not None:
            return self.truth(cheapest_that_loses(self.goal, self.groups, self._case.lost))
        best = cover(self.goal, collect=False).found.best
        assert best
        return self.truth(best[1])

    def truth(self, configuration: Configuration) -> Truth:
        """What it loses and costs in the population."""
        if configuration not in self._known:
            found = self.goal.evaluate(configuration)
            self._known[configuration] = Truth(
                self.goal.baseline.miou - found.miou,
                found.costs[MACS],
                lost_share(self.goal, configuration, self.groups),
            )
        return self._known[configuration]

    def row(self, configuration: Configuration, *, refused: bool = False) -> Row:
        return self.truth(configuration)._asdict() | {"refused": refused}

    def certified(self, certificate: Certificate) -> Row:
        return self.row(certificate.picked.configuration, refused=certificate.margin is None)


@lru_cache(maxsize=1)
def population(case: Case) -> Population:
    """The last one is kept."""
    return Population(case)


def line(row: Row) -> str:
    """A row of the table in docs/guarantees.md."""
    ways = row["ways"]

    def figures(way: str) -> str:
        if way not in ways:
            return "too few groups"
        found = ways[way]
        low, high = (100 * end for end in found["interval"])
        return f"{100 * found['broken']:.1f}% ({low:.1f} to {high:.1f}), {found['saving']:.2f}"

    question = (
        f"{row['images']} images"
        + (f" in groups of {row['group']}" if row["group"] > 1 else "")
        + f", {row['classes']} classes, {row['max_exits']} exits, "
        + (f"{row['error']:g}" if row["lost"] is None else f"lost pixels {row['lost']:g}")
    )
    shown = ("naive", "split", "cross") if row["lost"] is None else ("naive", "lost")
    cells = [question, *(figures(way) for way in shown)]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
