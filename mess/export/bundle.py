"""Writing a chosen instance as a bundle (see `mess.runtime.bundle` for what a bundle is)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mess.common.files import atomic_folder, sha256, write_json
from mess.common.framing import Framing
from mess.common.normalisation import IMAGENET, Normalisation
from mess.common.progress import Reporter
from mess.errors import BundleError
from mess.export.programs import write_program
from mess.export.segments import LabelMap, Segment, native_shape, tensor_shapes
from mess.networks.network import OverprovisionedNetwork
from mess.runtime.format import BUNDLE_VERSION, MANIFEST, BundleExit, BundleFile, Histogram
from mess.runtime.manifest import sealed
from mess.runtime.registry import runtime_of
from mess.signals.measure import SignalModule
from mess.signals.signal import Signal

_HISTOGRAM_BINS = 20


@dataclass(frozen=True, kw_only=True)
class PlannedExit:
    """One exit of the instance to export, in order of depth."""

    exit_id: str
    point: int
    macs: float
    """MACs of an image this exit answers."""
    signal: Signal | None
    threshold: float | None
    exit_rate: float | None
    calibration_signal: NDArray[np.float32] | None
    """The signal of every calibration image, for the manifest's histogram."""


def export_bundle(
    network: OverprovisionedNetwork,
    exits: Sequence[PlannedExit],
    directory: Path,
    *,
    framing: Framing,
    normalisation: Normalisation = IMAGENET,
    format_: str,
    facts: Mapping[str, Any],
    certificate: Mapping[str, Any] | None = None,
    reporter: Reporter,
) -> Path:
    """Write the bundle of `exits` to `directory` and return it.

    `facts` are further keys of the manifest: setting, classes, palette, predicted figures, where
    the instance came from; `certificate` is what was certified of it. The folder appears whole or
    not at all; an older bundle is replaced.
    """
    # "." has no name to build beside, and where a link leads is replaced, not the link.
    directory = directory.resolve()
    _check_replaceable(directory)
    with atomic_folder(directory) as building:
        rows = _write_programs(network, exits, building, framing.size, format_, reporter)
        manifest = {
            "bundle_version": BUNDLE_VERSION,
            "format": format_,
            "input": asdict(framing) | asdict(normalisation),
            "exits": rows,
            "histograms": {
                planned.exit_id: _histogram(planned.calibration_signal)
                for planned in exits
                if planned.calibration_signal is not None
            },
            **facts,
            # Before the manifest is written, which cannot hold a hash of itself.
            "files": {file.name: _file(file) for file in sorted(building.iterdir())},
        }
        write_json(building / MANIFEST, sealed(manifest, certificate))
    return directory


def _check_replaceable(directory: Path) -> None:
    """Refuse a place that holds anything but a bundle."""
    # To the letter: a folder that holds one file more is not ours alone to replace.
    while (known := _files_of(directory)) != (found := _names_in(directory)):
        if not found:
            return
        # Else another export has put a bundle there between the two looks.
        if known == _files_of(directory):
            raise BundleError(
                f"{directory} is no bundle and would be overwritten; choose another --output."
            )


def _names_in(directory: Path) -> set[str]:
    try:
        return {file.name for file in directory.iterdir()}
    except FileNotFoundError:
        return set()
    except NotADirectoryError:
        return {directory.name}


def _files_of(directory: Path) -> set[str]:
    """Names of a bundle's files; none of what is no bundle.

    An altered one is still a bundle, and to export it again is what mends it.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return {MANIFEST, *manifest["files"]} if "bundle_version" in manifest else set()
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _write_programs(
    network: OverprovisionedNetwork,
    exits: Sequence[PlannedExit],
    directory: Path,
    size: tuple[int, int],
    format_: str,
    reporter: Reporter,
) -> list[BundleExit]:
    shapes = tensor_shapes(network, size)
    suffix = runtime_of(format_).suffix
    rows: list[BundleExit] = []
    start = 0
    # Only to have a shape: the first exit has none before it to compare with.
    labels_shape: tuple[int, ...] = (1, *size)
    with reporter.task("exporting", len(exits)) as task:
        for number, planned in enumerate(exits, start=1):
            later = exits[number:]
            segment = Segment(
                network,
                start,
                planned.point,
                planned.exit_id,
                None if planned.signal is None else SignalModule(planned.signal, size),
                hands_on=_needed(network, planned.point, later),
                gives_labels=bool(later and later[0].signal and later[0].signal.compares),
            )
            examples = [torch.zeros(shapes[name]) for name in segment.reads]
            examples.append(torch.zeros(labels_shape, dtype=torch.uint8))
            name = f"segment-{number}{suffix}"
            write_program(
                segment,
                # The last example is left over where the signal compares nothing.
                dict(zip(segment.inputs, examples, strict=False)),
                segment.outputs,
                directory / name,
                format_,
            )
            native = native_shape(network, planned.exit_id, shapes)
            labels_shape = (1, *native[2:])
            answer = f"answer-{native[2]}x{native[3]}{suffix}"
            if not (directory / answer).exists():
                logits = {"logits": torch.zeros(native)}
                write_program(LabelMap(size), logits, ["label_map"], directory / answer, format_)
            rows.append(
                {
                    "exit_id": planned.exit_id,
                    "segment": name,
                    "inputs": segment.inputs,
                    "outputs": segment.outputs,
                    "answer": answer,
                    "signal": None if planned.signal is None else planned.signal.to_json(),
                    "threshold": planned.threshold,
                    "exit_rate": planned.exit_rate,
                    "macs": planned.macs,
                }
            )
            start = planned.point
            task.advance()
    return rows


def _needed(
    network: OverprovisionedNetwork, point: int, later: Sequence[PlannedExit]
) -> tuple[str, ...]:
    """What the instance reads behind a point: a decoder that is not run needs nothing."""
    if not later:
        return ()
    return network.alive(point, later[-1].point, [planned.exit_id for planned in later])


def _file(file: Path) -> BundleFile:
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def _histogram(signal: NDArray[np.float32]) -> Histogram:
    # Most signals are shares; how far others reach shows on the calibration images alone.
    ends = (min(0.0, float(signal.min())), max(1.0, float(signal.max())))
    counts, edges = np.histogram(signal, bins=_HISTOGRAM_BINS, range=ends)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
