"""Classes, pixel counts and shares of one image, compiled: upsampling and counting in one pass.

What these compute is defined by torch: bilinear upsampling with align_corners=False, then argmax.
Logits are never held at full resolution. A *cell* is the rectangle of pixels that interpolate
between the same four native positions. Where one class leads at all four it leads everywhere
between, so the cell's counts are those of its labels, which `cell_counts` has summed up for all
exits of a resolution. Elsewhere only classes that can lead somewhere in the cell are interpolated.

A pixel whose two best classes are closer than rounding may move is *doubtful*: it is left out and
listed, for the caller to have it decided by torch itself.

Shapes: B images, C classes, H×W pixels of the input, h×w native positions, K signals, N kinds of
confidence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mess.common.metrics import VOID

_ROUNDING = np.float32(32 * 2.0**-24)
"""Of the difference of two interpolated logits, relative to the largest logit: twice what torch's
order of operations and ours can lose together, 8 roundings in each of the two logits."""

_ROUNDING_TORCH = 8 * 2.0**-24
"""Of an interpolated logit by torch, relative to the sum of its parts' sizes: 2 roundings of each
weight, 1 of each product and up to 3 of the sum."""

_TINY = np.float32(1e-36)
"""Smaller differences of logits may be lost however small the logits are."""

_MARGIN = 2
"""Of the smoothing window of edge enhancement at native resolution: 4·os + 1 = 5 with os = 1."""


class Axis(NamedTuple):
    """Bilinear interpolation along one axis.

    start: first pixel of every native position's cell, and the end of the last.
    weight: of the next position, by pixel; torch's own, to the last digit.
    """

    start: NDArray[np.int64]
    weight: NDArray[np.float32]


class Grid(NamedTuple):
    """From h×w native positions to H×W pixels."""

    rows: Axis
    columns: Axis


class Cells(NamedTuple):
    """Pixels of each cell by the class they have, and those that are not void."""

    classes_BhwC: NDArray[np.int32]
    valid_Bhw: NDArray[np.int32]


class Reference(NamedTuple):
    """Maps that predictions are counted against."""

    class_BHW: NDArray[np.uint8]
    cells: Cells


class Tally(NamedTuple):
    """What `count` fills in; all zero before.

    hits_BC, predicted_BC: correct and all pixels predicted as each class, void left out.
    agreement_B: pixels with the other exit's class, void or not.
    leader_Bhw: class at each native position.
    """

    hits_BC: NDArray[np.int32]
    predicted_BC: NDArray[np.int32]
    agreement_B: NDArray[np.int32]
    leader_Bhw: NDArray[np.uint8]


@njit(cache=True, nogil=True)
def cell_counts(grid, class_BHW, classes):
    """`Cells` of maps of classes, labels or predictions; 255 is void."""
    rows, columns = grid.rows.start, grid.columns.start
    shape = (len(class_BHW), len(rows) - 1, len(columns) - 1)
    classes_BhwC = np.zeros((*shape, classes), dtype=np.int32)
    valid_Bhw = np.zeros(shape, dtype=np.int32)
    for i in range(shape[0]):
        for r in range(shape[1]):
            for y in range(rows[r], rows[r + 1]):
                for c in range(shape[2]):
                    for x in range(columns[c], columns[c + 1]):
                        found = class_BHW[i, y, x]
                        if found != VOID:
                            classes_BhwC[i, r, c, found] += 1
                            valid_Bhw[i, r, c] += 1
    return Cells(classes_BhwC, valid_Bhw)


@njit(cache=True, nogil=True)
def count(logits_BhwC, grid, labels, others, out):
    """Fill in the tallies of a batch.

    `labels` and `others` are `Reference`s: what is true, and what another exit answers. Returns the
    doubtful pixels, (D, 3), image, row and column, which are in no tally.
    """
    classes = logits_BhwC.shape[3]
    rows, columns = grid.rows.start, grid.columns.start
    doubtful_D3 = np.empty((64, 3), dtype=np.int32)
    doubtful = 0
    block_HW, scratch = _scratch(grid, classes)
    for i in range(len(logits_BhwC)):
        hits_C, predicted_C, leader_hw = out.hits_BC[i], out.predicted_BC[i], out.leader_Bhw[i]
        label_HW, other_HW = labels.class_BHW[i], others.class_BHW[i]
        sure_hw = _leaders(logits_BhwC[i], leader_hw)
        agreement = 0
        for r in range(len(rows) - 1):
            for c in range(len(columns) - 1):
                if _uniform(leader_hw, sure_hw, r, c):
                    leader = leader_hw[r, c]
                    hits_C[leader] += labels.cells.classes_BhwC[i, r, c, leader]
                    predicted_C[leader] += labels.cells.valid_Bhw[i, r, c]
                    agreement += others.cells.classes_BhwC[i, r, c, leader]
                    continue
                _interpolate(logits_BhwC[i], r, c, grid, scratch, block_HW)
                for y in range(rows[r], rows[r + 1]):
                    for x in range(columns[c], columns[c + 1]):
                        found, label = block_HW[y - rows[r], x - columns[c]], label_HW[y, x]
                        if found == VOID:
                            if doubtful == len(doubtful_D3):
                                more_D3 = np.empty_like(doubtful_D3)
                                doubtful_D3 = np.concatenate((doubtful_D3, more_D3))
                            doubtful_D3[doubtful, 0] = i
                            doubtful_D3[doubtful, 1], doubtful_D3[doubtful, 2] = y, x
                            doubtful += 1
                            continue
                        agreement += found == other_HW[y, x]
                        if label != VOID:
                            predicted_C[found] += 1
                            hits_C[found] += found == label
        out.agreement_B[i] += agreement
    return doubtful_D3[:doubtful]


@njit(cache=True, nogil=True)
def upsample(start, stop, logits_BhwC, grid, out_BHW):
    """Fill in the class of every pixel of images `start` to `stop` - 1, 255 where doubtful."""
    rows, columns = grid.rows.start, grid.columns.start
    block_HW, scratch = _scratch(grid, logits_BhwC.shape[3])
    leader_hw = np.empty(logits_BhwC.shape[1:3], dtype=np.uint8)
    for i in range(start, stop):
        sure_hw = _leaders(logits_BhwC[i], leader_hw)
        for r in range(len(rows) - 1):
            for c in range(len(columns) - 1):
                uniform = _uniform(leader_hw, sure_hw, r, c)
                if not uniform:
                    _interpolate(logits_BhwC[i], r, c, grid, scratch, block_HW)
                for y in range(rows[r], rows[r + 1]):
                    for x in range(columns[c], columns[c + 1]):
                        inside = block_HW[y - rows[r], x - columns[c]]
                        out_BHW[i, y, x] = leader_hw[r, c] if uniform else inside


@njit(cache=True, nogil=True)
def shares(confidence_NBhw, leader_Bhw, kind_K, threshold_K, edges_K, out_BK):
    """Fill in the shares of confident positions (Eq. 7 of the MESS paper) of a batch.

    kind_K chooses the map of confidences, threshold_K what they have to reach. Where edges_K, a
    position at an edge of the leading classes counts if most of the 5×5 around it do (Eqs. 8-9),
    borders replicated; `mess.signals.registry` defines all of it.
    """
    height, width = leader_Bhw.shape[1:]
    edge_hw = np.empty((height, width), dtype=np.bool_)
    for i in range(len(leader_Bhw)):
        leader_hw = leader_Bhw[i]
        edge_hw[:] = False
        for r in range(height):
            for c in range(width):
                below, beside = min(r + 1, height - 1), min(c + 1, width - 1)
                if leader_hw[r, c] != leader_hw[below, c]:
                    edge_hw[r, c] = edge_hw[below, c] = True
                if leader_hw[r, c] != leader_hw[r, beside]:
                    edge_hw[r, c] = edge_hw[r, beside] = True
        for k in range(len(kind_K)):
            confidence_hw, threshold = confidence_NBhw[kind_K[k], i], threshold_K[k]
            confident = 0
            for r in range(height):
                for c in range(width):
                    if not (edges_K[k] and edge_hw[r, c]):
                        confident += confidence_hw[r, c] >= threshold
                        continue
                    around = 0
                    for y in range(r - _MARGIN, r + _MARGIN + 1):
                        y_in = min(max(y, 0), height - 1)
                        for x in range(c - _MARGIN, c + _MARGIN + 1):
                            x_in = min(max(x, 0), width - 1)
                            around += confidence_hw[y_in, x_in] >= threshold
                    confident += 2 * around > (2 * _MARGIN + 1) ** 2
            out_BK[i, k] = np.float32(confident / (height * width))


@njit(cache=True, nogil=True)
def _leaders(logits_hwC, leader_hw):
    """Fill in the leading class at each native position; returns whether it leads beyond doubt."""
    height, width, classes = logits_hwC.shape
    sure_hw = np.empty((height, width), dtype=np.bool_)
    for r in range(height):
        for c in range(width):
            best = second = np.float32(-np.inf)
            leader, size = 0, np.float32(0)
            for k in range(classes):
                value = logits_hwC[r, c, k]
                if value != value:
                    # torch takes what is not a number for the largest.
                    leader, size = k, np.float32(np.inf)
                    break
                size = max(size, abs(value))
                if value > best:
                    best, second, leader = value, best, k
                elif value > second:
                    second = value
            leader_hw[r, c] = leader
            # Nothing is sure where a logit is infinite.
            sure_hw[r, c] = best - second > _ROUNDING * size + _TINY
    return sure_hw


@njit(cache=True, nogil=True)
def _uniform(leader_hw, sure_hw, r, c):
    """Whether one class leads beyond doubt at all corners of a cell."""
    below, right = min(r + 1, leader_hw.shape[0] - 1), min(c + 1, leader_hw.shape[1] - 1)
    leader = leader_hw[r, c]
    return (
        leader == leader_hw[r, right]
        and leader == leader_hw[below, c]
        and leader == leader_hw[below, right]
        and sure_hw[r, c]
        and sure_hw[r, right]
        and sure_hw[below, c]
        and sure_hw[below, right]
    )


@njit(cache=True, nogil=True)
def _scratch(grid, classes):
    """Room for the classes of the largest cell, and for what `_interpolate` keeps by class."""
    rows, columns = grid.rows.start, grid.columns.start
    block_HW = np.empty((np.diff(rows).max(), np.diff(columns).max()), dtype=np.uint8)
    floats = np.empty((3, classes), dtype=np.float32)
    return block_HW, (np.empty(classes, dtype=np.uint8), floats[0], floats[1], floats[2])


@njit(cache=True, nogil=True)
def _interpolate(logits_hwC, r, c, grid, scratch, block_HW):
    """Fill in the class of every pixel of a cell, 255 where it is doubtful."""
    height, width, classes = logits_hwC.shape
    rows, columns = grid.rows, grid.columns
    below, beside = min(r + 1, height - 1), min(c + 1, width - 1)
    top_left_C, top_right_C = logits_hwC[r, c], logits_hwC[r, beside]
    low_left_C, low_right_C = logits_hwC[below, c], logits_hwC[below, beside]
    candidate_N, most_C, left_N, step_N = scratch
    # A class that stays below another's least logit leads nowhere in the cell.
    floor, size = np.float32(-np.inf), np.float32(0)
    for k in range(classes):
        least = min(min(top_left_C[k], top_right_C[k]), min(low_left_C[k], low_right_C[k]))
        most = max(max(top_left_C[k], top_right_C[k]), max(low_left_C[k], low_right_C[k]))
        most_C[k] = most
        floor = max(floor, least)
        total = abs(top_left_C[k]) + abs(top_right_C[k]) + abs(low_left_C[k]) + abs(low_right_C[k])
        # Without an end, and all pixels doubtful, where something is infinite or not a number.
        size = max(size, max(abs(least), abs(most))) if total < np.inf else np.float32(np.inf)
    slack = _ROUNDING * size + _TINY
    candidates = 0
    for k in range(classes):
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
            best = second = np.float32(-np.inf)
            leader = 0
            for n in range(candidates):
                value = left_N[n] + across * step_N[n]
                if value > best:
                    best, second, leader = value, best, n
                else:
                    second = max(second, value)
            sure = best - second > slack
            block_HW[y - rows.start[r], x - columns.start[c]] = (
                candidate_N[leader] if sure else VOID
            )


@njit(cache=True, nogil=True)
def _look_closer(
    top_left_C, top_right_C, low_left_C, low_right_C, candidate_N, down, across, up, back
):  # fmt: skip
    """Class of a pixel by weights `down`, `across` and theirs to 1; 255 where torch may round.

    In double precision all that is left in doubt is what torch itself loses in single precision.
    """
    best = second = -np.inf
    lost = 0.0
    leader = VOID
    for k in candidate_N:
        top = up * back * top_left_C[k], up * across * top_right_C[k]
        low = down * back * low_left_C[k], down * across * low_right_C[k]
        value = (top[0] + top[1]) + (low[0] + low[1])
        if not abs(value) < np.inf:
            return VOID
        lost = max(lost, abs(top[0]) + abs(top[1]) + abs(low[0]) + abs(low[1]))
        if value > best:
            best, second, leader = value, best, k
        else:
            second = max(second, value)
    return leader if best - second > 2 * _ROUNDING_TORCH * lost + _TINY else VOID
