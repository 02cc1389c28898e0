"""Trainings that are killed between a step and its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mess.common.progress import Silent, Task

EVERY_STEP = {"checkpoint_minutes": 1e-12, "checkpoint_share": 1.0}
"""A checkpoint."""


class Killed(Exception):
    pass


class _KillingTask:
    def __init__(self, left: int) -> None:
        self._left = left

    def advance(self, steps: float = 1, **figures: float) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed


class Killer(Silent):
    """Kills at the `iteration`-th step (1-based) of a stage, before that step is checkpointed."""

    def __init__(self, stage: str, iteration: int) -> None:
        self._stage, self._iteration = stage, iteration

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _KillingTask(self._iteration - done if name == self._stage else -1)
