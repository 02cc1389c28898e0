"""The papers' recipes on data laid out as theirs: a few steps of each, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mess.commands.train import train_network
from mess.common.progress import Silent
from mess.config import load_config
from mess.exits import FINAL
from mess.networks.candidates import KEPT, candidates
from mess.runs.run import Run, begin_run
from tests.data.conftest import write_coco, write_voc, write_voc_aug

SMALL = [
    "data.size=[64,64]",
    "data.workers=0",
    "training.batch_size=2",
    "training.stage1.iterations=2",
    "training.stage2.iterations=2",
    # Few CPUs are quick at less.
    "training.stage1.precision=float32",
    "training.stage2.precision=float32",
]
LIGHT = ["exits.crm=[8]", "exits.blocks=[1]", "exits.dlb_channels=8", "exits.max_exit_cost=9"]
"""Both dilations and both heads, of exits that are soon trained."""

DATA = {"voc": write_voc, "voc-aug": write_voc_aug, "coco": write_coco}


def trained(folder: Path, config: str, kind: str, *overrides: str) -> Run:
    root = folder / kind
    if not root.exists():
        DATA[kind](root)
    settings = [*SMALL, f"data.kind={kind}", f"data.root={root}", *overrides]
    run = begin_run(folder / "run", load_config(config, settings), "run")
    train_network(run, "cpu", Silent())
    return run


def stages(run: Run) -> list[str]:
    rows = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(row["stage"] for row in rows))


@pytest.mark.parametrize(("network", "kind"), [("drn50", "coco"), ("mobilenet_v2", "voc-aug")])
def test_mess_paper(tmp_path: Path, network: str, kind: str) -> None:
    if kind == "coco":
        pytest.importorskip("pycocotools")
    run = trained(tmp_path, "mess-paper", kind, f"backbone.name={network}", *LIGHT)
    assert stages(run) == ["stage1", *(f"stage2-{group}of4" for group in (1, 2, 3, 4))]
    trained_exits = [row for row in run.candidate_rows if row["status"] == "trained"]
    # Two heads, dilated or not, at six points, and the network's own.
    assert len(trained_exits) == 6 * 4 + 1
    assert run.weights.exists()


@pytest.mark.parametrize("config", ["brandeeplabv3", "exit-criteria"])
def test_branches_go_onto_a_trained_network(tmp_path: Path, config: str) -> None:
    # A ResNet101 differs in depth alone.
    smaller = ("backbone.name=deeplabv3_resnet50", "exits.dlb_channels=8")
    first = trained(tmp_path / "first", config, "voc", "training.scheme=frozen", *smaller)
    run = trained(tmp_path, config, "voc", f"training.start={first.path}", *smaller)
    assert stages(run) == ["joint", "joint-holdout"]


@pytest.mark.parametrize(("config", "branches"), [("brandeeplabv3", 5), ("exit-criteria", 7)])
def test_branches_are_the_papers(config: str, branches: int) -> None:
    rows = candidates(load_config(config), 21)
    kept = [row.exit_id for row in rows if row.status == KEPT]
    assert kept == [*(f"p{number}-crm1-b0-dlb" for number in range(1, branches + 1)), FINAL]


def test_the_paper_s_space_has_336_exits() -> None:
    exits = load_config("mess-paper").exits
    assert (exits.points, exits.crm, exits.blocks) == (6, (1, 2, 4, 8), (0, 1, 2, 3))
    assert (exits.rdi, exits.heads) == ((False, True), ("fcn", "dlb"))
