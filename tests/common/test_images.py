"""Images and masks of every depth and orientation, against files written by hand."""

from __future__ import annotations

import struct
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mess.common.images import (
    IMAGE_SUFFIXES,
    image_shape,
    read_image,
    read_mask_colors,
    read_mask_values,
)
from mess.errors import DataError
from tests.pngs import GREY_ALPHA, PALETTE, RGB, RGBA, chunk, exif_chunk, write_png
from tests.seeds import seeded

SHAPE = (5, 7)
"""No multiple of eight: rows of few bits end within a byte."""


def drawn(key: int, high: int, *channels: int) -> NDArray[np.integer]:
    return np.random.default_rng(seeded(key)).integers(0, high, (*SHAPE, *channels))


# ---- Depths


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_masks_hold_the_numbers_that_are_stored(tmp_path: Path, bits: int) -> None:
    stored = drawn(bits, 2**bits)
    stored[0, :2] = 0, 2**bits - 1
    found = read_mask_values(write_png(tmp_path / "mask.png", stored, bits=bits))
    np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_with_a_palette_hold_its_indices(tmp_path: Path, bits: int) -> None:
    stored = drawn(bits, 2**bits)
    palette = np.random.default_rng(seeded(7)).integers(0, 256, (2**bits, 3)).astype(np.uint8)
    path = write_png(
        tmp_path / "mask.png", stored, bits=bits, kind=PALETTE,
        before=chunk(b"PLTE", palette.tobytes()),
    )  # fmt: skip
    np.testing.assert_array_equal(read_mask_values(path), stored)
    np.testing.assert_array_equal(read_mask_colors(path), palette[stored])


