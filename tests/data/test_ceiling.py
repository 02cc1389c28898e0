"""Masks on coarse grids, against plain loops in fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mess.common.metrics import VOID
from mess.data.ceiling import best_on_grid, grid_of
from tests.seeds import seeded


def share(mask: np.ndarray, cell: tuple[int, int], grid: tuple[int, int], label: int) -> Fraction:
    """Of a position's area that has the label, pixel by pixel."""
    total = Fraction(0)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x] == label:
                area = Fraction(1)
                for at, position, count, pixels in zip((y, x), cell, grid, mask.shape, strict=True):
                    start = Fraction(position * pixels, count)
                    end = Fraction((position + 1) * pixels, count)
                    area *= max(min(end, Fraction(at + 1)) - max(start, Fraction(at)), Fraction(0))
                total += area
    return total


def upsampled(values: dict[tuple[int, int], Fraction], y: int, x: int, grid: tuple[int, int],
              size: tuple[int, int]) -> Fraction:  # fmt: skip
    """Bilinear by its definition (align_corners=False)."""
    ends = []
    for at, count, pixels in zip((y, x), grid, size, strict=True):
        source = Fraction((2 * at + 1) * count, 2 * pixels) - Fraction(1, 2)
        source = min(max(source, Fraction(0)), Fraction(count - 1))
        low = int(source)
        ends.append((low, min(low + 1, count - 1), source - low))
    (top, bottom, down), (left, right, across) = ends
    above = values[top, left] + across * (values[top, right] - values[top, left])
    below = values[bottom, left] + across * (values[bottom, right] - values[bottom, left])
    return above + down * (below - above)


@pytest.mark.parametrize("grid", [(3, 4), (4, 5), (1, 1), (7, 9)])
def test_the_best_on_a_grid_is_that_of_shares_of_area(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(seeded(3))
    mask = rng.choice(np.array([0, 2, 5, VOID], np.uint8), size=(7, 9))
    found = best_on_grid(mask, grid)
    cells = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    shares = {c: {cell: share(mask, cell, grid, c) for cell in cells} for c in (0, 2, 5)}
    for y in range(7):
        for x in range(9):
            values = {c: upsampled(shares[c], y, x, grid, (7, 9)) for c in shares}
            # Rounding may decide between classes that are equal; any other is wrong.
            assert max(values.values()) - values[int(found[y, x])] < Fraction(1, 10**6)


def test_a_grid_of_every_pixel_keeps_the_mask() -> None:
    mask = np.random.default_rng(seeded(4)).integers(0, 4, (6, 8)).astype(np.uint8)
    np.testing.assert_array_equal(best_on_grid(mask, (6, 8)), mask)


def test_a_line_thinner_than_the_grid_is_lost() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 13] = 1
    assert not best_on_grid(mask, grid_of((32, 32), 8)).any()
    assert best_on_grid(mask, grid_of((32, 32), 1))[:, 13].all()


def test_an_image_without_labels_has_no_answer_to_miss() -> None:
    mask = np.full((4, 4), VOID, np.uint8)
    assert best_on_grid(mask, (2, 2)).shape == (4, 4)


def test_strided_convolutions_round_up() -> None:
    assert grid_of((360, 480), 8) == (45, 60)
    assert grid_of((180, 240), 8) == (23, 30)
