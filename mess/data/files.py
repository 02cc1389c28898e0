"""Data sets of one image file and one mask file for each id, and the checks on finding them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mess.common.images import image_shape, read_image
from mess.common.metrics import VOID
from mess.config import DataConfig
from mess.data.base import ClassTable, Pair, SegmentationData
from mess.data.mask_encoding import MaskEncoding, UnknownValueError, unknown_values
from mess.errors import ConfigError, DataError

Files = tuple[str, Path, Path]
"""The id of an image, its file and the file of its mask."""


class FilePairs(SegmentationData):
    """Images and masks in files; subclasses change `_read_mask` where masks are no images."""

    encoding: MaskEncoding
    """What stands for a class in the masks: by default its id, and 255 for void."""

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
        self.encoding = MaskEncoding.of_ids(classes.num_classes)

    def _load(self, image_id: str) -> Pair:
        return read_image(self._files[image_id][0]), self._load_mask(image_id)

    def _load_mask(self, image_id: str) -> NDArray[np.uint8]:
        path = self._files[image_id][1]
        try:
            return self._read_mask(path)
        except UnknownValueError:
            # One seldom is alone: what all masks hold tells what was meant.
            masks = [path, *(mask for _, mask in self._files.values() if mask != path)]
            found = unknown_values(self.encoding, masks)
            raise DataError(f"{self.where}: {found} {self._remedy()}") from None

    def _shape(self, image_id: str) -> tuple[int, int]:
        return image_shape(self._files[image_id][0])

    def _read_mask(self, path: Path) -> NDArray[np.uint8]:
        return self.encoding.read(path)

    def _remedy(self) -> str:
        """What to do about values of no class."""
        return f"Class ids are 0..{self.classes.num_classes - 1}, and {VOID} is void."

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
    listing: Path,
    where: str,
    locate: Callable[[str], tuple[Path, Path]],
    left_out: Container[str] = (),
) -> list[Files]:
    """Image and mask of every id in the text file `listing`, one a line, but of those `left_out`.

    Raises DataError where the listing or any of the files is missing.
    """
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{where}: {listing} is missing; it lists one image id a line.") from None
    ids = [line.strip() for line in lines if line.strip() and line.strip() not in left_out]
    files = [(image_id, *locate(image_id)) for image_id in ids]
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
