"""Rows: choices of the early exits but the deepest, with their thresholds.

What the exits of a row answer is fixed, and which images reach the deepest early exit. All rows of
a choice of exits and signals are taken together: row r1 * rows2 + r2 has threshold r1 of the first
and r2 of the second exit. Raising either threshold lets more images pass, so that the images of a
row are those of the rows before plus its own, and sums over them are prefix sums.

Suffixes of array names: those of `mess.search.kernels.arrays`; R rows, L the exits deeper than
those of the row, by rising point.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.kernels.arrays import NOBODY


class RowExits(NamedTuple):
    """The first early exit (or `NOBODY`) and the second, with their signals.

    bin1_I, bin2_I: number of thresholds an image reaches; rows1, rows2: how many there are.
    """

    first: int
    signal1: int
    bin1_I: NDArray[np.int32]
    rows1: int
    second: int
    signal2: int
    bin2_I: NDArray[np.int32]
    rows2: int


class Rows(NamedTuple):
    """All rows of a choice of early exits.

    deeper: the first exit behind those of the row, where L begins.
    order_I, start_R: the images that reach the deepest early exit on some row, by the first row on
        which they do, and where each row's begin.
    score_R: score of what the exits of the row answer; left_R2: how many images each answers.
    fixed_4RL: norms of the part of the second order that a row fixes, see
        `mess.search.kernels.second_order`; most_fixed_4RN: the largest over the exits of a point.
    """

    early: RowExits
    deeper: int
    order_I: NDArray[np.int64]
    start_R: NDArray[np.int64]
    score_R: NDArray[np.float64]
    left_R2: NDArray[np.int64]
    fixed_4RL: NDArray[np.float32]
    most_fixed_4RN: NDArray[np.float32]


class Deepest(NamedTuple):
    """The deepest early exit with its signal and number of thresholds, the columns.

    first_last: the first exit behind it, which may be the last one.
    """

    exit: int
    signal: int
    bin_I: NDArray[np.int32]
    columns: int
    first_last: int


@njit(cache=True, nogil=True)
def early_exits(exits, first, signal1, second, signal2):
    """The exits of rows; without a first one it lets all images pass, in a single row."""
    rows1 = exits.number_EK[first, signal1] if first != NOBODY else 1
    bin2_I = exits.bins_EKI[second, signal2]
    bin1_I = exits.bins_EKI[first, signal1] if first != NOBODY else np.zeros_like(bin2_I)
    rows2 = exits.number_EK[second, signal2]
    return RowExits(first, signal1, bin1_I, rows1, second, signal2, bin2_I, rows2)


@njit(cache=True, nogil=True)
def sort_by_row(early):
    """`order_I` and `start_R` of `Rows`."""
    # A counting sort: linear in the images, and what is new on a row lies together.
    start_R = np.zeros(early.rows1 * early.rows2 + 1, dtype=np.int64)
    for i in range(len(early.bin1_I)):
        if early.bin1_I[i] < early.rows1 and early.bin2_I[i] < early.rows2:
            start_R[early.bin1_I[i] * early.rows2 + early.bin2_I[i] + 1] += 1
    start_R = start_R.cumsum()
    free_R = start_R.copy()
    order_I = np.empty(start_R[-1], dtype=np.int64)
    for i in range(len(early.bin1_I)):
        if early.bin1_I[i] < early.rows1 and early.bin2_I[i] < early.rows2:
            row = early.bin1_I[i] * early.rows2 + early.bin2_I[i]
            order_I[free_R[row]] = i
            free_R[row] += 1
    return order_I, start_R


@njit(cache=True, nogil=True)
def early_scores(bound, early):
    """`score_R` and `left_R2` of `Rows`."""
    rows1, rows2, score_IE = early.rows1, early.rows2, bound.score_IE
    bin1_I, bin2_I = early.bin1_I, early.bin2_I
    score_R = np.zeros(rows1 * rows2)
    left_R2 = np.zeros((rows1 * rows2, 2), dtype=np.int64)
    for i in range(len(bin1_I)):
        bin1, bin2 = bin1_I[i], bin2_I[i]
        for r1 in range(min(bin1, rows1)):
            for row in range(r1 * rows2, (r1 + 1) * rows2):
                score_R[row] += score_IE[i, early.first]
                left_R2[row, 0] += 1
        for r1 in range(bin1, rows1):
            for row in range(r1 * rows2, r1 * rows2 + min(bin2, rows2)):
                score_R[row] += score_IE[i, early.second]
                left_R2[row, 1] += 1
    return score_R, left_R2


@njit(cache=True, nogil=True)
def rest_scores(bound, rows, exit_):
    """Score, shape (R,), of all images that reach `exit_` if it answered them."""
    rows2, score_IE, order_I, start_R = rows.early.rows2, bound.score_IE, rows.order_I, rows.start_R
    score_R = np.zeros(len(start_R) - 1)
    for row in range(len(score_R)):
        for q in range(start_R[row], start_R[row + 1]):
            score_R[row] += score_IE[order_I[q], exit_]
    for row in range(len(score_R)):
        if row % rows2:
            score_R[row] += score_R[row - 1]
    for row in range(rows2, len(score_R)):
        score_R[row] += score_R[row - rows2]
    return score_R


@njit(cache=True, nogil=True)
def passed_counts(slots, counts_SE, exits, bin1_I, rows1, bin2_I, rows2):
    """Sums over the images that neither of two exits answers on each row, of labelled classes.

    Returns shape (R, C, L), for the exits from the first of `exits` to before the second.
    """
    start, stop = exits
    start_I, class_S = slots.start_I, slots.class_S
    # Whole numbers in double precision: sums are exact in whatever order they are taken.
    out_RCL = np.zeros((rows1 * rows2, slots.labelled, stop - start))
    for i in range(len(bin1_I)):
        if bin1_I[i] >= rows1 or bin2_I[i] >= rows2:
            continue
        row = bin1_I[i] * rows2 + bin2_I[i]
        for s in range(start_I[i], start_I[i + 1]):
            c = class_S[s]
            # Classes without labels come last.
            if c >= slots.labelled:
                break
            # An array from its start: lanes behind an offset would be looked at one by one.
            count_L = counts_SE[s, start:stop]
            for lane in range(stop - start):
                out_RCL[row, c, lane] += count_L[lane]
    for row in range(rows1 * rows2):
        if row % rows2:
            _add_row(out_RCL, row, row - 1)
    for row in range(rows2, rows1 * rows2):
        _add_row(out_RCL, row, row - rows2)
    return out_RCL


@njit(cache=True, nogil=True)
def _add_row(out_RCL, row, other):
    for c in range(out_RCL.shape[1]):
        for lane in range(out_RCL.shape[2]):
            out_RCL[row, c, lane] += out_RCL[other, c, lane]
