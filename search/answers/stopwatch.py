"""How long a search took, without the kernels it had to compile: those stay for the next one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba.core import event


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """A function that gives the seconds since, those of compiling left out."""
    start = time.perf_counter()
    with event.install_listener("numba:compile", event.TimingListener()) as compiling:
        yield lambda: time.perf_counter() - start - (compiling.duration if compiling.done else 0.0)
