"""Variation of information between label maps, in bits, compiled (2025 paper, §III-IV). No torch.

VI(a, b) = H(a|b) + H(b|a) = 1/n Σ n_ij (log2 n_i + log2 n_j - 2 log2 n_ij), summed over the cells
of the joint histogram of n pixels that are not empty. A term is 0 where a class of one map is a
class of the other, and greater elsewhere: equal maps give 0.0, and nothing less is ever given.

Maps of unequal size are both brought to the larger height and the larger width by nearest
neighbour.

Shapes: M maps of the same size, n pixels each, P pairs, I images, h×w native positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, njit
from numpy.typing import NDArray

from mess.common.resizing import nearest_positions

VARIATION = "vi"
"""Name of the signal -VI."""

_VALUES = 256
"""That a pixel can have."""


class _Described(NamedTuple):
    """What pairs of maps have in common, found out once a map.

    kind_Mn: the classes of the pixels, numbered as they occur.
    end_Mn: where each run of pixels of one class ends.
    log2_MK: log2 of the pixels of each kind.
    kinds_M, runs_M: how many there are.
    """

    kind_Mn: NDArray[np.uint8]
    end_Mn: NDArray[np.int32]
    log2_MK: NDArray[np.float64]
    kinds_M: NDArray[np.int64]
    runs_M: NDArray[np.int64]


class _Group(NamedTuple):
    """Pairs that are compared at one size."""

    size: tuple[int, int]
    maps: NDArray[np.intp]
    """Positions of the maps among all."""
    pair_P2: NDArray[np.intp]
    """Positions among `maps`."""
    place_P: NDArray[np.intp]
    """Positions of the pairs among all."""


def variation(previous_hw: NDArray[np.uint8], label_hw: NDArray[np.uint8], classes: int) -> float:
    """VI of two label maps with `classes` classes, in bits: 0 where they say the same.

    Raises ValueError for a map that has other classes.
    """
    maps = [_checked(some_hw[np.newaxis], classes) for some_hw in (previous_hw, label_hw)]
    return float(_image(maps, _groups(maps, np.array([[0, 1]])), 0)[0])


def variations(
    maps: Sequence[NDArray[np.uint8]],
    pair_P2: NDArray[np.intp],
    classes: int,
    threads: int | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Minus VI of pairs of maps, (P,), image by image; larger means that less has changed.

    `maps` holds the label maps of each exit, (I, h, w), `pair_P2` the positions of two in it.
    `threads` (default: numba's) divide the images. Raises ValueError for a map with other classes.
    """
    checked = [_checked(some_Ihw, classes) for some_Ihw in maps]
    return _signals(checked, _groups(checked, pair_P2), threads or get_num_threads())


def _signals(
    maps: Sequence[NDArray[np.uint8]], groups: Sequence[_Group], threads: int
) -> Iterator[NDArray[np.float32]]:
    with ThreadPoolExecutor(threads) as pool:
        for vi_P in pool.map(partial(_image, maps, groups), range(len(maps[0]) if maps else 0)):
            # Not -vi_P, which has -0.0 for equal maps.
            yield (0.0 - vi_P).astype(np.float32)


