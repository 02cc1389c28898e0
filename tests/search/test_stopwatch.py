"""The time of a search leaves out what its kernels take to compile."""

from __future__ import annotations

import time

from numba import njit
from numba.core.event import Event, EventStatus

from mess.search.stopwatch import covered, stopwatch


def test_nested_and_separate_events_are_counted_once() -> None:
    start, end = (Event("numba:compile", status) for status in (EventStatus.START, EventStatus.END))
    events = [(1.0, start), (2.0, start), (3.0, end), (5.0, end), (7.0, start)]
    assert covered(events) == 4.0
    assert covered([*events, (7.5, end)]) == 4.5
    assert covered([]) == 0.0


def test_a_kernel_that_is_compiled_meanwhile_is_left_out() -> None:
    @njit
    def inner(x: float) -> float:
        return x * 2.0

    @njit
    def outer(x: float) -> float:
        return inner(x) + 1.0

    begun = time.time()
    with stopwatch() as elapsed:
        assert outer(2.0) == 5.0
        wall = time.time() - begun
        assert elapsed() < wall
        time.sleep(0.05)
        assert elapsed() >= 0.05
