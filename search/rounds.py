"""Running kernels on several cores with one result whatever their number.

Tasks run in rounds of fixed size. Every task of a round starts from what was known before the
round, and the findings are merged in the order of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from numba import get_num_threads

from mess.search.evaluate import Configuration
from mess.search.found import Found, Scan

Task = TypeVar("Task")

ROUND = 32
"""Tasks of a round: enough to keep cores busy, few enough for prunings to be shared soon."""


def run_rounds(
    found: Found,
    tasks: Sequence[Task],
    scan: Callable[..., Scan],
    offset: int,
    decode: Callable[[int], Configuration],
    threads: int | None = None,
    done: Callable[[int], None] | None = None,
) -> None:
    """Merge `scan(task, best=..., front=...)` of every task into `found`.

    `scan` releases the GIL and leaves `best` and `front`, which the tasks share, as they are.
    `done` hears the number of finished tasks.
    """
    with ThreadPoolExecutor(threads or get_num_threads()) as pool:
        for start in range(0, len(tasks), ROUND):
            batch = tasks[start : start + ROUND]
            best, front = found.best_array(offset), found.front_arrays(offset)
            for result in pool.map(partial(scan, best=best, front=front), batch):
                found.merge(result, offset, decode, count=done is not None)
            if done:
                done(start + len(batch))
