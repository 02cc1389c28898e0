"""What every data set offers: ids, classes, images and masks at their own size and at the run's."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mess.common.files import sha256
from mess.common.images import PREPROCESSING, resize_image, resize_mask
from mess.common.metrics import VOID
from mess.config import DataConfig
from mess.errors import DataError

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]

_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Names and display colours of the classes, in the order of their ids 0..C-1."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    """RGB, each in 0..255."""
    ignore_index: int = VOID

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        """The content of a classes.json (see the folder data set)."""
        classes = [
            {"id": number, "name": name, "color": list(color)}
            for number, (name, color) in enumerate(zip(self.names, self.colors, strict=True))
        ]
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "classes": classes,
        }


class SegmentationData(ABC):
    """One split of a data set: a list of images with their masks, read on demand.

    Subclasses say how a split is found (`open`), how one image is loaded by its id (`_load`) and
    what identifies its content (`_content`). Everything that is checked is checked here. Objects
    pickle, so that data-loading workers can have their own; arrays are read-only.
    """

    reads_root: ClassVar[bool] = True
    """Whether the images come from `data.root`."""

    def __init__(
        self, *, where: str, ids: Sequence[str], classes: ClassTable, size: tuple[int, int]
    ) -> None:
        """`where` names the split in messages; `size` is the run's (height, width) in pixels."""
        repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
        if repeated:
            raise DataError(
                f"{where} lists image {repeated[0]!r} more than once "
                f"({len(repeated)} such ids); ids are unique, rename or remove the duplicates."
            )
        for image_id in ids:
            try:
                image_id.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"{where} has an image called {image_id!r}, which is not UTF-8; rename it."
                ) from None
        if not ids:
            raise DataError(f"{where} is empty; it needs at least one image with its mask.")
        self.where = where
        self.ids = list(ids)
        self.classes = classes
        self.size = size
        self._memory: dict[str, Pair] = {}
        self._memory_bytes = 0

    @classmethod
    @abstractmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> SegmentationData:
        """The whole split: "train", "calibration" or "test"."""

    @abstractmethod
    def _load(self, image_id: str) -> Pair:
        """Image (H, W, 3) and mask (H, W), both uint8, unchecked."""

    @abstractmethod
    def _content(self, image_id: str) -> Iterable[bytes | Path]:
        """What changes whenever the image or its mask does: bytes, or a file for those in it."""

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Pair:
        """Image (H, W, 3) and mask (H, W), uint8, at their own size.

        Raises DataError for an unreadable file, sizes that differ and values outside the classes.
        """
        image_id = self.ids[index]
        image_HW3, mask_HW = self._load(image_id)
        if image_HW3.shape[:2] != mask_HW.shape:
            raise DataError(
                f"{self.where}: image {image_id!r} is {_by(image_HW3.shape)} pixels but its mask "
                f"is {_by(mask_HW.shape)} (height x width); they must match."
            )
        limit = self.classes.num_classes
        strange = mask_HW[(mask_HW >= limit) & (mask_HW != VOID)]
        if strange.size:
            raise DataError(
                f"{self.where}: the mask of {image_id!r} has value {int(strange[0])} in "
                f"{strange.size} pixels; class ids are 0..{limit - 1}, and {VOID} is void. "
                "Correct the mask or the class list."
            )
        return image_HW3, mask_HW

    def sized(self, index: int) -> Pair:
        """Image and mask rescaled to `size`, (H, W, 3) and (H, W), uint8, read-only.

        Kept in memory up to 256 MiB a process. Nothing is evicted: epochs visit every image once,
        and a cache that forgets the oldest would then miss every time.
        """
        image_id = self.ids[index]
        if image_id in self._memory:
            return self._memory[image_id]
        image_HW3, mask_HW = self.read(index)
        pair = resize_image(image_HW3, self.size), resize_mask(mask_HW, self.size)
        for array in pair:
            # Handed out again and again: a change would be in every later epoch.
            array.setflags(write=False)
        used = sum(array.nbytes for array in pair)
        if self._memory_bytes + used <= _MEMORY_BYTES:
            self._memory[image_id] = pair
            self._memory_bytes += used
        return pair

    def image_fingerprints(
        self, ids: Iterable[str] | None = None, *, hash_file: Callable[[Path], str] = sha256
    ) -> dict[str, str]:
        """By id, of all or some, sha256 (hexadecimal) over size, classes and content.

        Neither dates nor paths have a part in it. `hash_file` gives the sha256 of a file; one that
        remembers need not read it (`mess.common.file_hashes`).
        """
        header = json.dumps([PREPROCESSING, self.size, self.classes.names]).encode()

        def digest(part: bytes | Path) -> bytes:
            return bytes.fromhex(hash_file(part) if isinstance(part, Path) else _sha256(part))

        return {
            # Hashing each part first keeps ("ab", "c") apart from ("a", "bc").
            image_id: _sha256(b"".join(map(digest, (header, *self._content(image_id)))))
            for image_id in (self.ids if ids is None else ids)
        }

    def fingerprint(self) -> str:
        """sha256 (hexadecimal) over the ids and `image_fingerprints`, in order."""
        return fingerprint_of(self.image_fingerprints())

    def select(self, indices: Iterable[int], where: str) -> SegmentationData:
        """The same data restricted to `indices`, in that order, named `where` in messages."""
        # Shares what the subclass has read of the whole split; what the base has is made anew, its
        # memory of images too.
        part = copy.copy(self)
        SegmentationData.__init__(
            part,
            where=where,
            ids=[self.ids[index] for index in indices],
            classes=self.classes,
            size=self.size,
        )
        return part

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are spawned read images themselves, rather than receive all of these.
        return {**self.__dict__, "_memory": {}, "_memory_bytes": 0}


def fingerprint_of(images: Mapping[str, str]) -> str:
    """Fingerprint of a split whose images have these."""
    return _sha256(json.dumps(list(images.items())).encode())


def generator(seed: int, *key: int) -> np.random.Generator:
    """A generator that depends on `seed` and `key` alone; a negative seed is one too."""
    # A SeedSequence takes no negative numbers; the key keeps what a seed is used for apart.
    return np.random.default_rng(np.random.SeedSequence([seed % 2**64, *key]))


def halves(count: int) -> tuple[list[int], list[int]]:
    """A fixed random halving of range(count), each half sorted; the first has the odd one.

    It does not depend on the run's seed: the test split of a data set is the same in every run.
    """
    order = generator(0, count).permutation(count).tolist()
    middle = (count + 1) // 2
    return sorted(order[:middle]), sorted(order[middle:])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape[:2])
