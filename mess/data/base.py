"""What every data set offers: ids, classes, images and masks at their own size and at the run's."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mess.common.files import sha256
from mess.common.framing import Frame, Framing
from mess.common.images import PREPROCESSING, resize_image, resize_mask, thumbnail
from mess.common.metrics import VOID
from mess.common.normalisation import IMAGENET
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


class _Tile(NamedTuple):
    """An item that is the n-th frame of an image of some rows and columns."""

    image_id: str
    shape: tuple[int, int]
    number: int


class _Framed(NamedTuple):
    """Image and mask at the run's size, and what they show."""

    pair: Pair
    frame: Frame


@dataclass(frozen=True)
class _Read:
    """Image and mask as they were read last."""

    image_id: str
    pair: Pair

    @cached_property
    def thumbnail(self) -> NDArray[np.uint8]:
        return thumbnail(self.pair[0])


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
        self.classes = classes
        self.size = size
        self._framing = Framing(size=size)
        self._fill = IMAGENET.fill
        self._enlarged = 1.0
        self._tiles: dict[str, _Tile] = {}
        self.others: Sequence[Path] = ()
        """Files that lie with the images and are left out: none of them by its name or place."""
        self._consist_of(ids, where)

    def _consist_of(self, ids: Sequence[str], where: str) -> None:
        """Take these for all there is, with nothing of them in memory."""
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
        self._forget()

    def _forget(self) -> None:
        self._memory: dict[str, _Framed] = {}
        self._sources: dict[str, tuple[Pair, tuple[int, int]]] = {}
        self._memory_bytes = 0
        self._last: _Read | None = None

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

    def _load_mask(self, image_id: str) -> NDArray[np.uint8]:
        """The mask alone, unchecked; subclasses that have it apart need not load the image."""
        return self._load(image_id)[1]

    def _shape(self, image_id: str) -> tuple[int, int]:
        """Rows and columns of an image; subclasses that know them need not read it."""
        return self._load(image_id)[1].shape

    def __len__(self) -> int:
        return len(self.ids)

    def framed(self, config: DataConfig) -> Self:
        """The same data, its images brought to `size` as `config` says.

        In tiles, each one is an item of its own, called IMAGE@ROW-COLUMN.
        """
        part = copy.copy(self)
        part._framing, part._fill = config.framing, config.normalisation.fill
        part._enlarged = max(config.scale[1], 1.0)
        part._forget()
        if part._framing.tiles:
            part._tiles = {
                f"{image_id}@{frame.tile[0]}-{frame.tile[1]}": _Tile(image_id, shape, number)
                for image_id in self.ids
                for shape in [self._shape(image_id)]
                for number, frame in enumerate(part._framing.frames(shape))
            }
            part._consist_of(list(part._tiles), self.where)
        return part

    def image_id(self, index: int) -> str:
        """Of the image that an item is, or is a tile of."""
        item = self.ids[index]
        return self._tiles[item].image_id if self._framing.tiles else item

    @property
    def image_ids(self) -> list[str]:
        """Of the images, each once, in whatever tiles they are."""
        return list(dict.fromkeys(map(self.image_id, range(len(self)))))

    def masks(self) -> Iterator[NDArray[np.uint8]]:
        """The mask of each of `image_ids`, (H, W), uint8, at its own size.

        Images are not read where masks lie apart. Raises DataError for a mask that cannot be read
        and for values outside the classes.
        """
        for image_id in self.image_ids:
            mask_HW = self._load_mask(image_id)
            self._require_known(image_id, mask_HW)
            yield mask_HW

    def read(self, index: int) -> Pair:
        """Image (H, W, 3) and mask (H, W), uint8, at their own size; of a tile the whole ones.

        Raises DataError for an unreadable file, sizes that differ and values outside the classes.
        """
        return self._read(index).pair

    def trained(self, index: int) -> tuple[Pair, tuple[int, int]]:
        """What training crops are cut from, read-only, and its height and width in the run.

        A tile, or the whole image without padding: at its own size, or scaled down to what the most
        enlarged crop can show. Kept in memory like `sized`.
        """
        if self._framing.tiles:
            return self._framed(index).pair, self.size
        item = self.ids[index]
        if item not in self._sources:
            pair = self.read(index)
            _, _, height, width = self._frame(item, pair[1].shape).place
            most = (math.ceil(self._enlarged * side) for side in (height, width))
            rows, columns = (min(*sides) for sides in zip(pair[1].shape, most, strict=True))
            pair = resize_image(pair[0], (rows, columns)), resize_mask(pair[1], (rows, columns))
            source = pair, (height, width)
            if not self._may_keep(pair):
                return source
            self._sources[item] = source
        return self._sources[item]

    def sized(self, index: int) -> Pair:
        """Image and mask at `size`, (H, W, 3) and (H, W), uint8, read-only.

        Void is where there is no image, and where a pixel is another tile's to answer. Kept in
        memory up to 256 MiB a process. Nothing is evicted: epochs visit every image once, and a
        cache that forgets the oldest would then miss every time.
        """
        (image_HW3, mask_HW), frame = self._framed(index)
        judged_HW = frame.judged(mask_HW)
        judged_HW.setflags(write=False)
        return image_HW3, judged_HW

    def judged(self, index: int) -> Pair:
        """As `sized`: what answers are held against."""
        return self.sized(index)

    def thumbnail(self, index: int) -> NDArray[np.uint8]:
        """Of the whole image, without padding, by `mess.common.images.thumbnail`; (8, 8)."""
        if self._framing.tiles:
            return self._read(index).thumbnail
        (image_HW3, _), frame = self._framed(index)
        return thumbnail(image_HW3[frame.place.slices])

    def _read(self, index: int) -> _Read:
        image_id = self.image_id(index)
        if self._last is not None and self._last.image_id == image_id:
            return self._last
        image_HW3, mask_HW = self._load(image_id)
        if image_HW3.shape[:2] != mask_HW.shape:
            raise DataError(
                f"{self.where}: image {image_id!r} is {_by(image_HW3.shape)} pixels but its mask "
                f"is {_by(mask_HW.shape)} (height x width); they must match."
            )
        self._require_known(image_id, mask_HW)
        found = _Read(image_id, (image_HW3, mask_HW))
        # Tiles of an image follow one another, so that each image is decoded once.
        self._last = found if self._framing.tiles else None
        return found

    def _require_known(self, image_id: str, mask_HW: NDArray[np.uint8]) -> None:
        limit = self.classes.num_classes
        strange = mask_HW[(mask_HW >= limit) & (mask_HW != VOID)]
        if strange.size:
            raise DataError(
                f"{self.where}: the mask of {image_id!r} has value {int(strange[0])} in "
                f"{strange.size} pixels; class ids are 0..{limit - 1}, and {VOID} is void. "
                "Correct the mask or the class list."
            )

    def _framed(self, index: int) -> _Framed:
        item = self.ids[index]
        if item in self._memory:
            return self._memory[item]
        image_HW3, mask_HW = self.read(index)
        frame = self._frame(item, mask_HW.shape)
        pair = frame.image(image_HW3, self._fill), frame.mask(mask_HW)
        framed = _Framed(pair, frame)
        if self._may_keep(pair):
            self._memory[item] = framed
        return framed

    def _may_keep(self, pair: Pair) -> bool:
        """Whether there is room for these arrays, which are read-only from now on."""
        for array in pair:
            # Handed out again and again: a change would be in every later epoch.
            array.setflags(write=False)
        used = sum(array.nbytes for array in pair)
        if self._memory_bytes + used > _MEMORY_BYTES:
            return False
        self._memory_bytes += used
        return True

    def _frame(self, item: str, shape: tuple[int, int]) -> Frame:
        """What an item shows of its image, which has that shape."""
        frames = self._framing.frames(shape)
        if not self._framing.tiles:
            return frames[0]
        tile = self._tiles[item]
        if tile.shape != shape:
            raise DataError(
                f"{self.where}: image {tile.image_id!r} had {_by(tile.shape)} pixels when its "
                f"tiles were listed, and has {_by(shape)} now. Run the same command again."
            )
        return frames[tile.number]

    def image_fingerprints(
        self, ids: Iterable[str] | None = None, *, hash_file: Callable[[Path], str] = sha256
    ) -> dict[str, str]:
        """By id, of all or some, sha256 (hexadecimal) over size, classes and content.

        Neither dates nor paths have a part in it. `hash_file` gives the sha256 of a file; one that
        remembers need not read it (`mess.common.file_hashes`).
        """
        header = json.dumps(
            [PREPROCESSING, self.size, self.classes.names, *self._framing.fingerprint()]
        ).encode()
        # Tiles of an image are in the same files.
        hash_once = cache(hash_file)

        def digest(part: bytes | Path) -> bytes:
            return bytes.fromhex(hash_once(part) if isinstance(part, Path) else _sha256(part))

        return {
            # Hashing each part first keeps ("ab", "c") apart from ("a", "bc").
            item: _sha256(b"".join(map(digest, (header, *self._content_of(item)))))
            for item in (self.ids if ids is None else ids)
        }

    def _content_of(self, item: str) -> Iterable[bytes | Path]:
        if not self._framing.tiles:
            return self._content(item)
        tile = self._tiles[item]
        return [*self._content(tile.image_id), f"tile {tile.number}".encode()]

    def fingerprint(self) -> str:
        """sha256 (hexadecimal) over the ids and `image_fingerprints`, in order."""
        return fingerprint_of(self.image_fingerprints())

    def select(self, indices: Iterable[int], where: str) -> Self:
        """The same data restricted to `indices`, in that order, named `where` in messages."""
        # Shares what the subclass has read of the whole split, but no memory of images.
        part = copy.copy(self)
        part._consist_of([self.ids[index] for index in indices], where)
        return part

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are spawned read images themselves, rather than receive all of these.
        return {**self.__dict__, "_memory": {}, "_sources": {}, "_memory_bytes": 0, "_last": None}


def image_of(tile_id: str) -> str:
    """The id of the image that a tile is of."""
    return tile_id.rpartition("@")[0]


def fingerprint_of(images: Mapping[str, str]) -> str:
    """Fingerprint of a split whose images have these."""
    return _sha256(json.dumps(list(images.items())).encode())


def generator(seed: int, *key: int) -> np.random.Generator:
    """A generator that depends on `seed` and `key` alone; a negative seed is one too."""
    # A SeedSequence takes no negative numbers; the key keeps what a seed is used for apart.
    return np.random.default_rng(np.random.SeedSequence([seed % 2**64, *key]))


def parted(count: int, share: float) -> tuple[list[int], list[int]]:
    """A fixed random `share` of range(count), one at least, and the rest, each sorted.

    The rest is one at least where there are two. It does not depend on the run's seed: the test
    split of a data set is the same in every run.
    """
    order = generator(0, count).permutation(count).tolist()
    first = max(min(math.floor(share * count + 0.5), count - 1), 1)
    return sorted(order[:first]), sorted(order[first:])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape[:2])
