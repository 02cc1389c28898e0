"""Which numbers or colours in the files of masks stand for which class, and which for none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.common.images import read_mask_colors, read_mask_values
from mess.common.metrics import VOID
from mess.errors import DataError

_SURVEYED = 500
"""Most masks that are read to tell how often a value occurs."""

_LISTED = 8


class _Unknown(NamedTuple):
    """A value that is nothing's, as in `MaskEncoding.raw`, and where it occurs."""

    value: int
    pixels: float
    """Share of the pixels."""
    files: int


@dataclass(frozen=True, kw_only=True)
class MaskEncoding:
    """What the masks of a data set hold. Colours are numbers, too: 65536 red + 256 green + blue.

    values: those of each class, in the order of the ids.
    void: those of pixels that belong to no class.
    in_colors: whether they are colours.
    ignore_index: of masks that hold the ids of the classes, what is void in them beside 255.
    """

    values: tuple[tuple[int, ...], ...]
    void: tuple[int, ...]
    in_colors: bool = False
    ignore_index: int | None = None

    @classmethod
    def of_ids(cls, num_classes: int, ignore_index: int = VOID) -> MaskEncoding:
        """Masks that hold the ids of the classes; 255 and `ignore_index` are void."""
        return cls(
            values=tuple((class_id,) for class_id in range(num_classes)),
            void=tuple(sorted({ignore_index, VOID})),
            ignore_index=ignore_index,
        )

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Class ids of a mask, shape (H, W), uint8, void as 255.

        Raises DataError for a file that cannot be read, and UnknownValueError.
        """
        raw_HW, table = self.raw(path), _table(self)
        if raw_HW.dtype == np.uint8:
            # Several times faster than looking up by numpy, and most masks are such.
            content = raw_HW.tobytes()
            if content.translate(None, table.known_bytes):
                raise UnknownValueError(f"mask {path} holds a value that is no class's.")
            ids = np.frombuffer(content.translate(table.byte_ids), np.uint8)
            return ids.reshape(raw_HW.shape)
        ids_HW = self.ids_of(raw_HW)
        if ids_HW.max(initial=0) > VOID:
            raise UnknownValueError(f"mask {path} holds a value that is no class's.")
        return ids_HW.astype(np.uint8)

    def raw(self, path: Path) -> NDArray[Any]:
        """The numbers in a mask file, shape (H, W)."""
        if not self.in_colors:
            return read_mask_values(path)
        colors_HW3 = read_mask_colors(path).astype(np.int32)
        return colors_HW3 @ np.array([1 << 16, 1 << 8, 1], np.int32)

    def ids_of(self, raw_HW: NDArray[Any]) -> NDArray[np.uint16]:
        """Class ids of such numbers, 255 for void and 256 for what is neither; shape (H, W)."""
        table = _table(self)
        if table.ids is None:
            at = np.searchsorted(table.values, raw_HW).clip(max=len(table.values) - 1)
            return np.where(table.values[at] == raw_HW, table.value_ids[at], np.uint16(VOID + 1))
        # What is below or above the known ones comes upon the ends, which are unknown.
        return table.ids.take(raw_HW.astype(np.int64) - (table.first - 1), mode="clip")

    def shown(self, value: int) -> str:
        """A number or colour as it is written in classes.json."""
        if not self.in_colors:
            return str(value)
        return f"[{value >> 16}, {value >> 8 & 255}, {value & 255}]"

    def fingerprint(self) -> bytes:
        """What makes the same file another mask."""
        if self.ignore_index is not None:
            return bytes([self.ignore_index])
        return json.dumps([self.in_colors, self.values, self.void]).encode()


class _Table(NamedTuple):
    """The class ids of values: of all known ones, and by position from `first` - 1 on."""

    values: NDArray[np.int64]
    """Sorted."""
    value_ids: NDArray[np.uint16]
    first: int
    ids: NDArray[np.uint16] | None
    """With an unknown one at both ends; None where that would be too long."""
    known_bytes: bytes
    byte_ids: bytes
    """Of 0..255; whatever for those that are not known."""


# Not in the encoding itself, which is copied to data-loading workers.
@lru_cache(maxsize=8)
def _table(encoding: MaskEncoding) -> _Table:
    known = {value: number for number, values in enumerate(encoding.values) for value in values}
    known |= dict.fromkeys(encoding.void, VOID)
    values = np.array(sorted(known), np.int64)
    value_ids = np.array([known[value] for value in values.tolist()], np.uint16)
    first, last = int(values[0]), int(values[-1])
    ids = None
    if last - first < 1 << 24:
        ids = np.full(last - first + 3, VOID + 1, np.uint16)
        ids[values - first + 1] = value_ids
    return _Table(
        values=values, value_ids=value_ids, first=first, ids=ids,
        known_bytes=bytes(value for value in known if 0 <= value <= 255),
        byte_ids=bytes(known.get(value, VOID) for value in range(256)),
    )  # fmt: skip


class UnknownValueError(DataError):
    """A mask with a value or colour that is of no class and not void."""


def unknown_values(encoding: MaskEncoding, masks: Sequence[Path]) -> str:
    """What masks hold that `encoding` does not know, most frequent first, in a sentence.

    Of many masks some are read, spread evenly, the first always. Masks that cannot be read are
    passed over.
    """
    step = -(-len(masks) // _SURVEYED)
    surveyed = masks[::step]
    found = _survey(encoding, surveyed)
    what = "colours" if encoding.in_colors else "values"
    listed = ", ".join(
        f"{encoding.shown(each.value)} ({_percent(each.pixels)} of the pixels, in {each.files} of "
        f"{len(surveyed)} masks)"
        for each in found[:_LISTED]
    )
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"masks hold {what} that are no class's and not void: {listed}{more}."


def _survey(encoding: MaskEncoding, masks: Iterable[Path]) -> list[_Unknown]:
    pixels, files, total = Counter[int](), Counter[int](), 0
    for path in masks:
        try:
            raw_HW = encoding.raw(path)
        except DataError:
            continue
        total += raw_HW.size
        strange = raw_HW[encoding.ids_of(raw_HW) > VOID]
        values, counts = np.unique(strange, return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        files.update(values.tolist())
    return [_Unknown(value, count / total, files[value]) for value, count in pixels.most_common()]


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"
