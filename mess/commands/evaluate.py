"""Running bundles on a split and holding them against the search's prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.commands.check_data import say_what_is_missing
from mess.common.metrics import MASKS
from mess.common.progress import Reporter
from mess.data import SegmentationData, Unlabelled
from mess.data.base import fingerprint_of
from mess.errors import CacheError, DataError
from mess.exits import FINAL
from mess.runs.bundles import (
    counts_of_run,
    exit_rates_of,
    load_baseline,
    newest_bundle,
    require_input,
)
from mess.runs.data_sets import require_trained_classes
from mess.runs.intervals import Measured, answered_by, groups_or_reason, intervals_of
from mess.runs.policies import observed_signals
from mess.runs.results import CALIBRATION, ChosenExit, is_of_cache
from mess.runs.run import Run
from mess.runs.sources import ImageSource
from mess.runtime.bundle import Bundle, load_bundle
from mess.runtime.bundle_run import BundleRun, run_in_turns
from mess.runtime.format import RunManifest
from mess.search.problem.settings import find_setting
from mess.signals.decision import answering_exit


def evaluate_bundle(
    place: Run,
    path: Path | None,
    split: str,
    threads: int,
    reporter: Reporter,
    images: Path | None = None,
    *,
    trust: bool = False,
) -> dict[str, Any]:
    """Run a bundle and the baseline in turns; the report of `mess evaluate`.

    On the pictures in the folder `images`, which have no masks, the baseline's label maps are in
    the place of masks.

    An anytime bundle is run up to each of its exits as well.
    """
    bundle = load_bundle(path or newest_bundle(place), threads=threads, trust=trust)
    require_input(place, bundle)
    baseline = load_baseline(place, bundle, threads)
    source = ImageSource(split, None) if images is None else ImageSource(None, images.resolve())
    data = source.open(place)
    require_trained_classes(place, data)
    prints = data.image_fingerprints()
    if isinstance(data, Unlabelled):
        data.require_distinct(prints)
    ours, theirs = BundleRun(bundle), BundleRun(baseline)
    early = [BundleRun(bundle, until=index) for index in _early_exits(bundle)]
    reference = theirs if isinstance(data, Unlabelled) else None
    labels = MASKS if reference is None else FINAL
    groups, searched = groups_or_reason(place, prints), _searched(place, bundle, prints, labels)
    expected = None
    # Only of the very images that were searched is there an exit to agree with.
    may_agree = source.split in (CALIBRATION, None)
    if may_agree and fingerprint_of(prints) == bundle.facts["source"]["data"]:
        expected = _expected_exits(place, bundle.facts, reporter)
    name = split if images is None else images.name
    _run([ours, theirs, *early], data, name, reporter, reference)
    # Of pictures without masks every pixel is labelled, by the final exit.
    labelled = [1] * data.classes.num_classes if reference else np.sum(ours.label, axis=0)
    say_what_is_missing(data, labelled, reporter)
    report: dict[str, Any] = {
        "bundle": str(bundle.path),
        "split": source.split,
        "root": None if source.root is None else str(source.root),
        "labels": labels,
        "images": len(data),
        **_figures(ours),
        "error": theirs.miou - ours.miou,
        "exit_rates": exit_rates_of(ours),
        "baseline": _figures(theirs),
        "intervals": intervals_of(
            _measured(bundle, theirs, ours, early, searched),
            groups,
            bundle.facts["classes"],
            place.config.seed,
        ),
    }
    if early:
        report["exits"] = [
            {"exit_id": exit_["exit_id"], **_figures(run)}
            for exit_, run in zip(bundle.manifest["exits"], [*early, ours], strict=True)
        ]
    if expected is not None:
        report["agreement"] = _agreement(bundle.facts, expected, ours)
    return report


def _early_exits(bundle: Bundle) -> range:
    """Exits whose own answers count, the last one's left out."""
    each = find_setting(bundle.facts["setting"]).every_exit_answers
    return range(len(bundle.manifest["exits"]) - 1 if each else 0)


