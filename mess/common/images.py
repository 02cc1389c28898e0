"""Reading and resizing images and masks, the same way for training, memoising and bundles."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mess.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Names of files in a folder that are images, in lower case; any case is taken."""

THUMBNAIL = 8
"""Rows and columns of a thumbnail."""

PREPROCESSING = 2
"""Raise it with any change here that changes a number; fingerprints of images hold it."""

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF's orientations that exchange rows and columns."""

_GREY = re.compile(r"[1L](?:;([24]?)(I?)R?)?")
"""Pillow's layouts of grey in 1 to 8 bits: how many, where fewer than 8, and whether the smallest
number is white, as TIFF can have it."""

_LOSSY = ("JPEG", "MPO")


class _Opened(NamedTuple):
    """An upright image, and the layout of its pixels in the file in Pillow's words."""

    image: Image.Image
    rawmode: str


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as RGB, shape (H, W, 3), upright by its EXIF orientation.

    Of 16 bits the upper 8 are taken, so that 65535 becomes 255; what is transparent lies on black.
    Raises DataError for a file that cannot be read, has more pixels than Pillow reads, or holds
    32-bit or floating-point numbers, whose black and white nobody knows.
    """
    return _in_rgb(_open(path, "image").image, path, "image")


def image_shape(path: Path) -> tuple[int, int]:
    """Rows and columns of an upright image, from its header alone."""
    width, height = _open(path, "image", pixels=False).image.size
    return height, width


def read_mask_values(path: Path) -> NDArray[Any]:
    """The numbers in a single-channel mask, shape (H, W): uint8, uint16 or int32, upright.

    Bits are taken as they are stored, 1 to 32 of them; palette images give their indices. Raises
    DataError for colours, floating-point numbers and JPEG.
    """
    mask, rawmode = _open_mask(path)
    if mask.format == "GIF":
        raise DataError(
            f"mask {path} is a GIF, whose numbers follow whatever order its colours were given. "
            "Give the colours of the classes in classes.json (see `colors` in docs/data.md)."
        )
    # Converting colours would make brightness a class; they are refused instead.
    if mask.mode not in ("1", "L", "P", "I") and not _has_16_bits(mask):
        raise DataError(
            f"mask {path} has mode {mask.mode}; masks of class ids have a single channel of whole "
            "numbers. Convert it, such as to mode L, or give the colours of the classes in "
            "classes.json (see `colors` in docs/data.md)."
        )
    values = np.asarray(mask)
    grey = _GREY.fullmatch(rawmode) if mask.mode in ("1", "L") else None
    if grey:
        return _stored(values.astype(np.uint8), mask.mode, grey)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _stored(values: NDArray[np.uint8], mode: str, grey: re.Match[str]) -> NDArray[np.uint8]:
    """The numbers in the file of what Pillow made to be looked at: 0 black, full range."""
    bits = 1 if mode == "1" else int(grey[1] or 8)
    most = np.uint8(2**bits - 1)
    levels = values if bits in (1, 8) else values // (np.uint8(255) // most)
    return most - levels if grey[2] else levels


def read_mask_colors(path: Path) -> NDArray[np.uint8]:
    """The colours in a mask, shape (H, W, 3), upright; palettes are looked up.

    What is transparent lies on black, as in `read_image`. Raises DataError for JPEG.
    """
    return _in_rgb(_open_mask(path).image, path, "mask")


def resize_image(image_HW3: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear with antialiasing, to `size` = (height, width)."""
    if image_HW3.shape[:2] == tuple(size):
        return image_HW3
    height, width = size
    resized = Image.fromarray(image_HW3).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def resize_mask(mask_HW: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Nearest neighbour, to `size` = (height, width): class ids are never mixed."""
    if mask_HW.shape == tuple(size):
        return mask_HW
    height, width = size
    return np.asarray(Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST))


def thumbnail(image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey levels of the whole image, shape (8, 8): what tells nearly identical images."""
    grey = Image.fromarray(image_HW3).convert("L")
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def _in_rgb(image: Image.Image, path: Path, kind: str) -> NDArray[np.uint8]:
    clear = image.info.get("transparency")
    if _has_16_bits(image):
        levels = np.asarray(image)
        grey = (levels >> 8).astype(np.uint8)
        if isinstance(clear, int):
            grey[levels == clear] = 0
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        what = "32-bit or signed" if image.mode == "I" else "floating-point"
        raise DataError(
            f"{kind} {path} holds {what} numbers (mode {image.mode}), and nothing tells which of "
            "them are black and white. Scale it to 8 or 16 bits first, all images alike, such as "
            "Image.fromarray((255 * (x - low) / (high - low)).clip(0, 255).astype('uint8'))."
        )
    try:
        if clear is None and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
            return np.asarray(image.convert("RGB"))
        rgba = np.asarray(image.convert("RGBA"))
    except ValueError as error:
        raise DataError(
            f"{kind} {path} has mode {image.mode}, which is not converted: {error}. Save it as RGB."
        ) from error
    # The colour of a pixel nobody sees is whatever a program left there.
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)


