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

SAFE = np.float32(1.001)
"""Covers what norms and their products lose to single precision; sums are in double."""


class Norms(NamedTuple):
    """All norms of the rows of an early exit and its signal, and what they are looked up by.

    fixed_4RL, most_fixed_4RN: as in `Rows`; free_24GE, most_free_24GN: of the bound, of this exit
        and signal.
    point_E, after_E: as in `Exits`; exit, first_last: as in `Deepest`; deeper: where L begins.
    """

    fixed_4RL: NDArray[np.float32]
    most_fixed_4RN: NDArray[np.float32]
    free_24GE: NDArray[np.float32]
    most_free_24GN: NDArray[np.float32]
    point_E: NDArray[np.int64]
    after_E: NDArray[np.int64]
    exit: int
    first_last: int
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
        exits.after_E,
        deepest.exit,
        deepest.first_last,
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
def fixed_norms(counts, bound, early, deeper):
    """Norms of the fixed part of every row, if each of the exits from `deeper` on answers the rest.

    Returns shape (4, R, L).
    """
    exits, _, classes = counts.hits_EIC.shape
    hits_RC, extra_RC = _row_counts(counts.hits_EIC, early), _row_counts(counts.extra_EIC, early)
    bins = (early.bin1_I, early.rows1, early.bin2_I, early.rows2)
    out_4RL = np.empty((4, len(hits_RC), exits - deeper), dtype=np.float32)
    for last in range(deeper, exits):
        last_hits_RC = passed_counts(counts.hits_EIC[last], *bins)
        last_extra_RC = passed_counts(counts.extra_EIC[last], *bins)
        for row in range(len(hits_RC)):
            z_below = y_above = z_above = y_below = 0.0
            for c in range(classes):
                extra = extra_RC[row, c] + last_extra_RC[row, c] - bound.extra0_C[c]
                hits = hits_RC[row, c] + last_hits_RC[row, c] - bound.hits0_C[c]
                # At the reference z is 0, and z is linear: it is what the changes from there make
                # of it.
                z = bound.gain_C[c] * hits - bound.loss_C[c] * extra
                z_below += min(z, 0.0) ** 2
                z_above += max(z, 0.0) ** 2
                y_above += (bound.above_C[c] * max(extra, 0.0)) ** 2
                y_below += (bound.below_C[c] * min(extra, 0.0)) ** 2
            out_4RL[0, row, last - deeper] = SAFE * np.sqrt(z_below)
            out_4RL[1, row, last - deeper] = SAFE * np.sqrt(y_above)
            out_4RL[2, row, last - deeper] = SAFE * np.sqrt(z_above)
            out_4RL[3, row, last - deeper] = SAFE * np.sqrt(y_below)
    return out_4RL


