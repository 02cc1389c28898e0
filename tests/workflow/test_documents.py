"""Every snippet of the documents runs, and every command in them exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from mess import load_bundle, workflow
from mess.cli.app import app, main
from mess.common.metrics import mean_iou
from mess.config import Config, read_toml
from mess.data import open_split
from mess.runs.run import Run

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def commands() -> list[str]:
    """Every `mess ...` line of the documents' shell blocks."""
    return [
        line.removeprefix("PYTHONPATH=. ")
        for document in DOCUMENTS
        for block in blocks(document, "bash")
        for line in block.splitlines()
        if line.removeprefix("PYTHONPATH=. ").startswith("mess ")
    ]


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_documents_exist(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    command = command.commands[name]
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_fill_in(document: Path) -> None:
    assert not re.search(r"@[A-Z]+@|TODO|TBD", document.read_text())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_documents_name_exist(document: Path) -> None:
    folders = "benchmarks|cache|configs|docs|mess|search|tests"
    named = re.findall(rf"`((?:{folders})/[a-z_0-9./-]*)`", document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 6


def test_python_snippets_of_the_readme_run(run: Run, searched: Callable[..., Path]) -> None:
    names = {
        "path": searched(target="macs", max_error=0.05),
        "image": np.zeros((48, 64, 3), np.uint8),
    }
    snippets = blocks(ROOT / "README.md", "python")
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)


CONFIGURATIONS = [block for document in DOCUMENTS for block in blocks(document, "toml")] + [
    path.read_text() for path in sorted((ROOT / "benchmarks").glob("*.toml"))
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_configurations_of_documents_and_benchmarks_are_valid(text: str) -> None:
    assert read_toml(text) != Config()


def test_every_tool_reads_the_same_from_a_cache(run: Run) -> None:
    found: dict[str, Any] = {"run": run.path}
    for snippet in blocks(ROOT / "docs" / "cache.md", "python"):
        exec(compile(snippet, "cache.md", "exec"), found)
    tables = run.open_cache("calibration").tables
    hits, predicted = tables.intersection.sum(axis=1), tables.predicted.sum(axis=1)
    miou = mean_iou(hits, predicted, tables.label.sum(axis=0))
    expected = dict(zip(tables.exit_ids, np.asarray(miou).tolist(), strict=True))
    for tool in ("pandas", "duckdb", "polars"):
        assert found[f"by_{tool}"] == pytest.approx(expected, abs=1e-12), tool


OWN_BACKBONE = ROOT / "docs" / "own-backbone.md"
POLICIES = ROOT / "docs" / "policies.md"


def test_the_contracts_of_the_documents_are_kept(tmp_path: Path) -> None:
    """As one would run them: pytest on files beside modules of one's own."""
    for document in (OWN_BACKBONE, POLICIES):
        for snippet in blocks(document, "python"):
            first = snippet.splitlines()[0]
            name = first.removeprefix("# ") if first.startswith("# ") else "my_signals.py"
            (tmp_path / name).write_text(snippet)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "11 passed" in done.stdout


EXAMPLES = "".join(blocks(OWN_BACKBONE, "bash")).splitlines()
LISTED = (
    "block3", "down3", "down2", "layer3.3", "blocks.4.1", "decoder.blocks.2",
    "stages.2.blocks.4", "stages.2.layers.5",
)  # fmt: skip
"""A block of each, at which exits are listed."""


@pytest.mark.parametrize(
    ("line", "block"),
    list(zip(EXAMPLES, LISTED, strict=True)),
)
def test_the_backbone_examples_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    block: str,
) -> None:
    for snippet in blocks(OWN_BACKBONE, "python"):
        (tmp_path / snippet.splitlines()[0].removeprefix("# ")).write_text(snippet)
    monkeypatch.chdir(tmp_path)
    if line != (bare := line.removeprefix("PYTHONPATH=. ")):
        monkeypatch.syspath_prepend(tmp_path)
    command = shlex.split(bare)
    monkeypatch.setattr("sys.argv", [*command, "--set", "data.shapes=[4,4,4]", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert f'"{block}"' in capsys.readouterr().out


def test_a_signal_of_ones_own_goes_all_the_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document's class, memoised, searched and exported; nothing else is written."""
    snippet, _ = blocks(POLICIES, "python")
    (tmp_path / "my_signals.py").write_text(snippet)
    monkeypatch.syspath_prepend(tmp_path)
    name = "my_signals:LeastConfident"
    text = run.config_file.read_text()
    changed = re.sub(r"signals = \[[^]]*\]", f'signals = ["share", "{name}"]', text)
    assert changed != text
    run.config_file.write_text(changed)
    workflow.memoise(run.path)
    workflow.profile(run.path, rounds=1)
    found = workflow.search(run.path, policy=name, target="macs", max_error=0.1)
    assert found["search"]["space"]["signals"] == [name]
    tables = run.open_cache("calibration").tables
    exit_ = tables.exit_ids.index("p1-crm1-b0-fcn")
    observed = tables.signals[exit_, :, tables.signal_names.index(name)]
    assert len(np.unique(observed)) > 2
    half = float(np.median(observed)) + 1e-9
    found["exits"] = [
        {"exit_id": "p1-crm1-b0-fcn", "signal": name, "threshold": half, "exit_rate": 0.5},
        {"exit_id": "final", "signal": None, "threshold": None, "exit_rate": 0.5},
    ]  # fmt: skip
    del found["digest"]
    (Path(found["path"]) / "result.json").write_text(json.dumps(found))
    bundle = load_bundle(workflow.export(run.path))
    signal = bundle.manifest["exits"][0]["signal"]
    assert signal
    assert signal["kind"] == name
    data = open_split(run.config.data, "calibration", run.config.seed)
    for i in range(0, len(data), 8):
        first, _ = bundle.stream(data.sized(i)[0])
        assert first.signal == pytest.approx(float(observed[i]), abs=1e-5)
    # To read what is there nothing is imported: an unpacked run may name anything.
    monkeypatch.setattr("mess.signals.registry.imported", None)
    monkeypatch.setattr("mess.networks.backbones.imported", None)
    again = workflow.search(run.path, policy="any", target="macs", max_error=0.1)
    assert name in again["search"]["space"]["signals"]
    assert workflow.search(run.path, policy=name, target="macs", max_error=0.1, fresh=True)
    workflow.report(run.path)
    workflow.evaluate(bundle.path)
    workflow.certify([bundle.path], max_error=0.99)
    assert [cache["name"] for cache in workflow.cache_info(run.path)] == ["calibration"]
    workflow.cache_verify(run.path)
    with pytest.raises(TypeError):
        workflow.memoise(run.path)
