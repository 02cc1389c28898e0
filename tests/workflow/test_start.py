"""Training that starts from the backbone and final head of another run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mess.cache.parquet import write_rows
from mess.cache.schema import EXITS
from mess.commands.train import train_network
from mess.common.progress import Silent
from mess.config import load_config
from mess.errors import MessError, WeightsError
from mess.exits import FINAL
from mess.runs.network import trained_network
from mess.runs.run import Run, begin_run

Train = Callable[..., Run]

SETTINGS = [
    "data.size=[24,32]",
    "data.shapes=[8,4,4]",
    "data.workers=0",
    "data.holdout=0.0",
    "backbone.name=small_resnet",
    "backbone.options={width=4}",
    "exits.points=3",
    "exits.crm=[1]",
    "exits.blocks=[0]",
    "exits.rdi=[false]",
    "exits.heads=['fcn']",
    "training.batch_size=2",
    "training.stage1.iterations=4",
    "training.stage2.iterations=3",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that starts from random weights."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run = begin_run(folder, load_config("shapes", SETTINGS), "run")
    train_network(run, "cpu", Silent())
    return run


@pytest.fixture
def train(trained: Run, tmp_path: Path) -> Train:
    """Train as that run was, but for the overrides, from its backbone."""

    def start(*overrides: str, start: Path = trained.path) -> Run:
        overrides = (f"training.start='{start}'", "training.stage1.iterations=0", *overrides)
        run = begin_run(tmp_path / "run", load_config(trained.config_file, overrides), "run")
        train_network(run, "cpu", Silent())
        return run

    return start


def test_exits_trained_again_on_the_same_backbone_come_out_the_same(
    trained: Run, train: Train
) -> None:
    """Stage 2 sees the same images and starts from the same weights."""
    expected, found = load_file(trained.weights), load_file(train().weights)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_trained_run_has_the_exits_that_it_trained(trained: Run, tmp_path: Path) -> None:
    """Versions differ in which candidates they leave out; the run itself says which it has."""
    older = Run(Path(shutil.copytree(trained.path, tmp_path / "run")))
    gone = [exit_id for exit_id in trained_exits(older) if exit_id.startswith("p2-")]
    rows = [
        row | {"status": "not trained"} if row["exit_id"] in gone else row
        for row in older.candidate_rows
    ]
    write_rows(older.exits, rows, EXITS)
    weights = load_file(older.weights)
    kept = {name: w for name, w in weights.items() if not name.startswith("exits.p2-")}
    assert len(kept) < len(weights)
    save_file(kept, older.weights)
    older = Run(older.path)
    network = trained_network(older, torch.device("cpu"))
    assert list(network.exits) == [name for name in trained_exits(older) if name != FINAL]
    assert len(network.points) == 3
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def trained_exits(run: Run) -> list[str]:
    return [row["exit_id"] for row in run.exit_rows]


def test_another_loss_changes_the_exits_alone(trained: Run, train: Train) -> None:
    expected = load_file(trained.weights)
    found = load_file(train("training.scheme=kd").weights)
    changed = {name.split(".")[0] for name in found if not torch.equal(expected[name], found[name])}
    assert changed == {"exits"}


def test_a_stage_1_goes_on_from_there(trained: Run, train: Train) -> None:
    expected = load_file(trained.weights)
    run = train("training.stage1.iterations=1", "training.stage1.learning_rate=1e-9")
    found = load_file(run.weights)
    weights = [name for name in found if name.endswith("0.weight") and "backbone" in name]
    assert weights
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in weights)
    assert any(not torch.equal(expected[name], found[name]) for name in found if "running" in name)


def test_a_start_that_is_no_run_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(MessError, match=r"is no run: it has no config\.toml"):
        train(start=tmp_path / "nothing")


def test_a_start_with_another_backbone_is_refused(train: Train) -> None:
    with pytest.raises(WeightsError, match="is of another network"):
        train("backbone.options.width=8")
