"""Which bundle of a run is meant where none is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mess.errors import BundleError
from mess.runs.bundles import newest_bundle
from mess.runs.run import Run


def write_bundle(run: Run, name: str, exported: int, certified: int) -> Path:
    folder = run.bundle(name)
    folder.mkdir(parents=True)
    for file, when in (("segment-1.onnx", exported), ("manifest.json", certified)):
        (folder / file).touch()
        os.utime(folder / file, (when, when))
    return folder


def test_a_certificate_makes_no_bundle_the_newest(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_bundle(run, "macs-a", exported=100, certified=300)
    second = write_bundle(run, "macs-b", exported=200, certified=200)
    assert newest_bundle(run) == second


def test_what_a_kill_left_is_no_bundle(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for name in (".macs-a.old", ".baseline.building", "baseline", "baseline-torch"):
        write_bundle(run, name, exported=100, certified=100)
    with pytest.raises(BundleError, match="has no bundle yet"):
        newest_bundle(run)