def _run(
    runs: list[BundleRun],
    data: SegmentationData,
    name: str,
    reporter: Reporter,
    reference: BundleRun | None,
) -> None:
    with reporter.task(f"evaluating on {name}", len(data)) as task:
        run_in_turns(runs, map(data.judged, range(len(data))), task, reference)
    if not np.any(runs[0].label):
        raise DataError(f"split {name!r} has no labelled pixel, so mIoU is undefined.")


def _figures(run: BundleRun) -> dict[str, float]:
    return {"miou": run.miou, "macs": run.macs, "latency_ms": run.latency_ms}


def _measured(
    bundle: Bundle, theirs: BundleRun, ours: BundleRun, early: list[BundleRun], searched: int | None
) -> Measured:
    """What was run, image by image; each ran on the same ones, so all of it is paired."""
    rows, taken_I = bundle.manifest["exits"], np.array(ours.taken)
    routed = len(rows) > 1 and find_setting(bundle.facts["setting"]).signals_decide
    may_leave = [*(exit_["signal"] is not None for exit_ in rows[:-1]), True]
    return Measured(
        final=counts_of_run(theirs),
        answer=counts_of_run(ours),
        label_IC=np.array(ours.label),
        answered=answered_by(taken_I, may_leave) if routed else (),
        costs={"macs": np.array(ours.macs_I), "latency_ms": np.array(ours.latency_I)},
        exits={
            exit_["exit_id"]: counts_of_run(run)
            for exit_, run in zip(rows, [*early, ours], strict=True)
        }
        if early
        else {},
        searched=searched,
    )


def _searched(place: Run, bundle: Bundle, images: Mapping[str, str], labels: str) -> int | None:
    """How many of the images chose the instance; None where that cannot be told.

    That is where its cache is not there any more, and where one has masks and the other not:
    fingerprints are of both. images: the fingerprint of each, by id.
    """
    source = bundle.facts["source"]
    if source.get("labels", MASKS) != labels:
        return None
    if fingerprint_of(images) == source["data"]:
        return len(images)
    try:
        cache = place.open_cache(source.get("name", CALIBRATION))
        if cache.manifest["data"] != source["data"]:
            return None
        return len(set(images.values()) & set(cache.image_fingerprints.values()))
    except CacheError:
        return None


def _expected_exits(
    place: Run, manifest: RunManifest, reporter: Reporter
) -> NDArray[np.intp] | None:
    """Position of the exit that answers each searched image, (I,), as the search computed it.

    None, and the reason is said, where the cache that was searched is not there as it was.
    """
    exits: list[ChosenExit] = [
        {
            "exit_id": exit_["exit_id"],
            "signal": exit_["signal"]["name"] if exit_["signal"] else None,
            "threshold": exit_["threshold"],
            "exit_rate": exit_["exit_rate"],
        }
        for exit_ in manifest["exits"]
    ]
    try:
        cache = place.open_cache(manifest["source"].get("name", CALIBRATION))
        if not is_of_cache(manifest["source"], cache.manifest):
            raise CacheError(f"{cache.store.directory} holds other predictions by now.")
        images = cache.tables.images
        # Where no signal decides, a bundle runs every image to its last exit.
        if not find_setting(manifest["setting"]).signals_decide:
            return np.full(images, len(exits) - 1)
        observed = observed_signals(cache, exits, reporter)
        return answering_exit(observed, [exit_["threshold"] for exit_ in exits[:-1]], images)
    except CacheError as error:
        reporter.message(f"How far the bundle agrees with its search is not told: {error}")
        return None


def _agreement(
    manifest: RunManifest, expected: NDArray[np.intp], ours: BundleRun
) -> dict[str, Any]:
    """How the bundle's run compares with what the search computed from the cache."""
    predicted = manifest["predicted"]
    return {
        "same_exit": float(np.mean(expected == np.array(ours.taken))),
        "predicted_miou": predicted["miou"],
        "predicted_macs": predicted["macs"],
        "predicted_latency_ms": predicted["latency_ms"],
    }
