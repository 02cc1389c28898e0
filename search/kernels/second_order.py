"""The second order of the bound: how much mIoU the product of two changes can add.

With z and y of a class as in `mess.search.kernels.bound`, -z * y / (union * union0) adds mIoU only
where z and y have opposite signs. Where the union grew, union >= union0; where it shrank, union is
at least what it is in any configuration. So with "below" and "above" for the parts of either sign

    -z * y / (union * union0) <= (z below / union0) * (y above / union0)
                               + (z above / union0) * (y below / least union),

and by Cauchy-Schwarz the sum over the classes is at most

    |z below| * |y above| + |z above| * |y below|

in the norms of vectors over the classes, weighted like that.

z and y are sums over the images, so they are the sum of a fixed part, which is what a row makes of
them if the last exit answers all the rest, and of a free part: the changes of the images that the
deepest early exit answers instead. The part of one sign of a sum is at most the sum of the parts
of that sign, so every norm is at most that of the fixed part plus that of the free part, and in the
free part all changes of one sign may be added up, as if the exit could choose its images class by
class. That overrates it, less if fewer images can be chosen: in a group of thresholds only those
can that leave at its first threshold. Or the deepest early exit answers all the rest in the fixed
part, and the free part are the images that stay at the group's last threshold. Both bounds hold,
hence the smaller one does. Free parts do not depend on the row (any image of the split may be
chosen, whether it gets there or not), so they are computed once.

Norms come in fours: z below, y above, z above, y below.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.search.kernels.arrays import NOBODY
from mess.search.kernels.rows import passed_counts

GROUPS = 8
"""Most groups of the deepest early exit's thresholds; the second order is bounded in each."""

LANES, FREE_LANES = 32, 8
"""Last exits that are looked at together, for fixed and for free parts.

What is summed for them stays near the processor: of free parts, summed by group as well, four times
as many took twice as long.
"""

SAFE = np.float32(1.001)
"""Covers what norms and their products lose to single precision; sums are in double."""


class Norms(NamedTuple):
    """All norms of the rows of an early exit and its signal, and what they are looked up by.

    fixed_4RL, most_fixed_4RN: as in `Rows`; free_24GE, most_free_24GN: of the bound, of this exit
        and signal.
    point_E: as in `Exits`; exit: as in `Deepest`; deeper: where L begins.
    """

    fixed_4RL: NDArray[np.float32]
    most_fixed_4RN: NDArray[np.float32]
    free_24GE: NDArray[np.float32]
    most_free_24GN: NDArray[np.float32]
    point_E: NDArray[np.int64]
    exit: int
    deeper: int


@njit(cache=True, nogil=True)
def norms_of(bound, exits, rows, deepest):
    """`Norms` of the rows with this deepest early exit."""
    return Norms(
        rows.fixed_4RL,
        rows.most_fixed_4RN,
        bound.free_EK24GE[deepest.exit, deepest.signal],
        bound.most_free_EK24GN[deepest.exit, deepest.signal],
        exits.point_E,
        deepest.exit,
        rows.deeper,
    )