def _has_16_bits(image: Image.Image) -> bool:
    # Pillow before 10.3 gave them 32 bits.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _open_mask(path: Path) -> _Opened:
    opened = _open(path, "mask")
    if opened.image.format in _LOSSY:
        raise DataError(
            f"mask {path} is a JPEG, whose compression changes the values at every edge. Write "
            "masks anew from their source as PNG."
        )
    return opened


def _open(path: Path, kind: str, *, pixels: bool = True) -> _Opened:
    try:
        with warnings.catch_warnings():
            # Large is no fault: there is a limit, and an error where it is.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _upright(image, pixels or _tells_late(path, image))
    except FileNotFoundError as error:
        raise DataError(f"{kind} {path} does not exist.") from error
    except Image.DecompressionBombError as error:
        found, limit = (f"{int(number):,}" for number in re.findall(r"\d+", str(error))[:2])
        raise DataError(
            f"{kind} {path} has {found} pixels, more than the {limit} that are read at once. Cut "
            "it into parts or scale it down."
        ) from error
    except (UnidentifiedImageError, OSError, *_BROKEN) as error:
        raise DataError(f"{kind} {path} cannot be read: {error}. Replace or remove it.") from error


# What Pillow raises for broken files beside OSError: a chunk of a PNG is a SyntaxError.
_BROKEN = (SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def _upright(image: Image.Image, pixels: bool) -> _Opened:
    """Turned as it is meant to be seen; without `pixels` only its size can be asked for."""
    rawmode = _rawmode(image)
    if not pixels:
        size = _stored_size(image)
        turned = _orientation(image) in _TURNED
        width, height = size[::-1] if turned else size
        return _Opened(Image.new("1", (width, height)), rawmode)
    # Pillow reads pixels when they are first asked for: here, where a fault is named.
    image.load()
    # Turning copies, even where there is nothing to turn.
    if _orientation(image) == 1:
        return _Opened(image, rawmode)
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return _Opened(turned, rawmode)


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 (upright) where there is none or it cannot be read: the pixels can all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            # Not by PNG's own method, which would read the pixels.
            return Image.Image.getexif(image).get(_ORIENTATION, 1)
        except (OSError, *_BROKEN):
            return 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file; newer versions of Pillow tell those of a turned TIFF."""
    tags: Any = getattr(image, "tag_v2", None)
    return image.size if tags is None else (tags[256], tags[257])


def _rawmode(image: Image.Image) -> str:
    """Of the pixels as they lie in the file; nothing tells it any more once they are read."""
    tiles = getattr(image, "tile", None)
    arguments: Any = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _tells_late(path: Path, image: Image.Image) -> bool:
    """Whether a PNG has EXIF or XMP behind its pixels, where Pillow finds it with them alone."""
    if image.format != "PNG":
        return False
    with path.open("rb") as file:
        file.seek(8)
        behind = False
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if behind and name in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
                return True
            behind = behind or name == b"IDAT"
            file.seek(length + 4, 1)
    return False
