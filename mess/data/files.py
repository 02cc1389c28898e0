"""Data sets of one image file and one mask file for each id, and the checks on finding them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mess.common.images import image_shape, read_image, read_mask
from mess.config import DataConfig
from mess.data.base import ClassTable, Pair, SegmentationData
from mess.errors import ConfigError, DataError

Files = tuple[str, Path, Path]
"""The id of an image, its file and the file of its mask."""


class FilePairs(SegmentationData):
    """Images and masks in files; subclasses change `_read_mask` where masks are no PNG."""

    def __init__(
        self,
        *,
        where: str,
        files: Sequence[Files],
        classes: ClassTable,
        size: tuple[int, int],
    ) -> None:
        super().__init__(where=where, ids=[entry[0] for entry in files], classes=classes, size=size)
        self._files = {image_id: (image, mask) for image_id, image, mask in files}

    def _load(self, image_id: str) -> Pair:
        image, mask = self._files[image_id]
        return read_image(image), self._read_mask(mask)

    def _shape(self, image_id: str) -> tuple[int, int]:
        return image_shape(self._files[image_id][0])

    def _read_mask(self, path: Path) -> NDArray[np.uint8]:
        return read_mask(path)

    def _content(self, image_id: str) -> Iterable[bytes | Path]:
        return self._files[image_id]


def data_root(config: DataConfig, layout: str) -> Path:
    """`data.root` as an existing folder; `layout` says in a few words what it should hold."""
    if config.root is None:
        raise ConfigError(
            f"data.kind = {config.kind!r} needs data.root, the folder that holds {layout}."
        )
    if not config.root.is_dir():
        raise DataError(f"data.root {config.root} is no folder; it should hold {layout}.")
    return config.root


def listed_files(
    listing: Path, where: str, locate: Callable[[str], tuple[Path, Path]]
) -> list[Files]:
    """Image and mask of every id in the text file `listing`, one id a line.

    Raises DataError where the listing or any of the files is missing.
    """
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{where}: {listing} is missing; it lists one image id a line.") from None
    files = [(line.strip(), *locate(line.strip())) for line in lines if line.strip()]
    require_files(where, [path for _, image, mask in files for path in (image, mask)])
    return files


def require_files(where: str, paths: Sequence[Path]) -> None:
    """Raise a DataError that names the first of `paths` that is missing, and their number."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{where}: {missing[0]} is missing ({len(missing)} of {len(paths)} files are); "
            "complete the data set, or take these images off its list."
        )
