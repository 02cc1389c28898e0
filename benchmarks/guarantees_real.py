"""How often promises are broken on the images of a trained network, that were not drawn.

    python benchmarks/guarantees_real.py RUN --caches test [more] [--images 120 240] [--draws 100]
        [--groups REGEX] [--block N] [--errors 0.01] [--max-exits 2] [--output FILE]

The images of the caches are pooled; none of them may have trained the network. A draw takes so many
of them at random, searches and certifies those, and holds what it finds against all others:
`promised` is the limit, `realised` what the answers lose on the others, mIoU against mIoU.

- naive: the answer that keeps the limit on the images drawn, as without `--confidence`.
- cross: certified by cross-fitting at 95%.

With --groups (a capture on the image's id, such as its video) and --block (so many neighbours of a
video are a group; the last may be smaller) whole groups are drawn, and count as groups; without
--block images count alone, however near the next frame is.

The others are no population: where they are few, a broken promise may be their chance.
"""

from __future__ import annotations

import argparse
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from guarantees import CONFIDENCE, ONE
from numpy.typing import NDArray
from results import Results, Row, machine_facts

from mess.common.progress import Silent
from mess.runs.groups import group_names
from mess.runs.part_costs import load_costs
from mess.runs.policies import policy_tables
from mess.runs.run import Run
from mess.search.guarantees.certify import certify_cross
from mess.search.guarantees.confidence import EXPECTED
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.intervals import clopper_pearson
from mess.search.guarantees.picking import picks
from mess.search.problem.costs import MACS, Cost, to_ticks
from mess.search.problem.definition import Configuration
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables


@dataclass(frozen=True)
class Pool:
    """All images, the cost of the parts, and which images belong together."""

    tables: Tables
    costs: dict[str, Cost]
    groups: Groups

    @classmethod
    def of(cls, place: Run, caches: list[str], groups: str | None, block: int) -> Pool:
        """The pooled images of some caches, with the signals of the preferred policy."""
        parts = [policy_tables(place.open_cache(name), None, Silent())[0] for name in caches]
        tables = replace(
            parts[0],
            label=np.concatenate([part.label for part in parts]),
            intersection=np.concatenate([part.intersection for part in parts], axis=1),
            predicted=np.concatenate([part.predicted for part in parts], axis=1),
            signals=np.concatenate([part.signals for part in parts], axis=1),
            lost=None,
        )
        ids = [
            image_id for name in caches for image_id in place.open_cache(name).predictions.image_ids
        ]
        costs = load_costs(place, place.open_cache(caches[0]), parts[0], None, measured=False)
        return cls(tables, costs, _blocks(ids, groups, block))

    def goal(self, images: NDArray[np.intp], request: Request) -> Goal:
        """The question on these images."""
        tables = self.tables.subset(images)
        return Goal.of(tables, to_ticks(tables, self.costs), request)


def _blocks(ids: list[str], groups: str | None, block: int) -> Groups:
    """Neighbours of a video, so many at a time; every image alone where `block` is 1."""
    if block == 1:
        return Groups.alone(len(ids))
    videos = group_names(re.compile(groups), ids) if groups else [""] * len(ids)
    if groups and not all(videos):
        raise SystemExit(f"--groups {groups} finds no group in {ids[videos.index('')]}")
    seen: dict[str, int] = {}
    names = []
    for video in videos:
        names.append(f"{video}/{seen.setdefault(video, 0) // block}")
        seen[video] += 1
    return Groups.of(names)


def draw(pool: Pool, request: Request, images: int, number: int) -> dict[str, Row]:
    """Search and certify images drawn at random, and run what is found on the others."""
    rng = np.random.default_rng([number, 11])
    order, sizes = rng.permutation(len(pool.groups)), np.bincount(pool.groups.of_image)
    enough = int(np.searchsorted(sizes[order].cumsum(), images)) + 1
    is_drawn = np.isin(pool.groups.of_image, order[:enough])
    drawn, others = np.flatnonzero(is_drawn), np.flatnonzero(~is_drawn)
    goal, there = pool.goal(drawn, request), pool.goal(others, request)
    groups = Groups.of([pool.groups.names[group] for group in pool.groups.of_image[drawn]])
    (naive,) = picks(goal, (0.0,), ONE)
    certified = certify_cross(goal, groups, CONFIDENCE, number, ONE)
    return {
        "naive": _realised(there, naive.configuration),
        "cross": _realised(there, certified.picked.configuration),
    }


def _realised(there: Goal, configuration: Configuration) -> Row:
    found = there.evaluate(configuration)
    return {
        "error": there.baseline.miou - found.miou,
        "saving": there.baseline.costs[MACS] / found.costs[MACS],
        "refused": len(configuration) == 1 and configuration[0].exit == there.tables.final,
    }


def measure(pool: Pool, request: Request, images: int, draws: int, workers: int) -> Row:
    """Shares and means over the draws, by way."""
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as processes:
        found = list(processes.map(partial(draw, pool, request, images), range(draws), chunksize=2))
    figures: Row = {}
    for way in found[0]:
        errors = np.array([each[way]["error"] for each in found])
        assert request.max_error is not None
        broken = int((errors > request.max_error + 1e-12).sum())
        figures[way] = {
            "broken": broken / draws,
            "interval": clopper_pearson(broken, draws, EXPECTED),
            "realised": float(errors.mean()),
            "worst": float(errors.max()),
            "saving": float(np.mean([each[way]["saving"] for each in found])),
            "refused": float(np.mean([each[way]["refused"] for each in found])),
        }
    return figures


def line(row: Row) -> str:
    """A row of the table in docs/guarantees.md."""
    cells = [f"{row['images']} of {row['pool']} images" + (
        f", blocks of {row['block']}" if row["block"] > 1 else ""
    ), f"{row['error']:g}"]  # fmt: skip
    for way in ("naive", "cross"):
        found = row[way]
        low, high = (100 * end for end in found["interval"])
        cells += [
            f"{100 * found['broken']:.0f}% ({low:.0f} to {high:.0f})",
            f"{found['realised']:.4f}",
            f"{found['saving']:.2f}x",
        ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--caches", nargs="+", default=["test"])
    parser.add_argument("--images", nargs="+", type=int, default=[120, 240])
    parser.add_argument("--errors", nargs="+", type=float, default=[0.01])
    parser.add_argument("--max-exits", type=int, default=2)
    parser.add_argument("--groups")
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("runs/guarantees-real.json"))
    options = parser.parse_args()
    results = Results(options.output, machine_facts("mess", "numpy", "numba"))
    place = Run(options.run)
    pool = Pool.of(place, options.caches, options.groups, options.block)
    for error in options.errors:
        for images in options.images:
            request = Request(target=MACS, max_error=error, max_exits=options.max_exits)
            case = {
                "part": place.config.data.kind, "pool": pool.tables.images, "images": images,
                "error": error, "exits": pool.tables.exits, "max_exits": options.max_exits,
                "block": options.block, "draws": options.draws,
            }  # fmt: skip
            row = results.measure(
                case, partial(measure, pool, request, images, options.draws, options.workers)
            )
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
