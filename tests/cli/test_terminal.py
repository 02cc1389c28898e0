"""Names come from files: what they hold is shown word for word, and steers no terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from mess.cli import progress
from mess.cli.tables import print_ceiling, print_predictions
from mess.cli.terminal import complain, note, out, printable, say

ODD = "scan[final] x [/b] :smile:"
HOSTILE = "a\x1b[31mb\x07c\x9bd\udcffe"
SHOWN = "a?[31mb?c?d?e"


def test_what_steers_a_terminal_or_cannot_be_written_is_a_question_mark() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("two\nlines\tß×") == "two\nlines\tß×"


@pytest.mark.parametrize("speak", [say, note, complain])
def test_messages_are_shown_word_for_word(speak: object, capfd: pytest.CaptureFixture[str]) -> None:
    speak(f"{ODD} {HOSTILE}")  # pyright: ignore[reportCallIssue]
    told = capfd.readouterr()
    assert (told.out + told.err).removeprefix("Error: ") == f"{ODD} {SHOWN}\n"


def test_cells_heads_and_titles_are_shown_word_for_word(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table = Table(f"{ODD} head", title=f"{ODD} title")
    table.add_row(f"{ODD} {HOSTILE}")
    out.print(table)
    told = capfd.readouterr().out
    for words in (f"{ODD} head", f"{ODD} title", f"{ODD} {SHOWN}"):
        assert words in told
    assert "\x1b" not in told


def test_file_names_are_told_as_they_are(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    undecodable = os.fsdecode(b"\xff.png")
    for name in ("scan[final].png", "[/b].png", ":smile:.png", undecodable):
        row = {"image": name, "exit_id": "final", "signal": None, "tiles": None, "label_map": name}
        print_predictions([row])
        assert capfd.readouterr().out.count(printable(name)) == 2


def test_classes_are_told_as_they_are(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    row = {"height": 3, "width": 4, "output_stride": 8, "miou": 0.5, "iou": [0.5, 0.25]}
    print_ceiling(
        {
            "ceilings": [row], "classes": [ODD, HOSTILE], "pixels": [0.5, 0.5],
            "output_strides": [8], "images": 3, "split": "train",
            "out_of_reach": [{"height": 3, "width": 4, "class": ODD, "iou": 0.25}],
        }
    )  # fmt: skip
    told = capfd.readouterr().out
    assert told.count(ODD) == 2
    assert SHOWN in told


def test_tasks_are_named_word_for_word(tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("w+", encoding="utf-8") as file:
        console = Console(file=file, force_terminal=True, width=200)
        with (
            progress._progress(console) as bars,
            progress._RichReporter(bars).task(f"memoising {ODD} {HOSTILE}", 2) as task,
        ):
            task.advance()
        file.seek(0)
        assert f"memoising {ODD} {SHOWN}" in file.read()
