"""One threshold for all early exits, as the 2025 paper sets it.

All exits have the thresholds of a signal in common here, so equal indices are equal values, and the
configurations that share one are some of those where every exit has a threshold of its own. The
kernels search that larger space: what its bound rules out is ruled out here too, and of the rows it
leaves those are evaluated that lie on the diagonal. So what counts as ruled out by the bound is
what remains of the smaller space.
"""

from __future__ import annotations

from mess.search.kernels.arrays import NOBODY
from mess.search.problem.findings import Arrays


def with_one_threshold(rows: Arrays, *, same_signal: bool) -> Arrays:
    """Of the rows of `rows_that_matter` those with a threshold that all early exits share.

    `same_signal`: they share the signal, too. Otherwise the signal tells which exit is before.
    """
    several = rows[:, 0] != NOBODY
    # A row stands for a range of columns, from 8 to before 9: the shared index must be in it.
    kept = (rows[:, 8] <= rows[:, 5]) & (rows[:, 5] < rows[:, 9])
    kept &= ~several | (rows[:, 2] == rows[:, 5])
    if same_signal:
        kept &= (rows[:, 4] == rows[:, 7]) & (~several | (rows[:, 1] == rows[:, 4]))
    shared = rows[kept]
    shared[:, 8], shared[:, 9] = shared[:, 5], shared[:, 5] + 1
    return shared


def one_threshold_space(
    first: int,
    signal: int,
    seconds: Arrays,
    number_EK: Arrays,
    after_E: Arrays,
    *,
    same_signal: bool,
) -> int:
    """Configurations with these early exits whose threshold is shared."""
    exits = len(after_E)
    lanes_E = exits - after_E
    signals = range(number_EK.shape[1]) if first == NOBODY else [signal]
    total = 0
    for second in seconds.tolist():
        number_TK = number_EK[after_E[second] :]
        lanes_T = lanes_E[after_E[second] :]
        for k in signals:
            early_T = number_TK[:, k] > 0 if same_signal else number_TK.any(axis=1)
            total += int(number_EK[second, k]) * int(lanes_T[early_T].sum())
    return total
