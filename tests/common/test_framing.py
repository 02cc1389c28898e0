"""Frames of pictures of any size: what they show, and which pixel counts where."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mess.common.framing import Box, Frame, Framing, stitched
from mess.common.metrics import VOID, label_counts
from tests.seeds import seeded

SIDE = st.integers(1, 40)
SHAPE = st.tuples(st.integers(1, 150), st.integers(1, 150))
OVERLAP = st.sampled_from([0.0, 0.125, 0.3, 0.5])
FILL = (10, 20, 30)

CLASSES = 5


def tiled(size: tuple[int, int], overlap: float) -> Framing:
    return Framing(size=size, fit="tile", overlap=overlap)


def random_mask(shape: tuple[int, int], number: int) -> NDArray[np.uint8]:
    mask = np.random.default_rng(seeded(number)).integers(0, CLASSES + 1, shape)
    return np.where(mask == CLASSES, VOID, mask).astype(np.uint8)


def ones(box: Box, size: tuple[int, int]) -> NDArray[np.int64]:
    out = np.zeros(size, np.int64)
    out[box.slices] += 1
    assert out.sum() == box.height * box.width > 0, "not within"
    return out


# ---- Tiles


@given(SHAPE, st.tuples(SIDE, SIDE), OVERLAP)
def test_every_pixel_is_in_one_core_within_its_tile(
    shape: tuple[int, int], size: tuple[int, int], overlap: float
) -> None:
    found = np.zeros(shape, np.int64)
    for frame in tiled(size, overlap).frames(shape):
        assert frame.size == size
        # Unscaled, within the picture and within the frame.
        assert frame.source[2:] == frame.place[2:]
        assert ones(frame.source, shape).any()
        assert (ones(frame.place, size) >= ones(frame.core, size)).all()
        found += ones(frame.core_of_picture, shape)
    assert (found == 1).all()


@given(st.integers(1, 300), SIDE, OVERLAP)
def test_neighbours_overlap_enough_and_no_tile_is_too_many(
    length: int, side: int, overlap: float
) -> None:
    frames = tiled((1, side), overlap).frames((1, length))
    least = round(overlap * side)
    assert [frame.tile for frame in frames] == [(0, number) for number in range(len(frames))]
    if length <= side:
        assert len(frames) == 1
        assert frames[0].source == (0, 0, 1, length)
        return
    starts = [frame.source.left for frame in frames]
    assert starts[0] == 0
    assert starts[-1] + side == length
    for frame, after in pairwise(frames):
        assert frame.source.width == side
        shared = frame.source.left + side - after.source.left
        assert least <= shared < side
        # The middle of what both show divides their cores.
        bound = frame.core_of_picture.left + frame.core_of_picture.width
        assert bound == after.source.left + shared // 2
    # One tile less would have to be further apart.
    assert (len(frames) - 2) * (side - least) + side < length


@given(SHAPE, st.tuples(SIDE, SIDE), OVERLAP)
def test_counts_of_tiles_add_up_to_those_of_the_stitched_picture(
    shape: tuple[int, int], size: tuple[int, int], overlap: float
) -> None:
    """Whatever is answered in overlaps and on padding."""
    mask, answers = random_mask(shape, 0), np.random.default_rng(seeded(1))
    frames = tiled(size, overlap).frames(shape)
    maps = [answers.integers(0, CLASSES, size).astype(np.uint8) for _ in frames]
    whole = stitched(frames, maps, shape)
    counts = np.zeros((3, CLASSES), np.int64)
    for frame, map_ in zip(frames, maps, strict=True):
        judged = frame.judged(frame.mask(mask))
        valid = judged != VOID
        counts[0] += np.bincount(judged[valid & (judged == map_)], minlength=CLASSES)
        counts[1] += np.bincount(map_[valid], minlength=CLASSES)
        counts[2] += label_counts(judged, CLASSES)
    valid = mask != VOID
    np.testing.assert_array_equal(
        counts,
        [
            np.bincount(mask[valid & (mask == whole)], minlength=CLASSES),
            np.bincount(whole[valid], minlength=CLASSES),
            label_counts(mask, CLASSES),
        ],
    )


@given(SHAPE, st.tuples(SIDE, SIDE), OVERLAP)
def test_what_tiles_show_is_the_picture(
    shape: tuple[int, int], size: tuple[int, int], overlap: float
) -> None:
    mask = random_mask(shape, 2)
    frames = tiled(size, overlap).frames(shape)
    shown = [frame.mask(mask) for frame in frames]
    np.testing.assert_array_equal(stitched(frames, shown, shape), mask)
    image = np.stack([mask, mask, mask], axis=2)
    for frame, labels in zip(frames, shown, strict=True):
        pixels = frame.image(image, FILL)
        inside = ones(frame.place, size) == 1
        np.testing.assert_array_equal(pixels[inside][:, 0], labels[inside])
        assert (pixels[~inside] == FILL).all()
        assert (labels[~inside] == VOID).all()


def test_a_picture_smaller_than_a_tile_lies_unscaled_in_the_middle() -> None:
    (frame,) = tiled((10, 20), 0.125).frames((7, 30))[:1]
    assert frame.place == (1, 0, 7, 20)
    assert frame.source == (0, 0, 7, 20)
    (frame,) = tiled((10, 20), 0.125).frames((4, 3))
    assert frame.place == frame.core == (3, 8, 4, 3)


# ---- One frame a picture


@given(SHAPE, st.tuples(SIDE, SIDE))
def test_padding_keeps_proportions_and_touches_two_sides(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    (frame,) = Framing(size=size, fit="pad").frames(shape)
    assert frame.source == (0, 0, *shape)
    assert frame.core == frame.place
    ones(frame.place, size)
    (top, left, height, width), (rows, columns) = frame.place, size
    assert height == rows or width == columns
    scale = min(rows / shape[0], columns / shape[1])
    # To a whole pixel, of which there is one at least.
    assert abs(height - max(scale * shape[0], 1)) <= 0.5 + 1e-9
    assert abs(width - max(scale * shape[1], 1)) <= 0.5 + 1e-9
    assert 0 <= rows - height - 2 * top <= 1
    assert 0 <= columns - width - 2 * left <= 1


def test_a_padded_picture_is_scaled_as_pillow_scales_it() -> None:
    image = np.random.default_rng(seeded(3)).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    (frame,) = Framing(size=(12, 16), fit="pad").frames((30, 20))
    assert frame.place == (0, 4, 12, 8)
    found = frame.image(image, FILL)
    expected = Image.fromarray(image).resize((8, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[:, 4:12], np.asarray(expected))
    assert (found[:, :4] == FILL).all()
    assert (found[:, 12:] == FILL).all()
    mask = frame.mask(np.zeros((30, 20), np.uint8))
    assert (mask[:, 4:12] == 0).all()
    assert (mask == VOID).sum() == 12 * 8
    assert frame.judged(mask) is mask


@pytest.mark.parametrize("fit", ["stretch", "pad", "tile"])
def test_a_picture_of_the_size_is_left_alone(fit: Any) -> None:
    image = np.random.default_rng(seeded(4)).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    (frame,) = Framing(size=(12, 16), fit=fit).frames((12, 16))
    np.testing.assert_array_equal(frame.image(image, FILL), image)
    whole = Box(0, 0, 12, 16)
    assert frame == Frame((12, 16), whole, whole, whole)


def test_stretching_keeps_nothing_but_the_size() -> None:
    (frame,) = Framing(size=(12, 16)).frames((100, 3))
    assert frame.place == frame.core == (0, 0, 12, 16)
    assert frame.source == (0, 0, 100, 3)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"fit": "crop"}, "one of stretch, pad, tile, got 'crop'"),
        ({"overlap": 0.6}, "from 0 to 0.5, got 0.6"),
        ({"overlap": -0.1}, "from 0 to 0.5, got -0.1"),
        ({"size": (0, 5)}, r"at least 1 by 1, got \[0, 5\]"),
    ],
)
def test_what_cannot_be_is_refused(fault: dict[str, Any], told: str) -> None:
    values: dict[str, Any] = {"size": (12, 16)}
    with pytest.raises(ValueError, match=told):
        Framing(**values | fault)
