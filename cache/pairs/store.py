"""Signals of pairs of exits: parts in CACHE/pairs, filled on demand.

A part holds a block, some exits b after some exits a, and for each pair some images. As with
predictions, its name is its content, and its metadata says what the signals were computed from: a
signal stays true as long as the fingerprints of both exits and of the image do. What is missing,
stale or damaged is not there, and whoever needs it computes it; so no manifest has to be right.

Shapes: E exits, I images; a block has A exits a, B exits b.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mess.cache.content import STEM, SUFFIX, find_parts, matches, repeated_strings, require_whole
from mess.cache.parquet import read_facts, read_table, write_table
from mess.cache.schema import PAIRS, PAIRS_VERSION
from mess.common.files import write_named_by_content
from mess.errors import CacheError

_IDS = ("exit_a", "exit_b", "image_id")

_AGAIN = "A search that needs it computes it again, and `mess cache prune` deletes it."


@dataclass(frozen=True, kw_only=True)
class PairBlock:
    """Signals of every exit b after every exit a, for some images."""

    exits_a: tuple[str, ...]
    exits_b: tuple[str, ...]
    images: tuple[str, ...]
    signal_BAI: NDArray[np.float32]
    """At most 0, larger means leave."""


@dataclass(frozen=True, kw_only=True)
class PairPart:
    """A block on disk, with the fingerprints of what it was computed from."""

    path: Path
    signal: str
    exits_a: Mapping[str, str]
    exits_b: Mapping[str, str]
    images: Mapping[str, str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, A, I)."""
        return len(self.exits_b), len(self.exits_a), len(self.images)

    def current(
        self, exits: Mapping[str, str], images: Mapping[str, str]
    ) -> tuple[tuple[NDArray[np.intp], ...], tuple[NDArray[np.intp], ...]]:
        """What is still what it was computed from: [b, a, image] here, [a, b, image] there.

        Both are for indexing, the part's (B, A, I) and (E, E, I) of `exits` and `images`; a block
        of the one is of the other once its first two axes are swapped.
        """
        here_a, there_a = matches(self.exits_a, exits)
        here_b, there_b = matches(self.exits_b, exits)
        here_i, there_i = matches(self.images, images)
        return np.ix_(here_b, here_a, here_i), np.ix_(there_a, there_b, there_i)


class PairStore:
    """Signals of pairs in the cache in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def parts_folder(self) -> Path:
        return self.directory / "pairs"

    def read(
        self, signal: str, exits: Mapping[str, str], images: Mapping[str, str]
    ) -> NDArray[np.float32]:
        """The signals by exit a, exit b and image, (E, E, I); NaN where none is stored or current.

        `exits` and `images` give fingerprints by id, in the order of the axes. Damaged parts are
        passed over.
        """
        signal_EEI = np.full((len(exits), len(exits), len(images)), np.nan, np.float32)
        for path in find_parts(self.parts_folder):
            try:
                part = open_pair_part(path)
                if part.signal != signal:
                    continue
                here, there = part.current(exits, images)
                found_ABI = read_signals(part)[here].swapaxes(0, 1)
            except CacheError:
                continue
            # A part may lack numbers that another has, if its writer had a fault.
            # NaN fails `<= 0` as well as what is above 0, which no signal can be.
            signal_EEI[there] = np.where(found_ABI <= 0, found_ABI, signal_EEI[there])
        return signal_EEI

    def write(
        self, signal: str, block: PairBlock, exits: Mapping[str, str], images: Mapping[str, str]
    ) -> Path:
        """Write a part atomically; `exits` and `images` give the fingerprints of all ids."""
        facts = {
            "schema_version": PAIRS_VERSION,
            "signal": signal,
            "exits_a": {exit_id: exits[exit_id] for exit_id in block.exits_a},
            "exits_b": {exit_id: exits[exit_id] for exit_id in block.exits_b},
            "images": {image_id: images[image_id] for image_id in block.images},
        }
        ids = _ids(block.exits_a, block.exits_b, block.images)
        values = pa.array(np.ascontiguousarray(block.signal_BAI).ravel(), pa.float32())
        table = pa.table({**ids, "signal": values}, schema=PAIRS)
        return write_named_by_content(
            self.parts_folder, STEM, SUFFIX, lambda path: write_table(path, table, facts, _IDS)
        )

    def drop_damaged(self) -> None:
        """Delete parts that cannot be used: what they held has been computed."""
        for path in find_parts(self.parts_folder):
            try:
                open_pair_part(path)
            except CacheError:
                path.unlink(missing_ok=True)


def open_pair_part(path: Path) -> PairPart:
    """What a part is of; raises CacheError where its content is not what its name says."""
    require_whole(path, _AGAIN)
    part = describe_pair_part(path)
    if part is None:
        raise CacheError(f"{path} is of another version of mess. {_AGAIN}")
    return part


def describe_pair_part(path: Path) -> PairPart | None:
    """What a part says it is of, its content unchecked; None from another version."""
    facts = read_facts(path)
    if facts.pop("schema_version", None) != PAIRS_VERSION:
        return None
    return PairPart(path=path, **facts)


def read_signals(part: PairPart) -> NDArray[np.float32]:
    """The signals of a part, (B, A, I)."""
    signals = read_table(part.path, PAIRS, ["signal"])["signal"].to_numpy()
    # Their number alone: `has_its_rows` looks at their ids, for those who verify.
    if signals.size != np.prod(part.shape):
        raise CacheError(f"{part.path}: the rows are not those that the file says it holds")
    return signals.reshape(part.shape)


def has_its_rows(part: PairPart) -> bool:
    """Whether the rows of a part are of the pairs and images that it says, in order."""
    table = read_table(part.path, PAIRS, _IDS)
    ids = pa.table(_ids(tuple(part.exits_a), tuple(part.exits_b), tuple(part.images)))
    return all(
        table[name].combine_chunks().equals(ids[name].combine_chunks()) for name in ids.schema.names
    )


def blocks(lacks_EE: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Exits a and exits b, by position, of blocks that together are the pairs [a, b] given."""
    groups: dict[bytes, list[int]] = {}
    for b in np.flatnonzero(lacks_EE.any(axis=0)).tolist():
        # Every exit b of a point lacks the same exits a, those before it: about a block a point.
        groups.setdefault(lacks_EE[:, b].tobytes(), []).append(b)
    for pattern, exits_b in groups.items():
        yield np.flatnonzero(np.frombuffer(pattern, np.bool_)), np.array(exits_b)


def _ids(
    exits_a: tuple[str, ...], exits_b: tuple[str, ...], images: tuple[str, ...]
) -> dict[str, pa.Array]:
    """The columns beside the signals; what repeats longest comes first, to compress well."""
    shape = len(exits_b), len(exits_a), len(images)
    b, a, i = (index.ravel() for index in np.indices(shape))
    return {
        "exit_a": repeated_strings(a, exits_a),
        "exit_b": repeated_strings(b, exits_b),
        "image_id": repeated_strings(i, images),
    }