def write_tiff(
    path: Path, stored: NDArray[Any], bits: int, *, white: int, reversed_bits: bool
) -> Path:
    """Grey numbers as they are, without Pillow; `white` 0: the smallest is white."""
    rows = [
        np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -bits:].ravel())
        for row in stored
    ]
    content = np.concatenate(rows)
    if reversed_bits:
        content = np.packbits(np.unpackbits(content[:, None], axis=1)[:, ::-1], axis=1).ravel()
    (height, width), begins = stored.shape, 8 + 2 + 9 * 12 + 4
    tags = [
        (256, width), (257, height), (258, bits), (259, 1), (262, white),
        (266, 2 if reversed_bits else 1), (273, begins), (278, height), (279, len(content)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    path.write_bytes(header + entries + bytes(4) + content.tobytes())
    return path


@pytest.mark.parametrize(
    ("bits", "white", "reversed_bits"),
    # But for 8 bits of both kinds, a layout that Pillow does not read.
    sorted(set(product((1, 2, 4, 8), (0, 1), (False, True))) - {(8, 0, True)}),
)
def test_masks_hold_the_numbers_whichever_is_white(
    tmp_path: Path, bits: int, white: int, reversed_bits: bool
) -> None:
    """As tifffile writes masks of truths: 0 is white there."""
    stored = drawn(bits, 2**bits)
    stored[0, :2] = 0, 2**bits - 1
    path = tmp_path / "mask.tif"
    write_tiff(path, stored, bits, white=white, reversed_bits=reversed_bits)
    np.testing.assert_array_equal(read_mask_values(path), stored)
    # Pictures are seen as they are meant to be looked at.
    grey = stored * (255 // (2**bits - 1))
    np.testing.assert_array_equal(read_image(path)[..., 0], grey if white else 255 - grey)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_masks_may_be_tiff(tmp_path: Path, kind: type, compression: str | None) -> None:
    stored = drawn(3, 70_000).astype(kind)
    Image.fromarray(stored).save(tmp_path / "mask.tif", compression=compression)
    np.testing.assert_array_equal(read_mask_values(tmp_path / "mask.tif"), stored)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_images_fill_the_range(tmp_path: Path, bits: int) -> None:
    stored = drawn(bits, 2**bits)
    stored[0, :2] = 0, 2**bits - 1
    found = read_image(write_png(tmp_path / "image.png", stored, bits=bits))
    most = 2**bits - 1
    # Of 16 bits the upper 8; of fewer bits their share of the range, which is a whole number.
    expected = stored // 256 if bits == 16 else stored * 255 // most
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=2))
    assert found.dtype == np.uint8


def test_sixteen_bits_of_colour_are_read_like_those_of_grey(tmp_path: Path) -> None:
    stored = drawn(4, 2**16, 3)
    found = read_image(write_png(tmp_path / "image.png", stored, bits=16, kind=RGB))
    np.testing.assert_array_equal(found, stored // 256)


def test_sixteen_bits_in_tiff(tmp_path: Path) -> None:
    stored = drawn(5, 2**16).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "image.tif")
    found = read_image(tmp_path / "image.tif")
    np.testing.assert_array_equal(found, np.repeat((stored // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize(("kind", "named"), [(np.int32, "mode I"), (np.float32, "mode F")])
def test_numbers_without_a_range_are_refused(tmp_path: Path, kind: type, named: str) -> None:
    Image.fromarray(drawn(6, 900).astype(kind)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"image .*x\.tif .*\({named}\).* Scale it to 8 or 16"):
        read_image(tmp_path / "x.tif")


def test_masks_that_are_no_whole_numbers_or_not_exact_are_refused(tmp_path: Path) -> None:
    Image.fromarray(drawn(6, 9).astype(np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"mask .*x\.tif has mode F; .* single channel of whole"):
        read_mask_values(tmp_path / "x.tif")
    Image.fromarray(drawn(6, 9).astype(np.uint8)).save(tmp_path / "x.jpg")
    for read in (read_mask_values, read_mask_colors):
        with pytest.raises(DataError, match=r"mask .*x\.jpg is a JPEG, .* as PNG"):
            read(tmp_path / "x.jpg")
    Image.fromarray(np.full(SHAPE, 2, np.uint8)).save(tmp_path / "x.gif")
    with pytest.raises(DataError, match=r"mask .*x\.gif is a GIF, .* Give the colours"):
        read_mask_values(tmp_path / "x.gif")
    np.testing.assert_array_equal(read_mask_colors(tmp_path / "x.gif"), np.full((*SHAPE, 3), 2))


# ---- Transparency


def test_what_is_transparent_lies_on_black(tmp_path: Path) -> None:
    stored = drawn(8, 256, 4)
    stored[0, :3, 3] = 0, 255, 128
    path = write_png(tmp_path / "image.png", stored, bits=8, kind=RGBA)
    expected = stored[..., :3] * stored[..., 3:] / 255
    np.testing.assert_allclose(read_image(path), expected, atol=0.5)
    np.testing.assert_array_equal(read_mask_colors(path), read_image(path))
    opaque = stored[..., 3] == 255
    np.testing.assert_array_equal(read_image(path)[opaque], stored[opaque][:, :3])


def test_grey_with_transparency(tmp_path: Path) -> None:
    stored = drawn(9, 256, 2)
    path = write_png(tmp_path / "image.png", stored, bits=8, kind=GREY_ALPHA)
    expected = np.repeat(stored[..., :1] * stored[..., 1:] / 255, 3, axis=2)
    np.testing.assert_allclose(read_image(path), expected, atol=0.5)


@pytest.mark.parametrize("bits", [8, 16])
def test_one_level_that_is_transparent(tmp_path: Path, bits: int) -> None:
    stored = np.arange(3, 38).reshape(SHAPE) * 2 ** (bits - 8)
    clear = int(stored[2, 2])
    path = write_png(
        tmp_path / "image.png", stored, bits=bits, before=chunk(b"tRNS", struct.pack(">H", clear))
    )
    expected = stored // 2 ** (bits - 8)
    expected[2, 2] = 0
    np.testing.assert_array_equal(read_image(path)[..., 0], expected)


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    path = write_png(
        tmp_path / "image.png", np.array([[0, 1]]), bits=8, kind=PALETTE,
        before=chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])) + chunk(b"tRNS", bytes([0, 255])),
    )  # fmt: skip
    np.testing.assert_array_equal(read_image(path), [[[0, 0, 0], [6, 5, 4]]])


# ---- Orientation

UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""EXIF: where the first row and the first column of what is stored belong."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_png_is_turned_as_exif_says(tmp_path: Path, orientation: int, place: str) -> None:
    stored = drawn(10, 256, 3)
    path = tmp_path / "image.png"
    at = exif_chunk(orientation)
    before, behind = (at, b"") if place == "before" else (b"", at)
    write_png(path, stored, bits=8, kind=RGB, before=before, behind=behind)
    expected = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_shape(path) == expected.shape[:2]
    write_png(path, stored[..., 0] % 4, bits=2, before=before, behind=behind)
    np.testing.assert_array_equal(read_mask_values(path), expected[..., 0] % 4)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    "suffix_and_options",
    [(".jpg", {"quality": 100, "subsampling": 0}), (".webp", {"lossless": True}), (".tif", {}),
     (".tiff", {"compression": "tiff_lzw"})],
    ids=lambda given: given[0],
)  # fmt: skip
def test_others_are_turned_as_exif_says(
    tmp_path: Path, orientation: int, suffix_and_options: tuple[str, dict[str, Any]]
) -> None:
    suffix, options = suffix_and_options
    # Smooth, so that JPEG keeps it.
    stored = np.add.outer(np.arange(16) * 9, np.arange(24) * 3)[..., None] + np.array([0, 20, 40])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image{suffix}"
    Image.fromarray(stored.astype(np.uint8)).save(path, exif=exif, **options)
    expected = UPRIGHT[orientation](stored)
    assert image_shape(path) == expected.shape[:2]
    np.testing.assert_allclose(read_image(path), expected, atol=6 if suffix == ".jpg" else 0)


def test_exif_that_cannot_be_read_leaves_the_image_as_it_is(tmp_path: Path) -> None:
    stored = drawn(11, 256, 3)
    broken = chunk(b"eXIf", b"MM\0*" + struct.pack(">IH", 8, 900))
    path = write_png(tmp_path / "image.png", stored, bits=8, kind=RGB, before=broken)
    np.testing.assert_array_equal(read_image(path), stored)
    assert image_shape(path) == SHAPE


# ---- Kinds of files and faults


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_kind_of_file_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(np.full((6, 8, 3), 77, np.uint8)).save(path)
    assert image_shape(path) == (6, 8)
    np.testing.assert_allclose(read_image(path), np.full((6, 8, 3), 77), atol=1)


def test_an_image_that_is_too_large_is_one_clear_error(tmp_path: Path) -> None:
    path = write_png(tmp_path / "huge.png", np.zeros((1, 1), int), bits=8)
    content = bytearray(path.read_bytes())
    header = struct.pack(">IIBBBBB", 40_000, 30_000, 8, 0, 0, 0, 0)
    content[8:33] = chunk(b"IHDR", header)
    path.write_bytes(content)
    for read in (read_image, image_shape, read_mask_values):
        with pytest.raises(
            DataError, match=r"huge\.png has 1,200,000,000 pixels, .* 178,956,970 .* scale it down"
        ):
            read(path)


def test_a_large_image_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_png(tmp_path / "large.png", drawn(1, 256), bits=8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert read_image(path).shape == (*SHAPE, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 17)
    with pytest.raises(DataError, match="35 pixels, more than the 34"):
        read_image(path)


def test_a_mode_that_is_not_converted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(image: Image.Image, mode: str) -> Image.Image:
        raise ValueError(f"conversion from {image.mode} to {mode} not supported")

    Image.new("LAB", (3, 2)).save(tmp_path / "lab.tif")
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DataError, match=r"lab\.tif has mode LAB, .* Save it as RGB"):
        read_image(tmp_path / "lab.tif")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    path = write_png(tmp_path / "image.png", drawn(2, 256), bits=8)
    whole = path.read_bytes()
    for length in (0, 20, 40, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"image .*image\.png cannot be read: .* Replace"):
            read_image(path)
    with pytest.raises(DataError, match=r"mask .*nowhere\.png does not exist"):
        read_mask_values(tmp_path / "nowhere.png")
