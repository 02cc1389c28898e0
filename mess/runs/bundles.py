"""The bundles of a run. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mess.errors import BundleError
from mess.runs.run import Run
from mess.runtime.bundle import Bundle, load_bundle
from mess.runtime.bundle_run import BundleRun
from mess.runtime.format import MANIFEST
from mess.runtime.registry import DEFAULT_RUNTIME
from mess.search.guarantees.sampling_error import Counts
from mess.search.problem.settings import find_setting

BASELINE = "baseline"
"""Stem of the bundle that holds the network run to its end."""


def bundle_path(place: Run, stem: str, format_: str) -> Path:
    """Where the bundle of a search lies, or that of `BASELINE`."""
    return place.bundle(stem if format_ == DEFAULT_RUNTIME.format else f"{stem}-{format_}")


def newest_bundle(place: Run) -> Path:
    """The bundle exported last; raises BundleError where there is none."""
    bundles = [
        file.parent
        for file in (place.path / "exports").glob(f"*/{MANIFEST}")
        # No search is called so: identifiers begin with a setting. What is hidden is half an
        # export that was killed.
        if not file.parent.name.startswith((BASELINE, "."))
    ]
    if not bundles:
        raise BundleError(f"{place.path} has no bundle yet. Run {place.command('export')} first.")
    return max(bundles, key=_exported)


def _exported(bundle: Path) -> tuple[int, str]:
    """When a bundle was exported, by its programs: a certificate renews the manifest, too."""
    programs = (file for file in bundle.iterdir() if file.name != MANIFEST)
    # By name where times are equal, as on file systems with a coarse clock.
    return max((file.stat().st_mtime_ns for file in programs), default=0), bundle.name


def run_of(bundle: Path) -> Path | None:
    """The run a bundle lies in, where it lies in one."""
    # RUN/exports/ID; with --output a bundle lies elsewhere.
    folder = bundle.resolve().parent.parent
    return folder if (folder / "config.toml").is_file() else None


def require_input(place: Run, bundle: Bundle) -> None:
    """Raise BundleError for a bundle that takes other images than the run's network."""
    data = place.config.data
    if bundle.size != data.size:
        raise BundleError(
            f"bundle {bundle.path} takes images of {bundle.size}, run {place.path} has "
            f"{data.size}. Name the run it was exported from with --run."
        )
    for theirs, ours in (
        (bundle.framing, data.framing), (bundle.normalisation, data.normalisation),
    ):  # fmt: skip
        if theirs != ours:
            raise BundleError(
                f"bundle {bundle.path} takes images by {theirs}, run {place.path} has {ours}. "
                "Name the run it was exported from with --run, or export it again."
            )


def load_baseline(place: Run, bundle: Bundle, threads: int) -> Bundle:
    """The run's network to its end, in the form of `bundle` and with its weights."""
    path = bundle_path(place, BASELINE, bundle.manifest["format"])
    if not path.is_dir():
        raise BundleError(f"{path} is missing. Run {place.command('export')} to write it again.")
    # Of the same format: who runs the one as code runs the other.
    baseline = load_bundle(path, threads=threads, trust=bundle.trust)
    if bundle.facts["source"]["weights"] != baseline.facts["source"]["weights"]:
        raise BundleError(
            f"bundle {bundle.path} was exported from other weights than run {place.path} holds. "
            "Name the run it was exported from with --run."
        )
    return baseline


def exit_rates_of(run: BundleRun) -> list[float]:
    """Share of the images for which each exit answers, as a search says it.

    Where every exit answers on the way, each does for all of them; only the last stops the network.
    """
    if find_setting(run.bundle.facts["setting"]).every_exit_answers:
        return [1.0] * len(run.bundle.manifest["exits"])
    return run.exit_rates


def counts_of_run(run: BundleRun) -> Counts:
    """What a bundle got right, image by image."""
    stacked = (np.stack(part) for part in (run.intersection, run.predicted, run.label))
    return Counts.of(*stacked)
