"""One small run, trained once, that the tests of the whole path share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mess import workflow
from mess.runs.run import Run

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
