"""How long a search took, without the kernels it had to compile: those stay for the next one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba.core import event


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """A function that gives the seconds since, those of compiling left out."""
    start = time.time()
    with event.install_recorder("numba:compile") as recorder:
        yield lambda: max(0.0, time.time() - start - covered(recorder.buffer))


def covered(compiled: list[tuple[float, event.Event]]) -> float:
    """Seconds within any of the events; a kernel compiles those it calls, so they are nested."""
    total, depth, begun = 0.0, 0, 0.0
    for moment, told in compiled:
        if told.is_start:
            begun = moment if depth == 0 else begun
            depth += 1
        elif told.is_end:
            depth -= 1
            total += moment - begun if depth == 0 else 0.0
    return total
