"""Classes and pixel counts of a batch, compiled: upsampling and counting in one pass.

The class of a pixel is the lowest of those whose logit there is the largest, by the bilinear
upsampling of `mess.common.resizing`, to which these are equal. Logits are never held at full
resolution. A *cell* is the rectangle of pixels that interpolate between the same four native
positions. Where one class leads at all four it leads everywhere between, so the cell's counts are
those of its labels, which `cell_counts` has summed up for all exits of a resolution. Elsewhere only
classes that can lead somewhere in the cell are interpolated. What is not a number leads nowhere.

Shapes: B images, C classes, H×W pixels of the input, h×w native positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.common.metrics import VOID

# What may be left out, and why nothing changes by it. With u = 2^-24 and M the largest logit of an
# image by its size, a + weight · (b - a) is rounded three times: the difference and the product are
# off by 2 M u each, the sum by M u. The second interpolation carries the errors of the first on in
# the same shares as its values, and adds as many: an upsampled logit is within 10 M u of the exact
# one, which lies between the four corners. A class that is exactly more than 20 M u below another
# is therefore below it as computed. The rest of the 32 is for what computing the limits rounds.
_ROUNDING = np.float32(32 * 2.0**-24)
_TINY = np.float32(1e-36)
"""What is lost where numbers are too small for a float32 to be exact to 2^-24."""

_HUGE = np.float32(1e38)
"""From here on differences may be infinite, and nothing is left out."""


class Cells(NamedTuple):
    """Pixels of each cell by the class they have, and those that are not void."""

    classes_BhwC: NDArray[np.int32]
    valid_Bhw: NDArray[np.int32]


class Reference(NamedTuple):
    """Maps that predictions are counted against."""

    class_BHW: NDArray[np.uint8]
    cells: Cells


class Tally(NamedTuple):
    """What `count` fills in; counts are zero before.

    hits_BC, predicted_BC: correct and all pixels predicted as each class, void left out.
    agreement_B: pixels with the other exit's class, void or not.
    lost_B: labelled pixels that the other exit gets right and this one wrong.
    leader_Bhw: class at each native position.
    """

    hits_BC: NDArray[np.int32]
    predicted_BC: NDArray[np.int32]
    agreement_B: NDArray[np.int32]
    lost_B: NDArray[np.int32]
    leader_Bhw: NDArray[np.uint8]


@njit(cache=True, nogil=True)
def cell_counts(row_start, column_start, class_BHW, classes):
    """`Cells` of maps of classes, labels or predictions; 255 is void.

    `row_start` and `column_start` say where cells begin, as `Axis.start` does.
    """
    shape = (len(class_BHW), len(row_start) - 1, len(column_start) - 1)
    classes_BhwC = np.zeros((*shape, classes), dtype=np.int32)
    valid_Bhw = np.zeros(shape, dtype=np.int32)
    for i in range(shape[0]):
        for r in range(shape[1]):
            for y in range(row_start[r], row_start[r + 1]):
                for c in range(shape[2]):
                    for x in range(column_start[c], column_start[c + 1]):
                        found = class_BHW[i, y, x]
                        if found != VOID:
                            classes_BhwC[i, r, c, found] += 1
                            valid_Bhw[i, r, c] += 1
    return Cells(classes_BhwC, valid_Bhw)


@njit(cache=True, nogil=True)
def count(logits_BhwC, grid, labels, others, rights, out):
    """Fill in the tallies of a batch.

    `labels`, `others` and `rights` are `Reference`s: what is true, what another exit answers, and
    what it answers where that is true, void elsewhere.
    """
    rows, columns = grid.rows.start, grid.columns.start
    block_HW, scratch = _scratch(grid, logits_BhwC.shape[3])
    lead_hw = np.empty(logits_BhwC.shape[1:3], dtype=np.float32)
    for i in range(len(logits_BhwC)):
        hits_C, predicted_C, leader_hw = out.hits_BC[i], out.predicted_BC[i], out.leader_Bhw[i]
        label_HW, other_HW = labels.class_BHW[i], others.class_BHW[i]
        right_HW = rights.class_BHW[i]
        slack = _leaders(logits_BhwC[i], leader_hw, lead_hw)
        agreement = lost = 0
        for r in range(len(rows) - 1):
            for c in range(len(columns) - 1):
                if _uniform(leader_hw, lead_hw, r, c, slack):
                    leader = leader_hw[r, c]
                    hits_C[leader] += labels.cells.classes_BhwC[i, r, c, leader]
                    predicted_C[leader] += labels.cells.valid_Bhw[i, r, c]
                    agreement += others.cells.classes_BhwC[i, r, c, leader]
                    # Where the other exit is right with the same class this one is right, too.
                    lost += rights.cells.valid_Bhw[i, r, c]
                    lost -= rights.cells.classes_BhwC[i, r, c, leader]
                    continue
                _interpolate(logits_BhwC[i], r, c, grid, slack, scratch, block_HW)
                for y in range(rows[r], rows[r + 1]):
                    for x in range(columns[c], columns[c + 1]):
                        found, label = block_HW[y - rows[r], x - columns[c]], label_HW[y, x]
                        agreement += found == other_HW[y, x]
                        right = right_HW[y, x]
                        # Not `and`, whose branch nothing foretells.
                        lost += (right != VOID) & (right != found)
                        if label != VOID:
                            predicted_C[found] += 1
                            hits_C[found] += found == label
        out.agreement_B[i] += agreement
        out.lost_B[i] += lost


@njit(cache=True, nogil=True)
def classify(start, stop, logits_BhwC, grid, out_BHW):
    """Fill in the class of every pixel of images `start` to `stop` - 1."""
    rows, columns = grid.rows.start, grid.columns.start
    block_HW, scratch = _scratch(grid, logits_BhwC.shape[3])
    leader_hw = np.empty(logits_BhwC.shape[1:3], dtype=np.uint8)
    lead_hw = np.empty(logits_BhwC.shape[1:3], dtype=np.float32)
    for i in range(start, stop):
        slack = _leaders(logits_BhwC[i], leader_hw, lead_hw)
        for r in range(len(rows) - 1):
            for c in range(len(columns) - 1):
                uniform = _uniform(leader_hw, lead_hw, r, c, slack)
                if not uniform:
                    _interpolate(logits_BhwC[i], r, c, grid, slack, scratch, block_HW)
                for y in range(rows[r], rows[r + 1]):
                    for x in range(columns[c], columns[c + 1]):
                        inside = block_HW[y - rows[r], x - columns[c]]
                        out_BHW[i, y, x] = leader_hw[r, c] if uniform else inside


@njit(cache=True, nogil=True)
def _leaders(logits_hwC, leader_hw, lead_hw):
    """Fill in the leading class at each native position, and how far the next one is behind.

    Returns by how much a class must be behind not to lead after rounding.
    """
    height, width, classes = logits_hwC.shape
    size = np.float32(0)
    for r in range(height):
        for c in range(width):
            best = second = np.float32(-np.inf)
            leader = 0
            for k in range(classes):
                value = logits_hwC[r, c, k]
                if not abs(value) <= size:
                    # Neither infinity nor what is not a number is forgotten again.
                    size = abs(value) if abs(value) < _HUGE else np.float32(np.inf)
                # Not >=: of equal classes the lowest leads, as with argmax.
                if value > best:
                    best, second, leader = value, best, k
                elif value > second:
                    second = value
            leader_hw[r, c], lead_hw[r, c] = leader, best - second
    return _ROUNDING * size + _TINY


@njit(cache=True, nogil=True)
def _uniform(leader_hw, lead_hw, r, c, slack):
    """Whether one class leads by more than `slack` at all corners of a cell."""
    # The last cell has no further corner: its pixels lie beyond, and have the last logits.
    below, right = min(r + 1, leader_hw.shape[0] - 1), min(c + 1, leader_hw.shape[1] - 1)
    leader = leader_hw[r, c]
    # The lead over each class is bilinear in the cell, so nowhere less than at the worst corner.
    # A lead that is not a number, as of two infinities, is none.
    return (
        leader == leader_hw[r, right]
        and leader == leader_hw[below, c]
        and leader == leader_hw[below, right]
        and lead_hw[r, c] > slack
        and lead_hw[r, right] > slack
        and lead_hw[below, c] > slack
        and lead_hw[below, right] > slack
    )


@njit(cache=True, nogil=True)
def _scratch(grid, classes):
    """Room for the classes of the largest cell, and for what `_interpolate` keeps by class."""
    rows, columns = grid.rows.start, grid.columns.start
    block_HW = np.empty((np.diff(rows).max(), np.diff(columns).max()), dtype=np.uint8)
    floats = np.empty((3, classes), dtype=np.float32)
    return block_HW, (np.empty(classes, dtype=np.uint8), floats[0], floats[1], floats[2])


@njit(cache=True, nogil=True)
def _interpolate(logits_hwC, r, c, grid, slack, scratch, block_HW):
    """Fill in the class of every pixel of a cell."""
    height, width, classes = logits_hwC.shape
    rows, columns = grid.rows, grid.columns
    below, beside = min(r + 1, height - 1), min(c + 1, width - 1)
    top_left_C, top_right_C = logits_hwC[r, c], logits_hwC[r, beside]
    low_left_C, low_right_C = logits_hwC[below, c], logits_hwC[below, beside]
    candidate_N, most_C, left_N, step_N = scratch
    # A class that stays below another's least logit leads nowhere in the cell.
    floor = np.float32(-np.inf)
    for k in range(classes):
        least = min(min(top_left_C[k], top_right_C[k]), min(low_left_C[k], low_right_C[k]))
        most = max(max(top_left_C[k], top_right_C[k]), max(low_left_C[k], low_right_C[k]))
        most_C[k] = most
        floor = max(floor, least)
    candidates = 0
    for k in range(classes):
        # Not >=: where the limit is not a number every class stays. Candidates keep the order of
        # classes, so of equals the lowest is still the first.
        if not most_C[k] < floor - slack:
            candidate_N[candidates] = k
            candidates += 1
    for y in range(rows.start[r], rows.start[r + 1]):
        down = rows.weight[y]
        for n in range(candidates):
            k = candidate_N[n]
            left_N[n] = top_left_C[k] + down * (low_left_C[k] - top_left_C[k])
            right = top_right_C[k] + down * (low_right_C[k] - top_right_C[k])
            step_N[n] = right - left_N[n]
        for x in range(columns.start[c], columns.start[c + 1]):
            across = columns.weight[x]
            best = np.float32(-np.inf)
            leader = 0
            for n in range(candidates):
                value = left_N[n] + across * step_N[n]
                if value > best:
                    best, leader = value, n
            block_HW[y - rows.start[r], x - columns.start[c]] = candidate_N[leader]
