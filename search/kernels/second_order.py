"""How far the second order of the bound can reach: norms over the classes."""

from __future__ import annotations

import numpy as np
from numba import njit

from mess.search.kernels.arrays import GROUPS, NOBODY, SAFE


@njit(cache=True, nogil=True)
def group_width(columns):
    """Thresholds of a group: at least four, as each group is looked at by itself."""
    return max(4, (columns + GROUPS - 1) // GROUPS)


@njit(cache=True, nogil=True, fastmath=True)
def row_spreads(counts, window, first, second, deeper, bin1_I, rows1, bin2_I, rows2):
    """Norms of the part that a row fixes, if each of the `deeper` exits answered all the rest.

    Returns shape (4, R, L), in the order of axis 3 of `Window.spread_EK24GE`.
    """
    exits, images, classes = counts.hits_EIC.shape
    hits_RC = np.zeros((rows1 * rows2, classes))
    extra_RC = np.zeros((rows1 * rows2, classes))
    nowhere_I = np.zeros(images, dtype=np.int32)
    for fixed_RC, counts_EIC in ((hits_RC, counts.hits_EIC), (extra_RC, counts.extra_EIC)):
        reach2_RC = _corner(counts_EIC[second], bin1_I, rows1, nowhere_I, 1)
        pass2_RC = _corner(counts_EIC[second], bin1_I, rows1, bin2_I, rows2)
        for row in range(rows1 * rows2):
            fixed_RC[row] += reach2_RC[row // rows2] - pass2_RC[row]
        if first != NOBODY:
            pass1_RC = _corner(counts_EIC[first], bin1_I, rows1, nowhere_I, 1)
            all1_C = _corner(counts_EIC[first], nowhere_I, 1, nowhere_I, 1)[0]
            for row in range(rows1 * rows2):
                fixed_RC[row] += all1_C - pass1_RC[row // rows2]
    out_4RL = np.empty((4, rows1 * rows2, exits - deeper), dtype=np.float32)
    for last in range(deeper, exits):
        last_hits_RC = _corner(counts.hits_EIC[last], bin1_I, rows1, bin2_I, rows2)
        last_extra_RC = _corner(counts.extra_EIC[last], bin1_I, rows1, bin2_I, rows2)
        for row in range(rows1 * rows2):
            z_below = y_above = z_above = y_below = 0.0
            for c in range(classes):
                extra = extra_RC[row, c] + last_extra_RC[row, c] - window.extra0_C[c]
                hits = hits_RC[row, c] + last_hits_RC[row, c] - window.hits0_C[c]
                z = window.gain_C[c] * hits - window.loss_C[c] * extra
                z_below += min(z, 0.0) ** 2
                z_above += max(z, 0.0) ** 2
                y_above += (window.above_C[c] * max(extra, 0.0)) ** 2
                y_below += (window.below_C[c] * min(extra, 0.0)) ** 2
            out_4RL[0, row, last - deeper] = SAFE * np.sqrt(z_below)
            out_4RL[1, row, last - deeper] = SAFE * np.sqrt(y_above)
            out_4RL[2, row, last - deeper] = SAFE * np.sqrt(z_above)
            out_4RL[3, row, last - deeper] = SAFE * np.sqrt(y_below)
    return out_4RL


@njit(cache=True, nogil=True)
def _corner(counts_IC, bin1_I, rows1, bin2_I, rows2):
    """Sums, shape (R, C), over the images that neither of two exits answers on each row."""
    classes = counts_IC.shape[1]
    out_RC = np.zeros((rows1 * rows2, classes))
    for i in range(len(bin1_I)):
        if bin1_I[i] < rows1 and bin2_I[i] < rows2:
            row = bin1_I[i] * rows2 + bin2_I[i]
            for c in range(classes):
                out_RC[row, c] += counts_IC[i, c]
    for row in range(rows1 * rows2):
        if row % rows2:
            for c in range(classes):
                out_RC[row, c] += out_RC[row - 1, c]
    for row in range(rows2, rows1 * rows2):
        for c in range(classes):
            out_RC[row, c] += out_RC[row - rows2, c]
    return out_RC


@njit(cache=True, nogil=True)
def largest_by_point(spread_4RL, point_L, points):
    """The largest norms over the exits of each point, shape (4, R, N)."""
    most_4RN = np.zeros((4, spread_4RL.shape[1], points), dtype=np.float32)
    for k in range(4):
        for row in range(spread_4RL.shape[1]):
            for lane, point in enumerate(point_L):
                most_4RN[k, row, point] = max(most_4RN[k, row, point], spread_4RL[k, row, lane])
    return most_4RN


@njit(cache=True, nogil=True)
def second_order(spread_4RL, row, at_third, fixed_4RX, x, free_EK24GY, third, s3, group, y):
    """The second order by Cauchy-Schwarz, from whichever side bounds it better."""
    early = late = np.float32(0)
    for k in range(0, 4, 2):
        early += (fixed_4RX[k, row, x] + free_EK24GY[third, s3, 0, k, group, y]) * (
            fixed_4RX[k + 1, row, x] + free_EK24GY[third, s3, 0, k + 1, group, y]
        )
        late += (spread_4RL[k, row, at_third] + free_EK24GY[third, s3, 1, k, group, y]) * (
            spread_4RL[k + 1, row, at_third] + free_EK24GY[third, s3, 1, k + 1, group, y]
        )
    return min(early, late)


@njit(cache=True, nogil=True, fastmath=True)
def spreads(
    counts, gain_C, loss_C, above_C, below_C, bins_EKI, number_EK, point_E, first_last, third, out,
    most,
):  # fmt: skip
    """Fill a window's spreads, and the `most` of them, of `third` before every deeper last exit."""
    exits, images, classes = counts.hits_EIC.shape
    sums_G4C = np.empty((GROUPS + 1, 4, classes), dtype=np.float32)
    for signal in range(bins_EKI.shape[1]):
        columns = number_EK[third, signal]
        if columns == 0:
            continue
        width = group_width(columns)
        for last in range(first_last, exits):
            # Piece g: who leaves at the first threshold of group g but not of the next.
            sums_G4C[:] = 0
            for i in range(images):
                piece_4C = sums_G4C[(bins_EKI[third, signal, i] + width - 1) // width]
                third_hits_C, last_hits_C = counts.hits_EIC[third, i], counts.hits_EIC[last, i]
                third_extra_C, last_extra_C = counts.extra_EIC[third, i], counts.extra_EIC[last, i]
                for c in range(classes):
                    y = third_extra_C[c] - last_extra_C[c]
                    z = gain_C[c] * (third_hits_C[c] - last_hits_C[c]) - loss_C[c] * y
                    piece_4C[0, c] -= min(z, np.float32(0))
                    piece_4C[1, c] += max(y, np.float32(0))
                    piece_4C[2, c] += max(z, np.float32(0))
                    piece_4C[3, c] -= min(y, np.float32(0))
            for g in range(GROUPS + 1):
                for c in range(classes):
                    sums_G4C[g, 1, c] *= above_C[c]
                    sums_G4C[g, 3, c] *= below_C[c]
            norms_24G = out[third, signal, :, :, :, last]
            _norms(sums_G4C, above_C, below_C, norms_24G)
            most_24G = most[third, signal, :, :, :, point_E[last]]
            most_24G[:] = np.maximum(most_24G, norms_24G)


@njit(cache=True, nogil=True, fastmath=True)
def _norms(sums_G4C, above_C, below_C, out_24G):
    """Norms of the sums over the pieces that may leave, and over those that may stay, by group."""
    classes = sums_G4C.shape[2]
    early_4C = np.zeros((4, classes), dtype=np.float32)
    for group in range(GROUPS - 1, -1, -1):
        early_4C += sums_G4C[group + 1]
        for k in range(4):
            out_24G[0, k, group] = SAFE * np.sqrt((early_4C[k] ** 2).sum())
    late_4C = sums_G4C[0].copy()
    for group in range(GROUPS):
        late_4C += sums_G4C[group + 1]
        for k in range(4):
            # Seen from the early exit, what one side gains the other loses.
            scale_C = np.ones(classes, dtype=np.float32)
            if k == 1:
                scale_C = below_C / above_C
            elif k == 3:
                scale_C = above_C / below_C
            out_24G[1, (k + 2) % 4, group] = SAFE * np.sqrt(((late_4C[k] * scale_C) ** 2).sum())
