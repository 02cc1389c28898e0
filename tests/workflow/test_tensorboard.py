"""`training.tensorboard`: TensorBoard shows what the metrics log says, resumed runs included."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mess.training.loop
from mess.cache.parquet import read_rows
from mess.cache.schema import EXITS
from mess.cli.app import main
from mess.commands.train import train_network
from mess.common.files import write_text
from mess.common.progress import Silent, Task
from mess.runs.run import Run
from mess.training.logs import TensorBoardLog
from tests.conftest import MakeConfig
from tests.events import events_of, logged


class Killed(Exception):
    pass


class Killer(Silent):
    """Kills at the `step`-th step of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        self._stage, self._left = stage, step

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        killer = self

        class Steps:
            def advance(self, steps: float = 1, **figures: float) -> None:
                killer._left -= name == killer._stage
                if not killer._left:
                    raise Killed

        yield Steps()


@pytest.fixture(autouse=True)
def _log_every_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mess.training.loop, "_LOG_EVERY", 1)


@pytest.fixture
def begun(make_config: MakeConfig, tmp_path: Path) -> Run:
    """A run that holds images out, and whose stages have no checkpoint before their ends."""
    config = make_config(data={"holdout": 0.25}, training={"tensorboard": True, "keep": "best"})
    run = Run(tmp_path / "run")
    write_text(run.config_file, config.to_toml())
    return run


def test_events_are_those_of_the_metrics_log(begun: Run) -> None:
    train_network(begun, "cpu", Silent())
    found = events_of(begun.tensorboard)
    assert found == logged(begun.metrics)
    assert {stage for stage, _ in found} == {
        "stage1", "stage1-holdout", "stage2", "stage2-holdout",
    }  # fmt: skip
    exits = [row["exit_id"] for row in read_rows(begun.exits, EXITS) if row["status"] == "trained"]
    assert "final" in exits
    for exit_id in exits:
        assert [step for step, _ in found["stage2-holdout", f"miou/{exit_id}"]] == [3]
        if exit_id != "final":
            assert [step for step, _ in found["stage2", f"loss/{exit_id}"]] == [1, 2, 3]
    assert [step for step, _ in found["stage1", "learning_rate"]] == [1, 2, 3, 4]


def test_a_resumed_run_shows_every_iteration_once(begun: Run) -> None:
    for stage, step in [("stage1", 3), ("stage1", 4), ("stage2", 2), ("stage2", 3)]:
        with pytest.raises(Killed):
            train_network(begun, "cpu", Killer(stage, step))
    train_network(begun, "cpu", Silent())
    assert events_of(begun.tensorboard) == logged(begun.metrics)
    assert len(list((begun.tensorboard / "stage2").iterdir())) == 3


def test_what_was_rewound_no_longer_counts(tmp_path: Path) -> None:
    """Nor does an event that a kill cut short; other stages stay."""
    log = TensorBoardLog(tmp_path / "metrics.jsonl", tmp_path / "events")
    for stage in ("stage1", "stage2"):
        log.rewind(stage, 0)
        for iteration in range(1, 6):
            log.append(stage, iteration, mean=1.0)
    (file,) = (tmp_path / "events" / "stage2").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    log = TensorBoardLog(tmp_path / "metrics.jsonl", tmp_path / "events")
    log.rewind("stage2", 2)
    log.append("stage2", 3, mean=2.0)
    found = events_of(tmp_path / "events")
    assert found == logged(tmp_path / "metrics.jsonl")
    assert found["stage2", "loss/mean"] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert len(found["stage1", "loss/mean"]) == 5


def test_without_tensorboard_nothing_begins(
    begun: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    monkeypatch.setattr("sys.argv", ["mess", "train-overprovisioned", "--run", str(begun.path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert 'pip install "mess[tensorboard]"' in capsys.readouterr().err.replace("\n", " ")
    assert {path.name for path in begun.path.iterdir()} == {"config.toml", ".lock"}


def test_the_setting_may_change_in_the_middle(begun: Run) -> None:
    """Weights do not depend on it; what came before is in the metrics log alone."""
    with pytest.raises(Killed):
        train_network(begun, "cpu", Killer("stage2", 1))
    text = begun.config_file.read_text()
    assert "tensorboard = true" in text
    write_text(begun.config_file, text.replace("tensorboard = true", "tensorboard = false"))
    train_network(Run(begun.path), "cpu", Silent())
    assert not (begun.tensorboard / "stage2-holdout" / "events.out.tfevents.0000000001").exists()
    rows = [json.loads(line) for line in begun.metrics.read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["stage"] == "stage2"] == [1, 2, 3]
