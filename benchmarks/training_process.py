"""One of the processes of benchmarks/training.py: trains a run and notes the time of a stage.

    torchrun benchmarks/training_process.py RUN CONFIG STAGE FILE [KEY=VALUE ...]

The first process writes to FILE the seconds from the end of the stage's first step to that of its
last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mess.commands.train import train_network
from mess.common.progress import Silent, Task
from mess.compute.processes import torchrun_processes
from mess.config import load_config
from mess.runs.run import Run, begin_run


class Clock(Silent):
    """Notes when a task's steps end."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self.ends: list[float] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        clock = self

        class Steps:
            def advance(self, steps: float = 1, **figures: float) -> None:
                if name == clock._stage:
                    clock.ends.append(time.perf_counter())

        yield Steps()


def main() -> None:
    run, config, stage, file, *settings = sys.argv[1:]
    clock = Clock(stage)
    with torchrun_processes() as processes:
        if processes.is_first:
            begin_run(Path(run), load_config(config, settings), "run")
        processes.wait()
        place = Run(Path(run))
        train_network(place, "cpu", clock, processes)
        if processes.is_first:
            Path(file).write_text(str(clock.ends[-1] - clock.ends[0]), encoding="utf-8")


if __name__ == "__main__":
    main()
