"""How long work tells what it does, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of long work."""

    def advance(self, steps: float = 1, **figures: float) -> None:
        """`steps` more are done; `figures` are current values to show, such as a loss."""


class Reporter(Protocol):
    """Receives messages and progress; the command line draws them, tests record them."""

    def message(self, text: str) -> None:
        """Say one line."""

    def task(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Task]:
        """Open a task of `total` steps, of which `done` were finished by an earlier run."""
        ...


class _SilentTask:
    def advance(self, steps: float = 1, **figures: float) -> None:
        pass


class Silent:
    """A reporter that says nothing."""

    def message(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _SilentTask()


class Once:
    """Says each line once, whichever steps of a command say it; else as the reporter it has."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._said: set[str] = set()

    def message(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._reporter.message(text)

    def task(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Task]:
        return self._reporter.task(name, total, done)
