"""The command tree is a contract: a change here is a deliberate act."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer.main

from mess.cli import app, main
from mess.run import Run

RUN = {"run"}
TREE = {
    "train-overprovisioned": {"config", "overrides", "device"} | RUN,
    "exits": {"config", "overrides", "as_json"},
    "memoise": {"split", "device"} | RUN,
    "profile": {"runtime", "threads", "rounds", "name"} | RUN,
    "search": {
        "setting", "target", "max_error", "min_miou", "max_latency", "max_macs", "max_params",
        "checkpoint", "latency_stat", "profile", "max_exits", "thresholds", "no_front",
        "fresh", "algorithm", "trials", "sampler", "as_json",
    } | RUN,
    "export": {"search", "format", "output"} | RUN,
    "evaluate": {"bundle", "split", "threads", "as_json"} | RUN,
    "predict": {"bundle", "images", "output", "threads", "as_json"},
    "report": RUN,
}  # fmt: skip


def test_command_tree() -> None:
    group = typer.main.get_command(app)
    commands = group.commands  # pyright: ignore[reportAttributeAccessIssue]
    found = {
        name: {parameter.name for parameter in command.params if parameter.name != "help"}
        for name, command in commands.items()
    }
    assert found == TREE


@pytest.mark.parametrize("name", TREE)
def test_help_fits_one_screen(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mess", name, "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) <= 50


def test_json_is_all_that_stdout_holds(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["search", "--run", str(run.path), "--target", "macs", "--max-error", "0.05", "--json"]
    monkeypatch.setattr("sys.argv", ["mess", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert Path(result["path"]).is_dir()
    assert result["target"] == "macs"


def test_wrong_usage_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mess", "search", "--target", "speed"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
