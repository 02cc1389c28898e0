"""What is left of a calibrated instance on other images drawn alike.

The official splits of a data set may differ from each other. Here the test split is halved, one
half calibrates and the other tests, over several seeds; the network has seen neither. The halves
are made of blocks of neighbouring images, since neighbours may be frames of one video. Only the
memoised predictions are needed, nothing is run.

    python benchmarks/transfer.py RUN [--errors 0.001 0.01] [--seeds 5] [--blocks 8]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from mess import workflow
from mess.common.progress import Silent
from mess.runs.part_costs import load_costs
from mess.runs.policies import policy_tables
from mess.runs.run import Run
from mess.search.answers.answer import search
from mess.search.problem.costs import to_ticks
from mess.search.problem.definition import Choice, evaluate
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--errors", type=float, nargs="+", default=[0.001, 0.01, 0.02])
    parser.add_argument("--seeds", type=int, default=5, help="at least two")
    parser.add_argument("--blocks", type=int, default=8, help="runs of images, half of them each")
    options = parser.parse_args()
    run = Run(options.run)
    workflow.memoise(run.path, split="test")
    cache = run.open_cache("test")
    tables, _ = policy_tables(cache, None, Silent())
    costs = load_costs(run, cache, tables, None)
    ticks = to_ticks(tables, costs)
    print("| error asked | MACs, x less | error on the other half: mean (deviation) |")
    print("| --- | --- | --- |")
    for error in options.errors:
        ratios, errors = [], []
        for seed in range(options.seeds):
            blocks = np.array_split(np.arange(tables.images), options.blocks)
            order = np.random.default_rng(seed).permutation(options.blocks)
            ours, others = (
                subset(tables, np.concatenate([blocks[block] for block in half]))
                for half in np.array_split(order, 2)
            )
            answer = search(ours, costs, Request(target="macs", max_error=error), front=False)
            there = evaluate(others, ticks, answer.configuration)
            baseline = evaluate(others, ticks, (Choice(others.final),))
            ratios.append(baseline.costs["macs"] / there.costs["macs"])
            errors.append(baseline.miou - there.miou)
        print(
            f"| {error:g} | {np.mean(ratios):.2f} "
            f"| {np.mean(errors):+.4f} ({np.std(errors, ddof=1):.4f}) |"
        )


def subset(tables: Tables, images: np.ndarray) -> Tables:
    """The tables of some of the images."""
    return replace(
        tables,
        label=tables.label[images],
        intersection=tables.intersection[:, images],
        predicted=tables.predicted[:, images],
        signals=tables.signals[:, images],
    )


if __name__ == "__main__":
    main()
