"""Reading and resizing images and masks, the same way for training, memoising and bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mess.errors import DataError

THUMBNAIL = 8
"""Rows and columns of a thumbnail."""

PREPROCESSING = 1
"""Raise it with any change here that changes a number; fingerprints of images hold it."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """An RGB image, shape (H, W, 3)."""
    return np.asarray(_open(path, "image").convert("RGB"))


def image_shape(path: Path) -> tuple[int, int]:
    """Rows and columns of an image, from its header alone."""
    width, height = _open(path, "image", pixels=False).size
    return height, width


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A mask of class ids, shape (H, W); palette images give their indices."""
    mask = _open(path, "mask")
    # Converting an RGB mask would make brightness a class; it is refused instead.
    if mask.mode not in ("L", "P"):
        raise DataError(
            f"mask {path} has mode {mask.mode}; masks are 8-bit single-channel class ids. "
            "Convert it to mode L or P."
        )
    return np.asarray(mask)


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


def _open(path: Path, kind: str, *, pixels: bool = True) -> Image.Image:
    try:
        with Image.open(path) as image:
            # Pillow reads pixels when they are first asked for: here, where a fault is named.
            if pixels:
                image.load()
            return image
    except FileNotFoundError as error:
        raise DataError(f"{kind} {path} does not exist.") from error
    # SyntaxError is what Pillow raises for a broken chunk of a PNG.
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{kind} {path} cannot be read: {error}. Replace or remove it.") from error
