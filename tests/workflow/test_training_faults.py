"""Training that cannot go on, for want of room or of numbers: one message, nothing lost."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from mess.runs.run import Run
from tests.workflow.children import (
    MEMOISING,
    STAGE_1,
    STAGE_2,
    Moment,
    assert_same_end,
    begin_training,
    train,
)

SETTINGS = 'checkpoint_minutes = 1e-12\ncheckpoint_share = 1.0\nkeep = "best"\ntensorboard = true'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = begin_training(tmp_path_factory.mktemp("disk") / "whole", SETTINGS)
    assert train(run).code == 0
    return run


@pytest.mark.parametrize(
    ("task", "full", "kept", "share"),
    [
        (STAGE_1, "checkpoint.safetensors", "checkpoint.safetensors", 0.5),
        (STAGE_2, "checkpoint.safetensors", "checkpoint.safetensors", 0.5),
        (STAGE_2, "metrics.jsonl", "metrics.jsonl", 1.01),
        (MEMOISING, "predictions/part", "cache/calibration/predictions/part-*", 0.5),
    ],
)
def test_a_full_disk_is_named_and_loses_nothing(
    tmp_path: Path, whole: Run, task: str, full: str, kept: str, share: float
) -> None:
    """Full: no file may grow beyond a share of the largest `kept` one."""
    run = begin_training(tmp_path / "run", SETTINGS)
    assert train(run, kill=Moment(task, 9, 0.0)).code == -signal.SIGKILL
    before = {path: path.read_bytes() for path in run.path.glob(kept)}
    limit = int(share * max(len(content) for content in before.values()))
    outcome = train(run, largest_file=limit)
    assert outcome.code == 1
    (message,) = outcome.errors.splitlines()
    assert str(run.path) in message
    assert full in message
    assert "there is no room for it" in message
    assert "Free some and run the same command again" in message
    for path, content in before.items():
        assert path.read_bytes().startswith(content)
    assert train(run).code == 0
    assert_same_end(run, whole)


def test_a_loss_that_is_no_number_is_one_message(tmp_path: Path) -> None:
    run = begin_training(
        tmp_path / "run", "checkpoint_minutes = 1e-12\ncheckpoint_share = 1.0\nweight_decay = 1e30"
    )
    outcome = train(run)
    assert outcome.code == 1
    (message,) = outcome.errors.splitlines()
    assert re.search(r"stage1: the loss of exit \w+ is (nan|inf) at iteration \d+", message)
    assert "start a new run" in message
    assert run.checkpoint.exists()
    assert not run.weights.exists()


def test_epochs_of_a_training_without_a_checkpoint_are_not_taken_up(tmp_path: Path) -> None:
    """Its images may have been others; what would be read is refused here."""
    run = begin_training(tmp_path / "run", SETTINGS)
    run.best_epoch.write_bytes(b"of another life")
    assert train(run).code == 0
    assert not run.best_epoch.exists()
