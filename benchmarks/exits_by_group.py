"""Which images leave where: the exits of a bundle by group, and what each group loses.

    python benchmarks/exits_by_group.py RUN/exports/ID GROUPS [--cache test]

GROUPS is what `data.groups` is, a CSV file with the columns image_id and group or an expression; it
may be another than the run's, such as the kind of microscope. Everything follows from predictions
that `mess memoise --split test` stored: an image leaves at the first exit whose signal reaches its
threshold. In tiles each tile is an image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mess.common.metrics import mean_iou
from mess.runs.groups import groups_of
from mess.runs.run import find_run
from mess.runtime.format import BundleExit
from mess.runtime.manifest import facts_of, read_manifest
from mess.search.problem.tables import Tables
from mess.signals.decision import answering_exit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("groups")
    parser.add_argument("--cache", default="test")
    options = parser.parse_args()
    manifest = facts_of(read_manifest(options.bundle), options.bundle)
    run = find_run(options.bundle.resolve().parents[1])
    cache = run.open_cache(options.cache)
    tables, ids = cache.tables, list(cache.image_fingerprints)
    groups = groups_of(run.config.data.model_copy(update={"groups": options.groups}), ids)
    taken_I = positions(manifest["exits"], tables)
    costs = np.array([exit_["macs"] for exit_ in manifest["exits"]])
    whole = manifest["baseline"]["macs"]
    names = [exit_["exit_id"] for exit_ in manifest["exits"]]
    print(f"| group | images | {' | '.join(names)} | mIoU | run to its end | error | MACs |")
    print("| --- " * (6 + len(names)) + "|")
    everything = np.ones(len(ids), bool)
    by_size = sorted(range(len(groups.names)), key=lambda g: -int((groups.of_image == g).sum()))
    rows = [(groups.names[g], groups.of_image == g) for g in by_size]
    for name, chosen in [*rows, ("all", everything)]:
        shares = [f"{np.mean(taken_I[chosen] == index):.0%}" for index in range(len(names))]
        exits_I = np.array([tables.exit_ids.index(names[index]) for index in taken_I])
        own, final = (
            miou(tables, answer_I, chosen)
            for answer_I in (exits_I, np.full(len(ids), tables.final))
        )
        saved = whole / costs[taken_I[chosen]].mean()
        print(
            f"| {name} | {chosen.sum()} | {' | '.join(shares)} | {own:.4f} | {final:.4f} "
            f"| {final - own:.4f} | {saved:.2f}x |"
        )


def positions(exits: list[BundleExit], tables: Tables) -> NDArray[np.intp]:
    """Position of the exit that answers each image."""
    signals: list[NDArray[np.float32] | None] = []
    for exit_ in exits[:-1]:
        signal = exit_["signal"]
        column = None if signal is None else tables.signal_names.index(signal["name"])
        row = tables.signals[tables.exit_ids.index(exit_["exit_id"])]
        signals.append(None if column is None else row[:, column])
    return answering_exit(signals, [exit_["threshold"] for exit_ in exits[:-1]], tables.images)


def miou(tables: Tables, exits_I: NDArray[np.intp], chosen_I: NDArray[np.bool_]) -> float:
    """Of the chosen images, each answered by its exit."""
    images = np.flatnonzero(chosen_I)
    hits, predicted = (
        counts[exits_I[images], images].sum(0) for counts in (tables.intersection, tables.predicted)
    )
    return float(mean_iou(hits, predicted, tables.label[images].sum(0)))


if __name__ == "__main__":
    main()
