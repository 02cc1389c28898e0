"""Images that are nearly identical, such as frames of one video, in groups that are to be apart.

Images are compared by their thumbnails: the mean square of what differs, as a share of the sum of
both thumbnails' variances. Measured where groups are known: from one frame of CamVid's `val` to the
next (15 a second) it is 0.0013 in the middle and at most 0.0084; in 50,116 pairs of frames from
different sequences, all of them street scenes, it is at least 0.060; between aligned faces of
different people (scikit-image's) at least 0.054; between microscope images (Data Science Bowl 2018)
at least 0.29, but for one pair that shows the same field. 0.02 lies between. Of frames a second
apart (CamVid's `train` and `test`) it finds a third: that it finds none proves nothing. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from mess.cache.predictions.store import Snapshot
from mess.config import DataConfig
from mess.runs.groups import group_names, image_ids_of
from mess.search.guarantees.groups import Groups

_NEARLY = 0.02
"""Mean square difference of nearly identical thumbnails, as a share of the sum of their variances.
"""

_APART = 4_000
"""Of more images those are compared that are at most so far apart in the order of their ids."""

_ROWS = 256
"""Images that are compared with the others at once."""


class NearIdentical(TypedDict):
    """Images that have a nearly identical one where there should be none, as result.json tells it.

    images: how many, counted by tiles where they are cut into tiles; pair: the ids of two.
    suggested: a regular expression for `data.groups` that keeps them together, `groups` how many
        groups it makes; null where the ids suggest none.
    """

    images: int
    pair: list[str]
    suggested: str | None
    groups: int | None


class Thumbnails(NamedTuple):
    """Those of some images, shape (I, pixels), with the images' ids.

    image_of: of each item, which image it is or is a tile of; shape (items,).
    """

    ids: list[str]
    levels_IP: NDArray[np.uint8]
    image_of: NDArray[np.intp]

    @classmethod
    def of(cls, data: DataConfig, ids: Sequence[str], thumbnails: Sequence[bytes]) -> Self:
        """Of items by their ids, each with the thumbnail of its whole image, row by row."""
        images = image_ids_of(data, ids)
        levels = dict(zip(images, thumbnails, strict=True))
        place = {image_id: index for index, image_id in enumerate(levels)}
        return cls(
            list(levels),
            np.frombuffer(b"".join(levels.values()), dtype=np.uint8).reshape(len(levels), -1),
            np.array([place[image_id] for image_id in images], dtype=np.intp),
        )


def thumbnails_of(cache: Snapshot, data: DataConfig) -> Thumbnails | None:
    """Thumbnails of a cache's images; None where any is missing."""
    found = [row.get("thumbnail") for row in cache.images]
    known = [thumbnail for thumbnail in found if thumbnail is not None]
    if len(known) < len(found):
        return None
    return Thumbnails.of(data, list(cache.image_fingerprints), known)


def in_other_groups(seen: Thumbnails | None, groups: Groups) -> NearIdentical | None:
    """Images with a nearly identical one in another group; None without thumbnails.

    groups: of the items. `images` is 0 and `pair` empty where there are none.
    """
    if seen is None:
        return None
    group_I = np.empty(len(seen.ids), dtype=groups.of_image.dtype)
    # Tiles of an image are in one group.
    group_I[seen.image_of] = groups.of_image
    nearest = nearest_elsewhere(seen.levels_IP, group_I, seen.ids)
    return _told(seen.ids, nearest, seen.image_of)


def among_searched(fresh: Thumbnails | None, searched: Thumbnails | None) -> NearIdentical | None:
    """Fresh images nearly identical to a searched one; `pair` has the fresh one first.

    None where either has no thumbnails.
    """
    if fresh is None or searched is None:
        return None
    ids = [*fresh.ids, *searched.ids]
    side = np.repeat([0, 1], [len(fresh.ids), len(searched.ids)])
    levels_IP = np.concatenate([fresh.levels_IP, searched.levels_IP])
    return _told(ids, nearest_elsewhere(levels_IP, side, ids), fresh.image_of)


def nearest_elsewhere(
    thumbnails_IP: NDArray[np.uint8], group_I: NDArray[np.integer], ids: Sequence[str]
) -> NDArray[np.intp]:
    """Of each image the nearest of another group, if nearly identical to it; else -1. Shape (I,).

    Of more than `_APART` images neighbours in the order of their ids alone are compared: frames of
    a video follow each other there.
    """
    order = np.array(sorted(range(len(ids)), key=lambda index: ids[index]), dtype=np.intp)
    # Exactly whole numbers below 2^24, which float32 holds: 64 products of two bytes.
    levels = thumbnails_IP[order].astype(np.float32)
    squares = np.square(levels).sum(axis=1)
    spreads = (levels.shape[1] * levels.var(axis=1, dtype=np.float64)).astype(np.float32)
    groups, found = group_I[order], np.full(len(order), -1, dtype=np.intp)
    for start in range(0, len(order), _ROWS):
        rows = slice(start, min(start + _ROWS, len(order)))
        others = slice(max(0, start - _APART), min(len(order), start + _ROWS + _APART))
        differ = squares[rows, None] + squares[others] - 2 * levels[rows] @ levels[others].T
        # At least one grey level: even images without any contrast differ by whole ones.
        differ /= np.maximum(spreads[rows, None] + spreads[others], 1)
        differ[groups[rows, None] == groups[others]] = np.inf
        nearest = differ.argmin(axis=1)
        near = differ[np.arange(len(nearest)), nearest] <= _NEARLY
        found[rows] = np.where(near, nearest + others.start, -1)
    out = np.full(len(order), -1, dtype=np.intp)
    out[order] = np.where(found >= 0, order[found], -1)
    return out


def suggested_groups(ids: Sequence[str], alike: Sequence[tuple[str, str]]) -> str | None:
    """A regular expression on ids that keeps images together which are alike; None where none does.

    Of those that do, the one that makes the most groups: a part of the id before a separator, or
    before the digits that end it.
    """
    best: tuple[int, str] | None = None
    for pattern in _PATTERNS:
        names = group_names(re.compile(pattern), ids)
        if not all(names):
            continue
        group = dict(zip(ids, names, strict=True))
        together = sum(group[one] == group[other] for one, other in alike)
        count = len(set(names))
        # A pair or two may be alike by chance.
        if together >= 0.9 * len(alike) and (best is None or count > best[0]):
            best = count, pattern
    return best[1] if best else None


_PATTERNS = (
    *(rf"^(.*){separator}[0-9]+$" for separator in "_-"),
    "^(.*?)[0-9]+$",
    *(rf"^(.*){separator}[^{separator}]*$" for separator in ("_", "-", r"\.", "/")),
    *(rf"^([^{separator}]*){separator}" for separator in ("_", "-", r"\.", "/")),
)


def _told(
    ids: Sequence[str], nearest: NDArray[np.intp], image_of: NDArray[np.intp]
) -> NearIdentical:
    """Of the items that `image_of` knows, those of images that have one; images by their ids."""
    images = int(image_of.max()) + 1
    near = [(i, int(other)) for i, other in enumerate(nearest[:images]) if other >= 0]
    alike = [(ids[one], ids[other]) for one, other in near]
    if not alike:
        return {"images": 0, "pair": [], "suggested": None, "groups": None}
    pattern = suggested_groups(ids, alike)
    groups = None if pattern is None else len(set(group_names(re.compile(pattern), ids)))
    return {
        "images": int((nearest[image_of] >= 0).sum()),
        "pair": list(alike[0]),
        "suggested": pattern,
        "groups": groups,
    }