def _checked(some_Ihw: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    if some_Ihw.dtype != np.uint8 or some_Ihw.ndim != 3 or 0 in some_Ihw.shape[1:]:
        raise ValueError(f"label maps are uint8 (h, w), got {some_Ihw.dtype} {some_Ihw.shape[1:]}")
    most = some_Ihw.max(initial=0)
    if most >= classes:
        raise ValueError(f"a label map has class {most}, there are {classes} classes, from 0")
    # Compiled once, not once more for arrays that cannot be written.
    return np.require(some_Ihw, requirements=["C", "W"])


def _groups(maps: Sequence[NDArray[np.uint8]], pair_P2: NDArray[np.intp]) -> list[_Group]:
    size_M2 = np.array([some_Ihw.shape[1:] for some_Ihw in maps]).reshape(-1, 2)
    size_P2 = size_M2[pair_P2].max(axis=1)
    groups = []
    for height, width in np.unique(size_P2, axis=0).tolist():
        place_P = np.flatnonzero((size_P2 == (height, width)).all(axis=1))
        used, pair = np.unique(pair_P2[place_P], return_inverse=True)
        groups.append(_Group((height, width), used, pair.reshape(-1, 2), place_P))
    return groups


def _image(
    maps: Sequence[NDArray[np.uint8]], groups: Sequence[_Group], image: int
) -> NDArray[np.float64]:
    """VI of all pairs for one image."""
    vi_P = np.empty(sum(len(group.place_P) for group in groups))
    for group in groups:
        pixels, many = group.size[0] * group.size[1], len(group.maps)
        log2_n = _log2(pixels)
        described = _Described(
            np.empty((many, pixels), np.uint8),
            np.empty((many, pixels), np.int32),
            np.empty((many, _VALUES)),
            np.empty(many, np.int64),
            np.empty(many, np.int64),
        )
        for index, place in enumerate(group.maps):
            map_hw = maps[place][image]
            rows, columns = (_positions(map_hw.shape[i], group.size[i]) for i in (0, 1))
            _describe(map_hw, rows, columns, log2_n, described, index)
        vi_P[group.place_P] = _compare(described, group.pair_P2, log2_n)
    return vi_P


_positions = cache(nearest_positions)


@cache
def _log2(pixels: int) -> NDArray[np.float64]:
    """log2 of 0 (never used) to `pixels`."""
    return np.log2(np.maximum(np.arange(pixels + 1), 1))


@njit(cache=True, nogil=True)
def _describe(map_hw, rows, columns, log2_n, out, index):
    """Fill in the description of the map that shows these rows and columns of another."""
    kind_n, end_n = out.kind_Mn[index], out.end_Mn[index]
    kind_K = np.full(_VALUES, -1, dtype=np.int64)
    pixels_K = np.zeros(_VALUES, dtype=np.int64)
    kinds = runs = p = 0
    for row in rows:
        source_w = map_hw[row]
        for column in columns:
            found = source_w[column]
            if kind_K[found] < 0:
                kind_K[found] = kinds
                kinds += 1
            kind = kind_K[found]
            pixels_K[kind] += 1
            kind_n[p] = kind
            if p > 0 and kind_n[p - 1] != kind:
                end_n[runs] = p
                runs += 1
            p += 1
    end_n[runs] = p
    out.kinds_M[index], out.runs_M[index] = kinds, runs + 1
    for kind in range(kinds):
        out.log2_MK[index, kind] = log2_n[pixels_K[kind]]


@njit(cache=True, nogil=True)
def _compare(maps, pair_P2, log2_n):
    """VI of pairs of described maps."""
    pixels = maps.kind_Mn.shape[1]
    vi_P = np.empty(len(pair_P2), dtype=np.float64)
    # All zero between two pairs.
    joint = np.zeros(2 * maps.kinds_M.max() ** 2, dtype=np.int32)
    for p in range(len(pair_P2)):
        a, b = pair_P2[p]
        kinds_a, kinds_b = maps.kinds_M[a], maps.kinds_M[b]
        # Maps of trained networks have long runs; a step of runs costs as much as three pixels.
        if 3 * (maps.runs_M[a] + maps.runs_M[b]) < pixels:
            _join_runs(maps, a, b, joint)
        else:
            _join_pixels(maps.kind_Mn[a], maps.kind_Mn[b], kinds_a, kinds_b, joint)
        total = 0.0
        for i in range(kinds_a):
            for j in range(kinds_b):
                cell = i * kinds_b + j
                both = joint[cell]
                if both > 0:
                    joint[cell] = 0
                    logs = maps.log2_MK[a, i] + maps.log2_MK[b, j]
                    total += both * (logs - 2 * log2_n[both])
        vi_P[p] = total / pixels
    return vi_P


@njit(cache=True, nogil=True)
def _join_runs(maps, a, b, joint):
    """Fill in the joint histogram of two maps, run by run."""
    kind_a_n, kind_b_n = maps.kind_Mn[a], maps.kind_Mn[b]
    end_a_n, end_b_n = maps.end_Mn[a], maps.end_Mn[b]
    kinds_b, pixels = np.uint64(maps.kinds_M[b]), len(kind_a_n)
    run_a = run_b = np.uint64(0)
    start = 0
    while start < pixels:
        end_a, end_b = end_a_n[run_a], end_b_n[run_b]
        end = min(end_a, end_b)
        joint[kind_a_n[start] * kinds_b + kind_b_n[start]] += end - start
        # Without branches, which would be guessed wrongly half the time.
        run_a += np.uint64(end_a == end)
        run_b += np.uint64(end_b == end)
        start = end


@njit(cache=True, nogil=True)
def _join_pixels(kind_a_n, kind_b_n, kinds_a, kinds_b, joint):
    """Fill in the joint histogram of two maps, pixel by pixel."""
    # Without a sign no index can count from the end, which halves the time.
    one, two, pixels = np.uint64(1), np.uint64(2), np.uint64(len(kind_a_n))
    kinds, cells = np.uint64(kinds_b), np.uint64(kinds_a * kinds_b)
    for half in range(pixels // two):
        # Neighbours count into different histograms: adding to one cell twice in a row waits.
        p, q = two * half, two * half + one
        joint[kind_a_n[p] * kinds + kind_b_n[p]] += 1
        joint[cells + kind_a_n[q] * kinds + kind_b_n[q]] += 1
    if pixels % two:
        p = pixels - one
        joint[kind_a_n[p] * kinds + kind_b_n[p]] += 1
    for cell in range(cells):
        joint[cell] += joint[cells + cell]
        joint[cells + cell] = 0
