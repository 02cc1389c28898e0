"""Resizing against plain loops in exact fractions, and torch's operation within the tolerance."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mess.common.resizing import Axis, Grid, nearest, tolerance, upsampled
from tests.seeds import seeded

LENGTHS = [(1, 1), (1, 7), (5, 5), (5, 40), (9, 70), (30, 7), (65, 520), (33, 257), (2, 1000)]


def exact(inputs: int, pixel: int, outputs: int) -> tuple[int, Fraction]:
    """The position before a pixel, and how far it is from there to the next."""
    source = (pixel + Fraction(1, 2)) * Fraction(inputs, outputs) - Fraction(1, 2)
    source = min(max(source, Fraction(0)), Fraction(inputs - 1))
    return int(source), source - int(source)


@pytest.mark.parametrize(("inputs", "outputs"), LENGTHS)
def test_weights_are_the_fractions_rounded_once(inputs: int, outputs: int) -> None:
    axis = Axis.of(inputs, outputs)
    before, after = axis.neighbours()
    assert axis.start[0] == 0
    assert axis.start[-1] == outputs
    for pixel in range(outputs):
        position, weight = exact(inputs, pixel, outputs)
        assert before[pixel] == position
        assert after[pixel] == min(position + 1, inputs - 1)
        # A float is a fraction: no other one is nearer.
        found = axis.weight[pixel]
        others = [np.nextafter(found, np.float32(end)) for end in (-1, 2)]
        distance = abs(Fraction(float(found)) - weight)
        assert all(distance <= abs(Fraction(float(other)) - weight) for other in others)


@pytest.mark.parametrize("native", [(1, 1), (4, 3), (9, 13)])
@pytest.mark.parametrize("size", [(9, 13), (33, 29), (3, 50)])
def test_upsampled_is_the_exact_mean_of_four_to_a_few_roundings(
    native: tuple[int, int], size: tuple[int, int]
) -> None:
    values = np.random.default_rng(seeded(0)).normal(size=native).astype(np.float32)
    found = upsampled(values, size)
    assert found.dtype == np.float32
    for y, x in np.ndindex(*size):
        (row, down), (column, across) = exact(native[0], y, size[0]), exact(native[1], x, size[1])
        below, beside = min(row + 1, native[0] - 1), min(column + 1, native[1] - 1)
        mean = sum(
            up * back * Fraction(float(values[r, c]))
            for r, up in ((row, 1 - down), (below, down))
            for c, back in ((column, 1 - across), (beside, across))
        )
        # 10 by arithmetic, 4 by the weights.
        assert abs(float(found[y, x]) - float(mean)) <= 14 * 2.0**-24 * abs(values).max()


@pytest.mark.parametrize("native", [(1, 1), (5, 9), (23, 30), (65, 65), (33, 41)])
@pytest.mark.parametrize("size", [(180, 240), (37, 70), (520, 520), (33, 41), (7, 300)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [1, 5])
def test_torchs_operation_is_within_the_tolerance(
    native: tuple[int, int], size: tuple[int, int], layout: torch.memory_format, classes: int
) -> None:
    """Whichever of its kernels it takes: by layout, classes, sizes and processor."""
    generator = torch.Generator().manual_seed(seeded(sum(size)))
    values = torch.randn(1, classes, *native, generator=generator).contiguous(memory_format=layout)
    found = F.interpolate(values, size=size, mode="bilinear", align_corners=False).numpy()
    limit = tolerance(native) * float(values.abs().max())
    np.testing.assert_allclose(found, upsampled(values.numpy(), size), rtol=0, atol=limit)


@pytest.mark.parametrize("native", [(1, 1), (5, 9), (23, 30), (40, 60)])
def test_matrices_interpolate_too(native: tuple[int, int]) -> None:
    values = np.random.default_rng(seeded(1)).normal(size=(3, *native)).astype(np.float32)
    grid = Grid.of(native, (37, 70))
    found = grid.rows.matrix() @ values @ grid.columns.matrix().T
    limit = tolerance(native) * abs(values).max()
    np.testing.assert_allclose(found, upsampled(values, (37, 70)), rtol=0, atol=limit)


def test_what_is_equal_stays_equal_and_ends_stay_in_place() -> None:
    values = np.full((6, 8), np.float32(0.1))
    values[0, 0], values[-1, -1] = 3, -5
    whole = upsampled(values, (50, 61))
    assert whole[0, 0] == np.float32(3)
    assert whole[-1, -1] == np.float32(-5)
    assert (whole[20:30] == np.float32(0.1)).all()
    np.testing.assert_array_equal(upsampled(values, (6, 8)), values)


def test_nearest_follows_the_integer_rule() -> None:
    own = np.arange(6).reshape(1, 2, 3)
    assert nearest(own, (3, 4)).tolist() == [[[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5]]]
    assert nearest(own, (2, 3)).tolist() == own.tolist()
    assert nearest(own[0], (1, 2)).tolist() == [[0, 1]]
