"""Running kernels on several cores and processes with one result whatever their number.

Tasks run in rounds of fixed size. Every task of a round starts from what was known before the
round, and the findings are merged in the order of the tasks. So what a task finds, and how much it
evaluates, depends on the rounds before only, not on who did what first: the answer, the front and
all counts are the same with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numba import get_num_threads

from mess.search.problem.definition import Configuration
from mess.search.problem.findings import Findings, Scan

ROUND = 32
"""Tasks of a round: enough to keep cores busy, few enough for prunings to be shared soon."""


class Team(Protocol):
    """Processes that do the same search together; this one is `rank` of `count`."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def here(self) -> int:
        """How many of them share this machine."""
        ...

    def gather(self, content: bytes) -> list[bytes]:
        """What every process gave, in order of rank."""
        ...


@dataclass(frozen=True)
class Workers:
    """Who does the tasks: `threads` of this process (default: all cores), and those of a team."""

    threads: int | None = None
    team: Team | None = None

    def pool(self) -> ThreadPoolExecutor:
        cores = get_num_threads()
        if self.team:
            cores = max(1, cores // self.team.here)
        # Threads suffice: kernels release the GIL, and all read the same tables.
        return ThreadPoolExecutor(self.threads or cores)


ALL_CORES = Workers()


def run_rounds(
    found: Findings,
    tasks: Sequence[object],
    scan: Callable[..., Scan],
    offset: int,
    decode: Callable[[int], Configuration],
    workers: Workers,
    done: Callable[[int], None] | None = None,
) -> None:
    """Merge `scan(task, best=..., front=...)` of every task into `found`.

    `scan` releases the GIL and leaves `best` and `front`, which the tasks share, as they are.
    `done` hears the number of finished tasks.
    """
    team = workers.team
    with workers.pool() as pool:
        for start in range(0, len(tasks), ROUND):
            batch = tasks[start : start + ROUND]
            best, front = found.best_array(offset), found.front_arrays(offset)
            mine = batch[team.rank :: team.count] if team else batch
            results = list(pool.map(partial(scan, best=best, front=front), mine))
            scans = _of_all(results, team, len(batch)) if team else results
            found.merge(scans, offset, decode, count=done is not None)
            if done:
                done(start + len(batch))


def _of_all(scans: Sequence[Scan], team: Team, tasks: int) -> list[Scan]:
    """Every process's results, in the order of the tasks."""
    every = [_unpack(content) for content in team.gather(_pack(scans))]
    # The inverse of `batch[rank :: count]`.
    return [every[task % team.count][task // team.count] for task in range(tasks)]


def _pack(scans: Sequence[Scan]) -> bytes:
    parts = []
    for scan in scans:
        counts = [scan.evaluated, scan.pruned, scan.bounded, len(scan.cost)]
        parts += [np.array(counts), scan.best, scan.cost, scan.miou, scan.code]
    return b"".join(part.astype(np.int64).tobytes() for part in parts)


def _unpack(content: bytes) -> list[Scan]:
    values, scans = np.frombuffer(content, dtype=np.int64), []
    while len(values):
        evaluated, pruned, bounded, points = values[:4].tolist()
        cost, miou, code = values[7 : 7 + 3 * points].reshape(3, points)
        scans.append(Scan(values[4:7], evaluated, pruned, bounded, cost, miou, code))
        values = values[7 + 3 * points :]
    return scans
