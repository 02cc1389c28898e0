"""Parts of a cache as files: their name is their content."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mess.common.files import CONTENT_DIGITS, sha256
from mess.errors import CacheError

STEM, SUFFIX = "part", ".parquet"

_NAME = re.compile(rf"{STEM}-([0-9a-f]{{{CONTENT_DIGITS}}}){re.escape(SUFFIX)}")


def find_parts(folder: Path) -> list[Path]:
    """Files in `folder` that are named like parts, in the order of their names."""
    return [path for path in parquet_files(folder) if _NAME.fullmatch(path.name)]


def parquet_files(folder: Path) -> list[Path]:
    """What someone who reads `folder` as a data set takes for parts, in the order of the names."""
    return sorted(folder.glob("*.parquet"))


@dataclass(frozen=True)
class Verification:
    """What was looked at, and one sentence for each fault."""

    parts: int
    rows: int
    bytes: int
    faults: tuple[str, ...]

    def __add__(self, other: Verification) -> Verification:
        return Verification(
            self.parts + other.parts,
            self.rows + other.rows,
            self.bytes + other.bytes,
            self.faults + other.faults,
        )


def size_of(paths: Iterable[Path]) -> int:
    """Bytes that files take up."""
    return sum(path.stat().st_size for path in paths)


def remedy(cache: Path) -> str:
    """The command that brings the cache RUN/cache/NAME up to date."""
    name = "" if cache.name == "calibration" else f" --name {shlex.quote(cache.name)}"
    return f"`mess memoise{name} --run {shlex.quote(str(cache.parent.parent))}`"


def require_whole(path: Path, again: str) -> None:
    """Raise CacheError, which ends with `again`, where a part is not what its name says."""
    match = _NAME.fullmatch(path.name)
    try:
        digits = sha256(path)[:CONTENT_DIGITS]
    except FileNotFoundError:
        raise CacheError(f"{path} is gone. {again}") from None
    # The digits in the name are the only checksum: nothing beside a part has to be right.
    if match is None or digits != match[1]:
        raise CacheError(f"{path} was altered or cut short. {again}")


def repeated_strings(index: NDArray[np.intp], values: Sequence[str]) -> pa.Array:
    """The values at each index, as a column."""
    # Arrow repeats the strings; a list of one Python string a row would be made first otherwise.
    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(values, pa.string())).cast(
        pa.string()
    )


def matches(
    own: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions in `own` and in `wanted` of the ids that have the same fingerprint in both."""
    position = {name: index for index, name in enumerate(wanted)}
    pairs = [
        (index, position[name])
        for index, (name, fingerprint) in enumerate(own.items())
        if wanted.get(name) == fingerprint
    ]
    # Without a pair numpy has no second axis to tell.
    both = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return both[:, 0], both[:, 1]
