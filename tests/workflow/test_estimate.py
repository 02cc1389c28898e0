"""What training would take, measured by steps of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mess.commands.estimate
from mess import workflow
from mess.errors import MessError
from tests.workflow.test_start import SETTINGS


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def estimated(*overrides: str) -> dict:
    return workflow.estimate("shapes", overrides=[*SETTINGS, *overrides], device="cpu")


def test_each_stage_is_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    found = estimated("training.stage1.iterations=7200", "training.stage2.iterations=3600")
    stages = {each["stage"]: each for each in found["stages"]}
    assert list(stages) == ["stage1", "stage2"]
    assert stages["stage1"]["hours"] == pytest.approx(2 * stages["stage1"]["seconds"])
    assert stages["stage2"]["hours"] == pytest.approx(stages["stage2"]["seconds"])
    assert found["hours"] == pytest.approx(sum(each["hours"] for each in stages.values()))
    assert all(each["seconds"] > 0 and each["memory"] > 2**20 for each in stages.values())
    assert (found["device"], found["memory"]) == ("cpu", None)
    kept = [row for row in workflow.exits("shapes", overrides=SETTINGS) if row["status"] == "kept"]
    assert found["exits"] == len(kept)
    assert not list(tmp_path.iterdir())


def test_stages_are_those_of_the_configuration() -> None:
    joint = estimated("training.scheme=e2e")
    assert [each["stage"] for each in joint["stages"]] == ["joint"]
    shortest = estimated("training.stage1.iterations=1", "training.stage2.iterations=1")
    assert [each["iterations"] for each in shortest["stages"]] == [1, 1]
    exits_alone = estimated("training.stage1.iterations=0", "training.stage2.groups=2")
    assert [each["stage"] for each in exits_alone["stages"]] == ["stage2-1of2", "stage2-2of2"]


@pytest.mark.parametrize(
    ("full", "remedy"), [("stage1", "torchrun"), ("stage2", r"training\.stage2\.groups above 1")]
)
def test_a_gpu_that_is_too_small_is_told_with_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, full: str, remedy: str
) -> None:
    measured = mess.commands.estimate._seconds

    def seconds(stage, batch) -> float:
        if stage.name == full:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return measured(stage, batch)

    monkeypatch.setattr(mess.commands.estimate, "_seconds", seconds)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 24_000_000_000))
    expected = rf"{full} does not fit into the 24 GB of cpu with batches of \d+.*{remedy}"
    with pytest.raises(MessError, match=expected):
        estimated()
