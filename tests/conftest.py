"""Tiny configurations, and one small run, trained once, that the tests of the package share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mess import workflow
from mess.config import Config, parse_config
from mess.runs.run import Run

# Tiny tensors: a second thread only waits for the first. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MakeConfig = Callable[..., Config]

_TINY: dict[str, Any] = {
    "data": {"size": [32, 48], "shapes": [8, 8, 8], "workers": 0, "holdout": 0.0},
    "backbone": {"options": {"width": 0.25}},
    "exits": {"points": 3, "crm": [1, 2], "blocks": [0, 1], "rdi": [True], "heads": ["fcn"]},
    "training": {
        "batch_size": 2,
        "stage1": {"iterations": 4},
        "stage2": {"iterations": 3},
    },
    "memoise": {"batch_size": 3, "pixel_thresholds": [0.2, 0.5], "confidences": ["top1"]},
}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        # Options belong to one backbone: another one's must not inherit them.
        result[key] = _merged(result[key], value) if nested and key != "options" else value
    return result


@pytest.fixture(scope="session")
def make_config() -> MakeConfig:
    """A tiny configuration; keyword arguments are sections, merged into it key by key."""

    def make(**changes: Any) -> Config:
        return parse_config(_merged(_TINY, changes))

    return make


@pytest.fixture(scope="session")
def tiny(make_config: MakeConfig) -> Config:
    """A quarter-width MobileNetV2 at 32x48 with three points and light FCN exits."""
    return make_config()


CONFIG = """
seed = 3
[data]
kind = "shapes"
size = [48, 64]
shapes = [48, 40, 24]
workers = 0
[backbone]
name = "small_resnet"
options = { width = 8 }
[exits]
points = 3
crm = [1, 2]
blocks = [0, 1]
rdi = [false]
heads = ["fcn"]
[training]
batch_size = 8
[training.stage1]
iterations = 40
learning_rate = 0.1
[training.stage2]
iterations = 20
learning_rate = 0.1
[memoise]
pixel_thresholds = [0.5, 0.8]
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The shared run: trained, memoised and profiled. Tests that write use `run`."""
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "tiny.toml"
    config.write_text(CONFIG)
    return workflow.train_overprovisioned(config, run=folder / "run")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of the shared run."""
    return Run(Path(shutil.copytree(trained.path, tmp_path / "run")))


@pytest.fixture
def searched(run: Run) -> Callable[..., Path]:
    """Search with options and export; the bundle."""

    def export(**options: object) -> Path:
        workflow.search(run.path, **options)  # pyright: ignore[reportArgumentType]
        return workflow.export(run.path)

    return export
