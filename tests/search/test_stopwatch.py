"""The time of a search leaves out what its kernels take to compile."""

from __future__ import annotations

import time

from numba import njit

from mess.search.answers.stopwatch import stopwatch


def test_compiling_is_left_out_and_nothing_else() -> None:
    @njit
    def inner(x: float) -> float:
        return x * 2.0

    @njit
    def outer(x: float) -> float:
        return inner(x) + 1.0

    with stopwatch() as elapsed:
        begun = time.perf_counter()
        assert outer(2.0) == 5.0
        assert 0.0 < elapsed() < time.perf_counter() - begun
        time.sleep(0.05)
        assert elapsed() >= 0.05
