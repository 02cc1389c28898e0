"""How long searches take: ours, enumeration in NumPy, Optuna's samplers and evolution.

    python benchmarks/search.py [--parts table scaling large promises baselines figure]
        [--exits 2 3 4] [--trial] [--no-front] [--threads N] [--patience TIMES] [--output FILE]

Everything runs on random caches that look like a trained network's (`random_caches.py`), in the
input-dependent setting with target MACs.

- table: the exact search for several errors and caches; for one error also with the front, and with
  eight signals an exit instead of one.
- scaling: its time and memory against the number of images, each in a process of its own.
- large: 5,000 images of 150 classes with 199 exits, likewise.
- promises: what a cross-fitted certificate takes, and the front of the whole space, exactly and to
  the resolution of certificates.
- baselines: the exact search, enumeration and samplers in turns on the same cache, each on one
  thread. A sampler runs until a candidate that meets the error costs at most 1% more than the
  proven optimum, or until it has taken so many times longer than the exact search (--patience).
  Enumeration runs whole in small spaces, where it has to find the same cost. In larger ones it is
  timed on a random sample of choices of exits, and its seconds are those of a configuration in the
  sample times the configurations of the space. "Cost first" leaves out the choices of exits that
  cannot be cheap enough; in a sample it knows the proven optimum from the start, which is the best
  that can happen to it.
- figure: the baselines drawn, into FILE with the suffix .svg.

Every figure is in FILE as soon as it is measured: given again, the command goes on. `--trial` takes
small sizes, and minutes. Needs Optuna 5.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from results import Results, Row, machine_facts
from search_exact import measure, measure_apart, measure_promise
from search_figure import Point, draw
from search_race import EXACT, race

from mess.common.files import write_text


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    seeds: caches of the table; `seeds_dear` of its dear rows: fronts, eight signals, four exits.
    scaled, seeds_scaled: numbers of images and caches of the scaling.
    large: images, classes and architectures of the large caches.
    raced: the baselines' spaces, each exits allowed and architectures a point; `rounds` caches
        each, with samplers and a front on the first `races` of them. Odd, so that there is a
        middle one. Samplers are left out of the `vast`, which would keep them for an hour.
    error: mIoU that an answer may lose in fronts, scaling and baselines.
    sample_seconds: how long a sample of enumeration takes.
    whole: configurations up to which enumeration runs whole.
    patience: how many times longer than the exact search a sampler may take.
    """

    images: int = 500
    architectures: int = 56
    thresholds: int = 64
    errors: tuple[float, ...] = (0.0, 0.003, 0.01, 0.05)
    seeds: int = 5
    seeds_dear: int = 1
    scaled: tuple[int, ...] = (125, 250, 500, 1000, 1449)
    seeds_scaled: int = 3
    large: tuple[int, int, int] = (5000, 150, 33)
    raced: tuple[tuple[int, int], ...] = (
        *((2, 4), (2, 14), (2, 56)),
        *((3, 4), (3, 14), (3, 56)),
        *((4, 4), (4, 14)),
    )
    vast: tuple[tuple[int, int], ...] = ((4, 14),)
    rounds: int = 3
    races: int = 1
    error: float = 0.01
    sample_seconds: float = 10.0
    whole: int = 50_000_000
    patience: float = 120.0


FULL = Plan()
TRIAL = Plan(
    images=120,
    architectures=4,
    thresholds=8,
    seeds=2,
    seeds_dear=1,
    scaled=(60, 120),
    seeds_scaled=1,
    large=(200, 30, 4),
    raced=((2, 2), (2, 4), (3, 2), (3, 4), (4, 2)),
    rounds=3,
    races=1,
    sample_seconds=0.5,
    whole=100_000,
    patience=20.0,
)


