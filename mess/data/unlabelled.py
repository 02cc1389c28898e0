"""The pictures in a folder, without masks: what a device sees where it is put to use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mess.common.images import IMAGE_SUFFIXES, image_shape, read_image
from mess.common.metrics import VOID
from mess.config import DataConfig
from mess.data.base import ClassTable, Pair, SegmentationData
from mess.errors import DataError


class Unlabelled(SegmentationData):
    """Pictures that somebody else labels: here every pixel of their masks is void.

    Only `judged` tells where the final exit's classes count, in whose place it has class 0.

    An id is the path within the folder without the suffix, such as `night/0001`, so that
    `data.groups` can tell folders apart. Fingerprints cover the pictures alone.
    """

    def __init__(
        self,
        *,
        where: str,
        files: Mapping[str, Path],
        others: Sequence[Path],
        classes: ClassTable,
        size: tuple[int, int],
    ) -> None:
        """`others` are the files of the folder that are no pictures by their names."""
        super().__init__(where=where, ids=list(files), classes=classes, size=size)
        self.others = others
        self._files = files

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> SegmentationData:
        """Raises DataError: pictures in a folder have no splits (see `open_unlabelled`)."""
        raise DataError(f"pictures without masks have no split {split!r}; name their folder.")

    def require_distinct(self, fingerprints: Mapping[str, str]) -> None:
        """Raise DataError where two files hold the same picture, byte for byte.

        It would count twice as if it told something new, in averages and in certificates.
        """
        first: dict[str, str] = {}
        # Of tiles the last one tells: pictures that are equal have equal ones.
        pictures = dict(
            zip(map(self.image_id, range(len(self))), fingerprints.values(), strict=True)
        )
        for image_id, fingerprint in pictures.items():
            known = first.setdefault(fingerprint, image_id)
            if known != image_id:
                copies = len(pictures) - len(set(pictures.values()))
                raise DataError(
                    f"{self.where}: {self._files[known]} and {self._files[image_id]} are the same "
                    f"picture ({copies} such copies); remove one of them."
                )

    def judged(self, index: int) -> Pair:
        """Class 0 stands for what the final exit will say, and void where nothing counts."""
        (image_HW3, mask_HW), frame = self._framed(index)
        stand_in_HW = mask_HW.copy()
        stand_in_HW[frame.core.slices] = 0
        return image_HW3, stand_in_HW

    def _shape(self, image_id: str) -> tuple[int, int]:
        return image_shape(self._files[image_id])

    def _load(self, image_id: str) -> Pair:
        image_HW3 = read_image(self._files[image_id])
        return image_HW3, np.full(image_HW3.shape[:2], VOID, np.uint8)

    def _content(self, image_id: str) -> Iterable[bytes | Path]:
        yield self._files[image_id]


def open_unlabelled(folder: Path, classes: ClassTable, size: tuple[int, int]) -> Unlabelled:
    """The pictures in `folder` and the folders below it, in the order of their paths.

    Hidden files and folders are no part of it. Raises DataError where there is no picture, or two
    would have the same id.
    """
    kinds = ", ".join(IMAGE_SUFFIXES)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; --images names one that holds pictures ({kinds}).")
    where = f"folder {folder}"
    files: dict[str, Path] = {}
    others: list[Path] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if path.is_dir() or path.suffix.lower() not in IMAGE_SUFFIXES:
            # A link to a folder may lead back to this one, so it is not followed, but told.
            others += [path] if path.is_symlink() or not path.is_dir() else []
            continue
        image_id = inside.with_suffix("").as_posix()
        if image_id in files:
            raise DataError(
                f"{where}: {files[image_id]} and {path} share the id {image_id!r}; remove or "
                "rename one."
            )
        files[image_id] = path
    if not files:
        held = f"{len(others)} other file{'' if len(others) == 1 else 's'}"
        raise DataError(f"{where} has no pictures ({kinds}) and {held}; name another folder.")
    return Unlabelled(where=where, files=files, others=others, classes=classes, size=size)
