"""The command tree is a contract: a change here is a deliberate act."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from mess.cli.app import app, main
from mess.cli.options import Algorithm, LatencyStat, Sampler, Setting, Target
from mess.commands.search_options import ALGORITHMS, SearchOptions
from mess.runs.run import Run
from mess.search.problem.request import LATENCY_STATS, TARGETS
from mess.search.problem.settings import SETTINGS
from mess.search.sampled.study import SAMPLERS

RUN = {"run"}
TREE = {
    "train-overprovisioned": {"config", "overrides", "adopt", "device"} | RUN,
    "tune": {"config", "overrides", "folder", "rates", "share", "device", "as_json"},
    "exits": {"config", "overrides", "as_json"},
    "ceiling": {"config", "overrides", "sizes", "split", "as_json"},
    "estimate": {"config", "overrides", "device", "as_json"},
    "memoise": {"split", "name", "root", "images", "labels", "device"} | RUN,
    "profile": {"runtime", "threads", "rounds", "name"} | RUN,
    "search": {
        "setting", "target", "max_error", "min_miou", "max_lost", "max_latency", "max_macs",
        "max_params", "checkpoint", "latency_stat", "profile", "cache", "policy",
        "shared_threshold", "confidence", "certify", "expect", "max_exits", "thresholds",
        "no_front", "fresh", "algorithm", "trials", "sampler", "as_json",
    } | RUN,
    "export": {"search", "format", "output"} | RUN,
    "evaluate": {"bundle", "split", "images", "labels", "threads", "trust", "as_json"} | RUN,
    "certify": {
        "bundles", "max_error", "min_miou", "confidence", "split", "root", "threads", "trust",
        "as_json",
    } | RUN,
    "predict": {"bundle", "images", "output", "threads", "trust", "public_key", "as_json"},
    "verify": {"bundle", "digest", "public_key", "as_json"},
    "sign": {"bundle", "key", "as_json"},
    "report": RUN,
    "cache info": {"as_json"} | RUN,
    "cache verify": {"name", "as_json"} | RUN,
    "cache prune": {"name", "dry_run", "as_json"} | RUN,
}  # fmt: skip


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def test_command_tree() -> None:
    found = {
        name: {parameter.name for parameter in command.params if parameter.name != "help"}
        for name, command in commands(typer.main.get_command(app))
    }
    assert found == TREE


@pytest.mark.parametrize("name", [*TREE, "cache"])
def test_help_fits_one_screen(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mess", *name.split(), "--help"])
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


def test_choices_are_those_there_are() -> None:
    assert get_args(Setting) == tuple(SETTINGS)
    assert get_args(Target) == TARGETS
    assert get_args(LatencyStat) == LATENCY_STATS
    assert get_args(Algorithm) == ALGORITHMS
    assert get_args(Sampler) == SAMPLERS


def test_search_passes_every_option_on_and_has_its_default() -> None:
    """But `--checkpoint` and `--no-front`, which are worded for the command line."""
    found = {
        parameter.name: parameter.default
        for parameter in typer.main.get_command(app).commands["search"].params  # pyright: ignore[reportAttributeAccessIssue]
    }
    for field in fields(SearchOptions):
        if field.name not in ("checkpoints", "front"):
            assert found[field.name] == field.default, field.name


def test_wrong_usage_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mess", "search", "--target", "speed"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
