"""Tiny configurations, and one run whose predictions are made, that the tests share."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pickle
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import is_hypothesis_test, settings
from torch import nn

from mess import workflow
from mess.commands.train import train_network
from mess.common.files import atomic_path, write_text
from mess.common.progress import Silent
from mess.config import Config, parse_config
from mess.export.programs import WRITERS, Writer
from mess.networks.weights import save_weights
from mess.runs.network import trained_network
from mess.runs.run import Run
from tests.made import make_weights, write_images
from tests.seeds import SEED, seeded

# Machines of all speeds find the same examples, and keep none for the next time.
settings.register_profile("tests", max_examples=60, deadline=None, database=None)
settings.load_profile("tests")

NUMERICS = ("tests/export", "tests/networks", "tests/prediction", "tests/signals")
"""Folders whose tests hang on how a processor rounds."""

EXACT = tuple(
    f"tests/networks/test_{name}.py"
    for name in ("adoption", "candidates", "macs", "transformers_models")
)
"""Files in those whose tests compute no features: names, shapes, counts and refusals."""

SLOW = (
    "tests/benchmarks",
    "tests/cache/test_faults.py",
    "tests/cli/test_commands.py",
    "tests/compute/test_processes.py",
    "tests/export/test_bundle.py",
    "tests/networks",
    "tests/prediction/test_statistics.py",
    "tests/runs",
    "tests/search/test_brute_force.py",
    "tests/search/test_explanation.py",
    "tests/search/test_infeasible.py",
    "tests/search/test_policies.py",
    "tests/search/test_realistic.py",
    "tests/search/test_sampling.py",
    "tests/training/test_resuming.py",
    "tests/training/test_schemes.py",
    "tests/workflow",
)
"""Whole ways through files and processes, many networks, enumerations: `make check` goes without.

They take nine tenths of the time.
"""


def pytest_report_header() -> str:
    return f"MESS_TEST_SEED={SEED}, torch threads: {torch.get_num_threads()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parents[1]
    for item in items:
        place = item.path.relative_to(root).as_posix()
        rounds = place.startswith(NUMERICS) and place not in EXACT
        if rounds and not item.get_closest_marker("one_setting"):
            item.add_marker("numerics")
        if place.startswith(SLOW):
            item.add_marker("slow")
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.function):
            hypothesis.seed(seeded(0))(item.function)


MakeConfig = Callable[..., Config]

_TINY: dict[str, Any] = {
    "data": {"size": [32, 48], "shapes": [8, 8, 8], "workers": 0, "holdout": 0.0},
    "backbone": {"options": {"width": 0.25}},
    "exits": {"points": 3, "crm": [1, 2], "blocks": [1], "rdi": [True], "heads": ["fcn"]},
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


@pytest.fixture(scope="session", autouse=True)
def _equal_programs_are_written_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests export the same segments again and again, at a second or more each.

    Two modules are the same where all they consist of is, weights and attributes, byte for byte. A
    test that changes what a class does must not export it by way of these.
    """
    folder = _common_folder(tmp_path_factory) / "programs"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for format_, write in WRITERS.items():
            patch.setitem(WRITERS, format_, _written_once(write, folder, format_))
        yield


def _written_once(write: Writer, folder: Path, format_: str) -> Writer:
    def write_once(
        module: nn.Module, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str], path: Path
    ) -> None:
        try:
            content = _content((format_, module, dict(inputs), list(outputs)))
        except (pickle.PicklingError, AttributeError, TypeError):
            # A class that a test defines within itself.
            write(module, inputs, outputs, path)
            return
        known = folder / hashlib.sha256(content).hexdigest()
        if not known.exists():
            write(module, inputs, outputs, path)
            with atomic_path(known) as temporary:
                shutil.copyfile(path, temporary)
        shutil.copyfile(known, path)

    return write_once


def _content(value: object) -> bytes:
    """The same bytes for equal values; torch pickles equal tensors differently each time."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            if not isinstance(obj, torch.Tensor):
                return None
            content = obj.detach().numpy().tobytes()
            return str(obj.dtype), tuple(obj.shape), obj.stride(), content

    out = io.BytesIO()
    Pickler(out).dump(value)
    return out.getvalue()


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    """Programs of torch set the number of threads of the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
seed = {seed}
[data]
kind = "folder"
root = "{root}"
size = [48, 64]
workers = 0
[backbone]
name = "small_resnet"
options = {{ width = 8 }}
[exits]
points = 3
crm = [1, 2]
blocks = [0, 1]
rdi = [false]
heads = ["fcn"]
[training]
batch_size = 2
stage1.iterations = 2
stage2.iterations = 2
[memoise]
pixel_thresholds = [0.8, 0.95]
"""

IMAGES = {"train": 8, "val": 40, "test": 24}
"""Of the shared run, by split."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The shared run: its weights are made, then memoised and profiled. Tests write to `run`."""

    def make(folder: Path) -> None:
        rng = np.random.default_rng(seeded(0))
        write_images(folder / "images", IMAGES, (48, 64), rng)
        begun = Run(folder / "run")
        config = parse_config(tomllib.loads(CONFIG.format(root=folder / "images", seed=seeded(3))))
        write_text(begun.config_file, config.to_toml())
        train_network(begun, "cpu", Silent())
        network = trained_network(begun, torch.device("cpu"))
        make_weights(network)
        save_weights(network, begun.weights)
        workflow.memoise(begun.path)
        workflow.profile(begun.path, rounds=3)

    return Run(made_once(tmp_path_factory, "made", make) / "run")


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]
) -> Path:
    """A folder that the first worker that asks for it fills, and all others find filled."""
    root = _common_folder(tmp_path_factory)
    folder, filled = root / name, root / f"{name}.filled"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not filled.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            filled.touch()
    return folder


def _common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all workers share."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the shared run."""
    return Run(Path(shutil.copytree(made.path, tmp_path / "run")))


@pytest.fixture
def searched(run: Run) -> Callable[..., Path]:
    """Search with options and export; the bundle."""

    def export(**options: object) -> Path:
        workflow.search(run.path, **options)  # pyright: ignore[reportArgumentType]
        return workflow.export(run.path)

    return export
