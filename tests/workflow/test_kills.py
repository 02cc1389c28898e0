"""A run that is killed again and again, at random moments, ends as if nothing had happened."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from tests.seeds import seeded
from tests.workflow.children import (
    MEMOISING,
    STAGE_1,
    STAGE_2,
    START,
    STEPS,
    Moment,
    Told,
    assert_same_end,
    begin_training,
    train,
)

KILLS = 7
"""During each stage and memoising."""


def moments(
    rng: np.random.Generator, task: str, told: Sequence[Told], reach: int
) -> Iterator[Moment]:
    """When to kill: during a task, whose steps take as long as `told` says, and at the start."""
    times = [b.seconds - a.seconds for a, b in pairwise(told) if a.task == b.task == task]
    for steps in rng.integers(reach, size=KILLS).tolist():
        yield Moment(task, steps, rng.uniform(0, 1.5 * median(times)))
    for _ in range(2):
        yield Moment(START, 0, rng.uniform(0, 0.15))


@pytest.mark.parametrize(
    ("settings", "reach"),
    [
        (
            'checkpoint_minutes = 1e-12\ncheckpoint_share = 1.0\nkeep = "best"\ntensorboard = true',
            3,
        ),
        ("checkpoint_minutes = 60.0", STEPS + 1),
    ],
    ids=["a checkpoint after every step", "a checkpoint after every stage"],
)
def test_a_run_killed_at_random_moments_ends_the_same(
    tmp_path: Path, settings: str, reach: int
) -> None:
    """`reach`: steps of a stage that one process may do; checkpoints keep them for the next."""
    whole = begin_training(tmp_path / "whole", settings)
    killed = begin_training(tmp_path / "killed", settings)
    told, code, _ = train(whole)
    assert code == 0
    rng = np.random.default_rng(seeded(reach))
    died: Counter[str] = Counter()
    for task in (STAGE_1, STAGE_2, MEMOISING):
        # Memoising keeps every part.
        for moment in moments(rng, task, told, 2 if task == MEMOISING else reach):
            outcome = train(killed, kill=moment)
            assert outcome.code == -signal.SIGKILL, outcome.errors
            died[outcome.told[-1].task] += 1
    assert died.total() >= 20
    assert all(died[task] >= 5 for task in (STAGE_1, STAGE_2, MEMOISING)), died
    assert train(killed).code == 0
    assert_same_end(killed, whole)