def main() -> None:
    parts = {
        "table": table,
        "scaling": scaling,
        "large": large,
        "promises": promises,
        "baselines": baselines,
        "figure": figure,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--exits", type=int, nargs="+", default=[2, 3, 4], help="max_exits")
    parser.add_argument("--trial", action="store_true", help="small sizes")
    parser.add_argument(
        "--no-front", dest="front", action="store_false", help="leave searches with a front out"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of table and scaling")
    parser.add_argument("--patience", type=float, help="times a sampler may take longer")
    parser.add_argument("--output", type=Path, default=Path("runs/search-benchmark.json"))
    options = parser.parse_args()
    plan = TRIAL if options.trial else FULL
    if options.patience is not None:
        plan = replace(plan, patience=options.patience)
    results = Results(options.output, machine_facts("mess", "numpy", "numba", "optuna"))
    for part in options.parts:
        parts[part](plan, options, results)


def table(plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """The exact search for every error, cache and kind of space."""
    extras = [(8, False), (1, True)] if options.front else [(8, False)]
    wanted: list[tuple[int, int, bool, int, float]] = []
    for max_exits in options.exits:
        seeds = range(plan.seeds if max_exits < 4 else plan.seeds_dear)
        wanted += [(max_exits, 1, False, *each) for each in product(seeds, plan.errors)]
        if max_exits < 4:
            each_dear = product(extras, range(plan.seeds_dear))
            wanted += [(max_exits, *extra, seed, plan.error) for extra, seed in each_dear]
    rows = []
    for max_exits, signals, front, seed, error in wanted:
        case = search_case("table", plan, max_exits=max_exits, signals=signals, seed=seed)
        case |= {"error": error, "front": front, "threads": options.threads}
        rows.append(results.measure(case, partial(measure, case)))
    print(
        "| exits allowed | signals | front | configurations | evaluated | median (s) "
        "| slowest (s) | median by error (s) | answers by exits used |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for (max_exits, signals, front), some in grouped(rows, "max_exits", "signals", "front"):
        seconds = [row["seconds"] for row in some]
        by_error = "; ".join(
            f"{error:g}: {show(median(row['seconds'] for row in alike))}"
            for (error,), alike in grouped(some, "error")
        )
        used = [len(row["rates"]) for row in some]
        print(
            f"| {max_exits} | {signals} | {'yes' if front else 'no'} "
            f"| {median(row['configurations'] for row in some):.2e} "
            f"| {median(row['evaluated'] / row['configurations'] for row in some):.2%} "
            f"| {show(median(seconds))} | {show(max(seconds))} | {by_error} "
            f"| {'; '.join(f'{exits}: {used.count(exits)}' for exits in sorted(set(used)))} |"
        )


def scaling(plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """Time and memory of the exact search with three exits against the number of images."""
    rows = []
    for seed, images in product(range(plan.seeds_scaled), plan.scaled):
        case = search_case("scaling", plan, max_exits=3, signals=1, seed=seed)
        case |= {"error": plan.error, "front": False, "threads": options.threads, "images": images}
        rows.append(results.measure(case, partial(measure_apart, case)))
    print(
        "| images | median (s) | slowest (s) | resident before (MB) | peak (MB) |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for (images,), some in grouped(rows, "images"):
        seconds = [row["seconds"] for row in some]
        print(
            f"| {images} | {show(median(seconds))} | {show(max(seconds))} "
            f"| {median(row['resident_mb'] for row in some):.0f} "
            f"| {max(row['peak_mb'] for row in some):.0f} |"
        )


def large(plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """Time and memory of a large cache: the answer and the front of two exits, and of three."""
    images, classes, architectures = plan.large
    print(
        "| exits allowed | front | seconds | resident before (MB) | peak (MB) |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for max_exits, front in ((2, True), (3, False)):
        case = search_case("large", plan, max_exits=max_exits, signals=1, seed=0)
        case |= {"error": plan.error, "front": front, "threads": options.threads}
        case |= {"images": images, "classes": classes, "architectures": architectures}
        row = results.measure(case, partial(measure_apart, case))
        print(
            f"| {max_exits} | {'yes' if front else 'no'} | {show(row['seconds'])} "
            f"| {row['resident_mb']:,.0f} | {row['peak_mb']:,.0f} |"
        )


def promises(plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """Certificates and fronts, of two and three exits."""
    print("| exits allowed | what | seconds |\n| --- | --- | --- |")
    kinds = ("certificate", "front to a resolution", "exact front")
    for max_exits, kind in product((2, 3), kinds):
        case = search_case("promises", plan, max_exits=max_exits, signals=1, seed=0)
        case |= {"error": plan.error, "promise": kind, "threads": options.threads}
        row = results.measure(case, partial(measure_promise, case))
        print(f"| {max_exits} | {kind} | {show(row['seconds'])} |")


def baselines(plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """All methods side by side."""
    print(
        "| exits allowed | architectures | configurations | method | seconds | x exact (range) "
        "| remarks |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    rows = raced(plan, options, results)
    for (max_exits, architectures), some in grouped(rows, "max_exits", "architectures"):
        exact = {row["seed"]: row for row in some if row["method"] == EXACT}
        size = median(row["configurations"] for row in exact.values())
        for (method,), own in grouped(some, "method"):
            ratios = [
                row | {"seconds": row["seconds"] / exact[row["seed"]]["seconds"]} for row in own
            ]
            ends = (min(ratios, key=lateness), max(ratios, key=lateness))
            print(
                f"| {max_exits} | {architectures} | {size:.2e} | {method} "
                f"| {arrival(middle(own))} | {arrival(middle(ratios))} "
                f"({' to '.join(arrival(end) for end in ends)}) | {remarks(own)} |"
            )


def figure(plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """The baselines' seconds drawn against the size of the space."""
    panels: dict[str, dict[str, list[Point]]] = {}
    rows = raced(plan, options, results)
    for (max_exits, _), some in grouped(rows, "max_exits", "architectures"):
        methods = panels.setdefault(f"up to {max_exits} exits", {})
        size = median(row["configurations"] for row in some if row["method"] == EXACT)
        for (method,), own in grouped(some, "method"):
            typical = middle(own)
            point = Point(round(size), typical["seconds"], typical["kind"])
            methods.setdefault(method, []).append(point)
    path = options.output.with_suffix(".svg")
    write_text(path, draw(panels))
    print(path)


def raced(plan: Plan, options: argparse.Namespace, results: Results) -> list[Row]:
    """All methods in turns on the same caches."""
    rows = []
    for seed, (max_exits, architectures) in product(range(plan.rounds), plan.raced):
        if max_exits not in options.exits:
            continue
        case = search_case("baselines", plan, max_exits=max_exits, signals=1, seed=seed)
        case |= {"error": plan.error, "architectures": architectures}
        sampled = seed < plan.races and (max_exits, architectures) not in plan.vast
        rows += race(
            results,
            case,
            sample_seconds=plan.sample_seconds,
            whole=plan.whole,
            front=options.front and seed < plan.races,
            patience=plan.patience if sampled else None,
        )
    return rows


def search_case(part: str, plan: Plan, *, max_exits: int, signals: int, seed: int) -> Row:
    """What the cases of all parts have in common."""
    return {
        "part": part,
        "images": plan.images,
        "architectures": plan.architectures,
        "thresholds": plan.thresholds,
        "max_exits": max_exits,
        "signals": signals,
        "seed": seed,
    }


def grouped(rows: Sequence[Row], *names: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by their values of `names`, in the order in which these first occur."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.items())


def lateness(row: Row) -> tuple[bool, float]:
    """Order of rows by seconds; what did not arrive is later than all that did."""
    return row["kind"] == "not reached", row["seconds"]


def middle(rows: Sequence[Row]) -> Row:
    """The row of median seconds."""
    return sorted(rows, key=lateness)[len(rows) // 2]


def arrival(row: Row) -> str:
    """Seconds, or after how many it had not arrived."""
    return f"{'> ' if row['kind'] == 'not reached' else ''}{show(row['seconds'])}"


def remarks(rows: Sequence[Row]) -> str:
    """How enumeration was timed, or how far samplers came."""
    if any(row["kind"] == "extrapolated" for row in rows):
        return f"extrapolated from {sum(row['timed'] for row in rows):.2e} configurations"
    if "gap" not in rows[0]:
        return ""
    arrived = sum(row["kind"] == "measured" for row in rows)
    gaps = ["nothing feasible" if row["gap"] is None else f"{row['gap']:.1%}" for row in rows]
    evaluated = median(row["evaluated"] for row in rows)
    return (
        f"{arrived} of {len(rows)} arrived; above the optimum: {', '.join(gaps)}; "
        f"{evaluated:,.0f} evaluated"
    )


def show(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
