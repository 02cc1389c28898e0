"""Progress on the terminal, or lines of it in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mess.cli.terminal import err, note, printable
from mess.common.progress import Reporter, Task

_LINE_SECONDS = 30.0


class _RichTask:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: float = 1, **figures: float) -> None:
        text = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self._progress.update(self._task, advance=steps, figures=text)


class _RichReporter:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def message(self, text: str) -> None:
        note(text)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        task = self._progress.add_task(printable(name), total=total, completed=done, figures="")
        yield _RichTask(self._progress, task)


class _LineTask:
    def __init__(self, name: str, total: float, done: float) -> None:
        self._name, self._total, self._done = name, total, done
        self._before, self._began = done, time.monotonic()
        self._next = self._began + _LINE_SECONDS

    def advance(self, steps: float = 1, **figures: float) -> None:
        self._done += steps
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_SECONDS
            told = "".join(f" {name} {value:.4f}" for name, value in figures.items())
            note(f"{self._name}: {self._done:g} of {self._total:g}{told}{self._left(now)}")

    def _left(self, now: float) -> str:
        """The time to the end at the pace of this command, which may have gone on from before."""
        done = self._done - self._before
        if not done:
            return ""
        minutes = (now - self._began) / done * (self._total - self._done) / 60
        return f", {minutes / 60:.1f} h left" if minutes >= 90 else f", {minutes:.0f} min left"


class _LineReporter:
    """Where nothing can be drawn: a line of each long task every half minute."""

    def message(self, text: str) -> None:
        note(text)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _LineTask(name, total, done)


def _progress(console: Console) -> Progress:
    return Progress(
        # The name of a folder may stand in it.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
    )


@contextmanager
def reporter() -> Iterator[Reporter]:
    """Progress on stderr: stdout is for the result, which may be JSON."""
    if not err.is_terminal:
        yield _LineReporter()
        return
    # The console that `note` prints to, so that a message moves the bars instead of tearing them.
    with _progress(err) as progress:
        yield _RichReporter(progress)
