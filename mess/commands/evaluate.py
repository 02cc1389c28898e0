"""Running bundles on a split and holding them against the search's prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mess.common.images import normalise
from mess.common.progress import Reporter
from mess.data import open_split
from mess.errors import BundleError, DataError
from mess.runs.bundles import baseline_path, newest_bundle
from mess.runs.identity import CALIBRATION
from mess.runs.policies import observed_signals
from mess.runs.run import Run
from mess.runs.tables import load_tables
from mess.runtime.bundle import load_bundle
from mess.runtime.outcome import Outcome, run_in_turns
from mess.search.problem.settings import find_setting
from mess.signals.decision import answering_exit


def evaluate_bundle(
    place: Run, path: Path | None, split: str, threads: int, reporter: Reporter
) -> dict[str, Any]:
    """Run a bundle and the baseline in turns; the report of `mess evaluate`.

    An anytime bundle is run up to each of its exits as well.
    """
    path = path or newest_bundle(place)
    bundle = load_bundle(path, threads=threads)
    config = place.config()
    if bundle.size != tuple(config.data.size):
        raise BundleError(
            f"bundle {path} takes images of {bundle.size}, run {place.path} has "
            f"{tuple(config.data.size)}. Name the run it was exported from with --run."
        )
    reference_path = baseline_path(place, bundle.manifest["format"])
    if not reference_path.is_dir():
        raise BundleError(
            f"{reference_path} is missing. Run {place.command('export')} to write it again."
        )
    reference = load_bundle(reference_path, threads=threads)
    source = bundle.manifest["source"]
    if source["weights"] != reference.manifest["source"]["weights"]:
        raise BundleError(
            f"bundle {path} was exported from other weights than run {place.path} holds. Name the "
            "run it was exported from with --run."
        )
    data = open_split(config.data, split, config.seed)
    images = (
        (normalise(image), label) for image, label in (data.sized(i) for i in range(len(data)))
    )
    ours, theirs = Outcome(bundle), Outcome(reference)
    early: list[Outcome] = []
    if find_setting(bundle.manifest["setting"]).every_exit_answers:
        early = [Outcome(bundle, until=index) for index in range(len(bundle.manifest["exits"]) - 1)]
    with reporter.task(f"evaluating on {split}", len(data)) as task:
        run_in_turns([ours, theirs, *early], images, task)
    if not ours.label.any():
        raise DataError(f"split {split!r} has no labelled pixel, so mIoU is undefined.")
    report: dict[str, Any] = {
        "bundle": str(path),
        "split": split,
        "images": len(data),
        **_figures(ours),
        "error": theirs.miou - ours.miou,
        "exit_rates": ours.exit_rates,
        "baseline": _figures(theirs),
    }
    if early:
        report["exits"] = [
            {"exit_id": exit_["exit_id"], **_figures(outcome)}
            for exit_, outcome in zip(bundle.manifest["exits"], [*early, ours], strict=True)
        ]
    if split == CALIBRATION and data.fingerprint() == source["data"]:
        report["agreement"] = _agreement(place, source["name"], bundle.manifest, ours, reporter)
    return report


def _figures(outcome: Outcome) -> dict[str, float]:
    return {"miou": outcome.miou, "macs": outcome.macs, "latency_ms": outcome.latency_ms}


def _agreement(
    place: Run, cache: str, manifest: Mapping[str, Any], ours: Outcome, reporter: Reporter
) -> dict[str, Any]:
    """How the bundle's run compares with what the search computed from the cache."""
    tables, stored = load_tables(place, cache)
    exits = [
        {"exit_id": exit_["exit_id"], "signal": exit_["signal"] and exit_["signal"]["name"]}
        for exit_ in manifest["exits"]
    ]
    expected = np.full(tables.images, len(exits) - 1)
    if find_setting(manifest["setting"]).signals_decide:
        observed = observed_signals(place, cache, tables, stored, exits, reporter)
        thresholds = [exit_["threshold"] for exit_ in manifest["exits"][:-1]]
        expected = answering_exit(observed, thresholds, tables.images)
    predicted = manifest["predicted"]
    return {
        "same_exit": float(np.mean(expected == np.array(ours.taken))),
        "predicted_miou": predicted["miou"],
        "predicted_macs": predicted["macs"],
        "predicted_latency_ms": predicted["latency_ms"],
    }
