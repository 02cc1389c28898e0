"""Whether the pairs of a cache are whole, how many there are, and which of their files can go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mess.cache.content import Verification, find_parts, parquet_files, size_of
from mess.cache.pairs.store import (
    PairPart,
    PairStore,
    describe_pair_part,
    has_its_rows,
    open_pair_part,
    read_signals,
)
from mess.common.files import is_abandoned
from mess.errors import CacheError

_ROUNDING = 1 + 2.0**-20
"""Of a sum of float64 stored as float32, generously."""


def verify_pairs(store: PairStore, classes: int) -> Verification:
    """Look at every part: checksums, rows, and signals that cannot be with so many classes.

    A part whose exits or images are no longer what they were is no fault.
    """
    paths = parquet_files(store.parts_folder)
    rows = 0
    faults: list[str] = []
    for path in paths:
        try:
            part = open_pair_part(path)
            found = list(_faults(part, classes))
            rows += int(np.prod(part.shape))
        except CacheError as error:
            faults.append(str(error))
            continue
        faults += [f"{path}: {fault}; `mess cache prune` deletes it." for fault in found]
    return Verification(len(paths), rows, size_of(paths), tuple(faults))


def pair_bytes(store: PairStore) -> int:
    """What the parts take up."""
    return size_of(parquet_files(store.parts_folder))


def count_pairs(store: PairStore, exits: Mapping[str, str], images: Mapping[str, str]) -> int:
    """Pairs with a signal for every image, by what the parts say of themselves.

    Raises CacheError that names a part which cannot be read.
    """
    held = _held(exits, images)
    for path in find_parts(store.parts_folder):
        part = describe_pair_part(path)
        if part is not None:
            held[part.signal][part.current(exits, images)[1]] = True
    return sum(int(np.count_nonzero(held_EEI.all(axis=2))) for held_EEI in held.values())


def unneeded_pairs(
    store: PairStore,
    exits: Mapping[str, str] | None,
    images: Mapping[str, str],
    classes: int,
) -> list[Path]:
    """Files that nothing reads: abandoned, damaged, not current, or with others' signals alone.

    `exits` is None where nothing tells what is current: then only the first.
    """
    files = {path for path in store.parts_folder.glob(".part.*") if is_abandoned(path)}
    if exits is None:
        return sorted(files)
    parts: list[PairPart] = []
    for path in parquet_files(store.parts_folder):
        try:
            part = open_pair_part(path)
            if not any(_faults(part, classes)):
                parts.append(part)
                continue
        except CacheError:
            pass
        files.add(path)
    held = _held(exits, images)
    # The largest first, so that the small ones that repeat it are what goes.
    for part in sorted(parts, key=lambda part: -np.prod(part.shape)):
        there = part.current(exits, images)[1]
        # Of a part with nothing current `there` is empty, and `all` of nothing is true.
        if held[part.signal][there].all():
            files.add(part.path)
        held[part.signal][there] = True
    return sorted(files)


def _faults(part: PairPart, classes: int) -> Iterator[str]:
    """What cannot be true of a part."""
    signal_BAI = read_signals(part)
    if not has_its_rows(part):
        yield "the rows are not those that the file says it holds"
    if not np.isfinite(signal_BAI).all():
        yield "a signal is not a number"
    if (signal_BAI > 0).any():
        yield "a signal is above 0"
    # H(a|b) and H(b|a) are at most log2 of the number of classes each.
    least = -2 * np.log2(classes)
    if (signal_BAI < least * _ROUNDING).any():
        yield f"a signal is below {least:.3f}, which {classes} classes cannot give"


def _held(
    exits: Mapping[str, str], images: Mapping[str, str]
) -> defaultdict[str, NDArray[np.bool_]]:
    """By signal, which [a, b, image] there are: none yet."""
    return defaultdict(lambda: np.zeros((len(exits), len(exits), len(images)), np.bool_))