@njit(cache=True, nogil=True)
def group_width(columns):
    """Thresholds of a group: at least four, as each group is looked at by itself."""
    return max(4, (columns + GROUPS - 1) // GROUPS)


@njit(cache=True, nogil=True)
def second_order(at_deepest_4, at_last_4, free_24):
    """The bound, of fixed parts if the deepest early or the last exit answers all the rest.

    `free_24` are the free parts of a group: what the deepest early exit changes if the last one
    answered all, and the other way round. All are tuples of numbers.
    """
    early = late = np.float32(0)
    # Norms 0 and 1 are of opposite signs, and so are 2 and 3: only such products add mIoU.
    for k in range(0, 4, 2):
        early += (at_last_4[k] + free_24[0][k]) * (at_last_4[k + 1] + free_24[0][k + 1])
        late += (at_deepest_4[k] + free_24[1][k]) * (at_deepest_4[k + 1] + free_24[1][k + 1])
    return min(early, late)


@njit(cache=True, nogil=True)
def fixed_part(norms_4RX, row, x):
    """The fixed norms of a row with an exit or point `x`."""
    return norms_4RX[0, row, x], norms_4RX[1, row, x], norms_4RX[2, row, x], norms_4RX[3, row, x]


@njit(cache=True, nogil=True)
def free_parts(norms_24GX, group, x):
    """The free norms of a group before an exit or point `x`, seen from either side."""
    early_4 = (
        norms_24GX[0, 0, group, x],
        norms_24GX[0, 1, group, x],
        norms_24GX[0, 2, group, x],
        norms_24GX[0, 3, group, x],
    )
    late_4 = (
        norms_24GX[1, 0, group, x],
        norms_24GX[1, 1, group, x],
        norms_24GX[1, 2, group, x],
        norms_24GX[1, 3, group, x],
    )
    return early_4, late_4


# `fastmath` is safe: labelled classes have unions above 0, so nothing here is infinite or NaN.
@njit(cache=True, nogil=True, fastmath=True)
def fixed_norms(slots, bound, early, deeper):
    """Norms of the fixed part of every row, if each of the exits from `deeper` on answers the rest.

    Returns shape (4, R, L).
    """
    exits, classes = slots.hits_SE.shape[1], slots.labelled
    hits_RC = _row_counts(slots, slots.hits_SE, early)
    extra_RC = _row_counts(slots, slots.extra_SE, early)
    rows = len(hits_RC)
    out_4RL = np.empty((4, rows, exits - deeper), dtype=np.float32)
    for start in range(deeper, exits, LANES):
        lasts = (start, min(start + LANES, exits))
        bins = (early.bin1_I, early.rows1, early.bin2_I, early.rows2)
        last_hits_RCL = passed_counts(slots, slots.hits_SE, lasts, *bins)
        last_extra_RCL = passed_counts(slots, slots.extra_SE, lasts, *bins)
        lanes = lasts[1] - start
        square_4L = np.empty((4, lanes))
        for row in range(rows):
            square_4L[:] = 0
            for c in range(classes):
                hits = hits_RC[row, c] - bound.hits0_C[c]
                extra = extra_RC[row, c] - bound.extra0_C[c]
                gain, loss, above, below = _weights(bound, c)
                for lane in range(lanes):
                    y = extra + last_extra_RCL[row, c, lane]
                    # At the reference z is 0, and z is linear: it is what the changes from there
                    # make of it.
                    z = gain * (hits + last_hits_RCL[row, c, lane]) - loss * y
                    square_4L[0, lane] += min(z, 0.0) ** 2
                    square_4L[1, lane] += (above * max(y, 0.0)) ** 2
                    square_4L[2, lane] += max(z, 0.0) ** 2
                    square_4L[3, lane] += (below * min(y, 0.0)) ** 2
            for k in range(4):
                for lane in range(lanes):
                    norm = SAFE * np.sqrt(square_4L[k, lane])
                    out_4RL[k, row, start - deeper + lane] = norm
    return out_4RL


@njit(cache=True, nogil=True)
def _weights(bound, c):
    return bound.gain_C[c], bound.loss_C[c], bound.above_C[c], bound.below_C[c]


@njit(cache=True, nogil=True)
def _row_counts(slots, counts_SE, early):
    """Sums, shape (R, C), over what the early exits of each row answer."""
    rows1, rows2 = early.rows1, early.rows2
    bin1_I, bin2_I = early.bin1_I, early.bin2_I
    # A plain 1 is a type of its own to numba: `passed_counts` would be compiled once more.
    nowhere_I, one = np.zeros_like(bin1_I), np.int64(1)
    out_RC = np.zeros((rows1 * rows2, slots.labelled))
    # Who leaves at the second exit: whoever passes the first, but not both.
    at2 = (early.second, early.second + 1)
    reach2_RC1 = passed_counts(slots, counts_SE, at2, bin1_I, rows1, nowhere_I, one)
    pass2_RC1 = passed_counts(slots, counts_SE, at2, bin1_I, rows1, bin2_I, rows2)
    for row in range(rows1 * rows2):
        out_RC[row] += reach2_RC1[row // rows2, :, 0] - pass2_RC1[row, :, 0]
    if early.first != NOBODY:
        at1 = (early.first, early.first + 1)
        pass1_RC1 = passed_counts(slots, counts_SE, at1, bin1_I, rows1, nowhere_I, one)
        all1_1C1 = passed_counts(slots, counts_SE, at1, nowhere_I, one, nowhere_I, one)
        for row in range(rows1 * rows2):
            out_RC[row] += all1_1C1[0, :, 0] - pass1_RC1[row // rows2, :, 0]
    return out_RC


@njit(cache=True, nogil=True)
def largest_by_point(norms_4RL, point_L, points):
    """The largest norms over the exits of each point, shape (4, R, N)."""
    most_4RN = np.zeros((4, norms_4RL.shape[1], points), dtype=np.float32)
    for k in range(4):
        for row in range(norms_4RL.shape[1]):
            for lane, point in enumerate(point_L):
                most_4RN[k, row, point] = max(most_4RN[k, row, point], norms_4RL[k, row, lane])
    return most_4RN


@njit(cache=True, nogil=True)
def fill_free_norms(slots, bound, exits, deepest):
    """Fill the bound's free norms of the exit `deepest` before every deeper last exit."""
    first, exit_count = exits.after_E[deepest], len(exits.point_E)
    for signal in range(exits.bins_EKI.shape[1]):
        columns = exits.number_EK[deepest, signal]
        if columns == 0:
            continue
        free_24GE = bound.free_EK24GE[deepest, signal]
        for start in range(first, exit_count, FREE_LANES):
            lasts = (start, min(start + FREE_LANES, exit_count))
            bin_I = exits.bins_EKI[deepest, signal]
            sums_G4CL = _sum_changes(slots, bound, bin_I, columns, deepest, lasts)
            _norms(sums_G4CL, bound.above_C, bound.below_C, lasts, free_24GE)
        most_24GN = bound.most_free_EK24GN[deepest, signal]
        for last in range(first, exit_count):
            most_24G = most_24GN[:, :, :, exits.point_E[last]]
            most_24G[:] = np.maximum(most_24G, free_24GE[:, :, :, last])


@njit(cache=True, nogil=True, fastmath=True)
def _sum_changes(slots, bound, bin_I, columns, deepest, lasts):
    """The changes of each sign if `deepest` answers instead of a last exit, by piece of the images.

    Piece 0 leaves at no threshold, piece g + 1 at the first threshold of group g but not at that of
    the next group.
    """
    width, (start, stop) = group_width(columns), lasts
    hits_SE, extra_SE, class_S, start_I = (
        slots.hits_SE,
        slots.extra_SE,
        slots.class_S,
        slots.start_I,
    )
    # In double precision: z is a difference, and may be far smaller than either side of it.
    sums_G4CL = np.zeros((GROUPS + 1, 4, slots.labelled, stop - start))
    for i in range(len(bin_I)):
        # At most `columns` thresholds are reached, which is GROUPS * width or less: no piece is
        # missing.
        piece = (bin_I[i] + width - 1) // width
        for s in range(start_I[i], start_I[i + 1]):
            c = class_S[s]
            # Classes without labels come last.
            if c >= slots.labelled:
                break
            gain, loss, above, below = _weights(bound, c)
            early_hits, early_extra = hits_SE[s, deepest], extra_SE[s, deepest]
            # Arrays from their starts: lanes behind an offset would be looked at one by one.
            hits_L, extra_L = hits_SE[s, start:stop], extra_SE[s, start:stop]
            for lane in range(stop - start):
                y = np.float64(early_extra - extra_L[lane])
                z = gain * (early_hits - hits_L[lane]) - loss * y
                sums_G4CL[piece, 0, c, lane] -= min(z, 0.0)
                sums_G4CL[piece, 1, c, lane] += above * max(y, 0.0)
                sums_G4CL[piece, 2, c, lane] += max(z, 0.0)
                sums_G4CL[piece, 3, c, lane] -= below * min(y, 0.0)
    return sums_G4CL


@njit(cache=True, nogil=True, fastmath=True)
def _norms(sums_G4CL, above_C, below_C, lasts, out_24GE):
    """Norms of the sums over the pieces that may leave, and over those that may stay, by group."""
    _, _, classes, lanes = sums_G4CL.shape
    one_C = np.ones(classes)
    early_4CL = np.zeros((4, classes, lanes))
    # Who leaves at the first threshold of a group leaves at those of earlier groups as well.
    for group in range(GROUPS - 1, -1, -1):
        early_4CL += sums_G4CL[group + 1]
        for k in range(4):
            _norm(early_4CL[k], one_C, lasts, out_24GE[0, k, group])
    late_4CL = sums_G4CL[0].copy()
    # Seen from the early exit, what one side gains the other loses.
    scales = (one_C, below_C / above_C, one_C, above_C / below_C)
    for group in range(GROUPS):
        # Of this piece some leave at the last threshold after all: more to choose from is still a
        # bound.
        late_4CL += sums_G4CL[group + 1]
        for k in range(4):
            _norm(late_4CL[k], scales[k], lasts, out_24GE[1, (k + 2) % 4, group])


@njit(cache=True, nogil=True, fastmath=True)
def _norm(sum_CL, scale_C, lasts, out_E):
    square_L = np.zeros(sum_CL.shape[1])
    for c in range(len(sum_CL)):
        for lane in range(len(square_L)):
            square_L[lane] += (sum_CL[c, lane] * scale_C[c]) ** 2
    for lane in range(len(square_L)):
        out_E[lasts[0] + lane] = SAFE * np.sqrt(square_L[lane])