@njit(cache=True, nogil=True)
def _row_counts(counts_EIC, early):
    """Sums, shape (R, C), over what the early exits of each row answer."""
    rows1, rows2 = early.rows1, early.rows2
    # A plain 1 is a type of its own to numba: `passed_counts` would be compiled once more.
    nowhere_I, one = np.zeros_like(early.bin1_I), np.int64(1)
    out_RC = np.zeros((rows1 * rows2, counts_EIC.shape[2]))
    # Who leaves at the second exit: whoever passes the first, but not both.
    reach2_RC = passed_counts(counts_EIC[early.second], early.bin1_I, rows1, nowhere_I, one)
    pass2_RC = passed_counts(counts_EIC[early.second], early.bin1_I, rows1, early.bin2_I, rows2)
    for row in range(rows1 * rows2):
        out_RC[row] += reach2_RC[row // rows2] - pass2_RC[row]
    if early.first != NOBODY:
        pass1_RC = passed_counts(counts_EIC[early.first], early.bin1_I, rows1, nowhere_I, one)
        all1_C = passed_counts(counts_EIC[early.first], nowhere_I, one, nowhere_I, one)[0]
        for row in range(rows1 * rows2):
            out_RC[row] += all1_C - pass1_RC[row // rows2]
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
def fill_free_norms(counts, bound, exits, deepest):
    """Fill the bound's free norms of the exit `deepest` before every deeper last exit."""
    # In double precision: z is a difference, and may be far smaller than either side of it.
    sums_G4C = np.empty((GROUPS + 1, 4, counts.hits_EIC.shape[2]))
    for signal in range(exits.bins_EKI.shape[1]):
        columns = exits.number_EK[deepest, signal]
        if columns == 0:
            continue
        for last in range(exits.after_E[deepest], len(exits.point_E)):
            _sum_changes(
                counts, bound, exits.bins_EKI[deepest, signal], columns, deepest, last, sums_G4C
            )
            norms_24G = bound.free_EK24GE[deepest, signal, :, :, :, last]
            _norms(sums_G4C, bound.above_C, bound.below_C, norms_24G)
            most_24G = bound.most_free_EK24GN[deepest, signal, :, :, :, exits.point_E[last]]
            most_24G[:] = np.maximum(most_24G, norms_24G)


@njit(cache=True, nogil=True, fastmath=True)
def _sum_changes(counts, bound, bin_I, columns, deepest, last, sums_G4C):
    """Fill the changes of each sign if `deepest` answers instead of `last`, by piece of the images.

    Piece 0 leaves at no threshold, piece g + 1 at the first threshold of group g but not at that of
    the next group.
    """
    width = group_width(columns)
    sums_G4C[:] = 0
    for i in range(len(bin_I)):
        # At most `columns` thresholds are reached, which is GROUPS * width or less: no piece is
        # missing.
        piece_4C = sums_G4C[(bin_I[i] + width - 1) // width]
        early_hits_C, last_hits_C = counts.hits_EIC[deepest, i], counts.hits_EIC[last, i]
        early_extra_C, last_extra_C = counts.extra_EIC[deepest, i], counts.extra_EIC[last, i]
        for c in range(sums_G4C.shape[2]):
            y = early_extra_C[c] - last_extra_C[c]
            z = bound.gain_C[c] * (early_hits_C[c] - last_hits_C[c]) - bound.loss_C[c] * y
            piece_4C[0, c] -= min(z, 0.0)
            piece_4C[1, c] += max(y, np.float32(0))
            piece_4C[2, c] += max(z, 0.0)
            piece_4C[3, c] -= min(y, np.float32(0))
    for g in range(len(sums_G4C)):
        for c in range(sums_G4C.shape[2]):
            sums_G4C[g, 1, c] *= bound.above_C[c]
            sums_G4C[g, 3, c] *= bound.below_C[c]


@njit(cache=True, nogil=True, fastmath=True)
def _norms(sums_G4C, above_C, below_C, out_24G):
    """Norms of the sums over the pieces that may leave, and over those that may stay, by group."""
    classes = sums_G4C.shape[2]
    early_4C = np.zeros((4, classes))
    # Who leaves at the first threshold of a group leaves at those of earlier groups as well.
    for group in range(GROUPS - 1, -1, -1):
        early_4C += sums_G4C[group + 1]
        for k in range(4):
            out_24G[0, k, group] = SAFE * np.sqrt((early_4C[k] ** 2).sum())
    late_4C = sums_G4C[0].copy()
    for group in range(GROUPS):
        # Of this piece some leave at the last threshold after all: more to choose from is still a
        # bound.
        late_4C += sums_G4C[group + 1]
        for k in range(4):
            # Seen from the early exit, what one side gains the other loses.
            scale_C = np.ones(classes)
            if k == 1:
                scale_C = below_C / above_C
            elif k == 3:
                scale_C = above_C / below_C
            out_24G[1, (k + 2) % 4, group] = SAFE * np.sqrt(((late_4C[k] * scale_C) ** 2).sum())
