"""`mess search --algorithm optuna`: a study beside the searches, its result and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mess import workflow
from mess.cache.parquet import read_rows
from mess.cache.schema import FRONT
from mess.errors import ConfigError, InfeasibleError, MessError
from mess.runs.run import Run

ASKED: dict[str, Any] = {"target": "macs", "max_error": 0.05, "max_exits": 3}
SAMPLED: dict[str, Any] = ASKED | {"algorithm": "optuna"}


def search(run: Run, **changes: Any) -> dict[str, Any]:
    """A sampled search with other options, or more."""
    return workflow.search(run.path, **SAMPLED | changes)


def studies(run: Run) -> list[Path]:
    return sorted((run.path / "studies").glob("*"))


def test_a_sampled_search_writes_what_others_read(run: Run) -> None:
    small = search(run, max_exits=2, algorithm="exhaustive")
    result = search(run, trials=40)
    assert result["predicted"]["macs"] <= small["predicted"]["macs"]
    assert result["error"] <= 0.05
    told = result["search"]
    assert (told["algorithm"], told["optimal"], told["gap"]) == ("optuna", False, None)
    assert told["evaluated"] == 40
    assert told["source"] is None
    assert told["configurations"] > told["evaluated"]
    rows = read_rows(Path(result["path"]) / "front.parquet", FRONT)
    assert rows
    assert not any(row["proven"] for row in rows)
    assert workflow.report(run.path).is_file()
    bundle = workflow.export(run.path)
    report = workflow.evaluate(bundle, split="calibration")
    assert report["agreement"]["same_exit"] >= 0.999


def test_the_same_command_goes_on_with_its_study(run: Run) -> None:
    for trials in (15, 30):
        result = search(run, trials=trials)
        assert result["search"]["evaluated"] == trials
    assert len(studies(run)) == 1
    # Other limits, another sampler and another space are other studies.
    others: list[dict[str, Any]] = [{"max_error": 0.06}, {"sampler": "nsga2"}, {"max_exits": 4}]
    for changes in others:
        result = search(run, **{"trials": 5} | changes)
        assert result["search"]["evaluated"] == 5
    assert len(studies(run)) == 4


def test_a_front_that_is_not_proven_answers_nothing_later(run: Run) -> None:
    search(run, trials=10)
    result = workflow.search(run.path, **ASKED)
    assert result["search"]["source"] is None
    assert result["search"]["optimal"]


def test_an_infeasible_request_writes_nothing(run: Run) -> None:
    with pytest.raises(InfeasibleError, match="none of 10 trials meets the limits"):
        search(run, max_macs=5, trials=10)
    assert run.searches() == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"trials": 50}, MessError, r"trials 50 .*--algorithm optuna, or leave --trials out"),
        ({"sampler": "tpe"}, MessError, r"sampler tpe .*leave --sampler out"),
        ({"algorithm": "optna"}, MessError, r"'optna'; known: .*did you mean 'optuna'"),
        ({"algorithm": "optuna", "sampler": "cma"}, ConfigError, r"'cma'; known: nsga2, tpe"),
        ({"algorithm": "optuna", "trials": 0}, ConfigError, r">= 1, got 0"),
        ({"algorithm": "optuna", "setting": "budgeted"}, ConfigError, r"use algorithm 'exhaust"),
        ({"algorithm": "optuna", "front": False}, MessError, r"--no-front .*leave it out"),
    ],
)
def test_refusals(run: Run, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        workflow.search(run.path, **{"target": "macs", "max_error": 0.05} | options)


def test_json_of_the_command(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mess.cli.app import main

    words = ["--target", "macs", "--max-error", "0.05", "--algorithm", "optuna", "--trials", "12"]
    for form in (["--json"], []):
        monkeypatch.setattr("sys.argv", ["mess", "search", "--run", str(run.path), *words, *form])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
        text = capsys.readouterr().out
        if form:
            assert json.loads(text)["search"]["evaluated"] == 12
        else:
            assert "best of 12 trials, not proven, among" in text.replace("\n", " ")
