"""Every snippet of the documents runs, and every command in them exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer.main

from mess import workflow
from mess.cli import app, main
from mess.run import Run

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def commands() -> list[str]:
    """Every `mess ...` line of the documents' shell blocks."""
    return [
        line
        for document in DOCUMENTS
        for block in blocks(document, "bash")
        for line in block.splitlines()
        if line.startswith("mess ")
    ]


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_documents_exist(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    group = typer.main.get_command(app)
    command = group.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    command.make_context(name, arguments)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "docs" / "files.md"])
def test_python_snippets_run(document: Path, run: Run, searched: Callable[..., Path]) -> None:
    names = {
        "run": run.path,
        "path": searched(target="macs", max_error=0.05),
        "image": np.zeros((48, 64, 3), np.uint8),
    }
    snippets = blocks(document, "python")
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, str(document), "exec"), names)
    if "miou" in names:
        report = workflow.evaluate(run=run.path, split="calibration")
        assert names["miou"] == pytest.approx(report["baseline"]["miou"], abs=1e-4)


def test_the_backbone_example_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = ROOT / "docs" / "own-backbone.md"
    (tmp_path / "tiny.py").write_text(blocks(document, "python")[0])
    monkeypatch.chdir(tmp_path)
    command = shlex.split(blocks(document, "bash")[0])
    monkeypatch.setattr("sys.argv", [*command, "--set", "data.shapes=[4,4,4]", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert '"block3"' in capsys.readouterr().out
