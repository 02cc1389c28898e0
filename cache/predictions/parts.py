"""Parts of a prediction cache: Parquet files that are named by their content.

A part holds some exits' rows for some images, image by image, and in the file's metadata what they
were computed from. Nothing but the parts has to be right for work to go on after a kill: an altered
or truncated one is known by its name, and writers cannot overwrite each other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mess.cache.content import STEM, SUFFIX, remedy, repeated_strings, require_whole
from mess.cache.parquet import read_facts, read_table, write_table
from mess.cache.schema import PREDICTIONS, PREDICTIONS_OF, SCHEMA_VERSION
from mess.common.files import write_named_by_content
from mess.errors import CacheError

Maps = NDArray[np.object_]
"""Compressed maps as bytes, or None."""


_REPEATING = ("exit_id", "image_id", "signals.list.element")
"""Columns with a dictionary: that of counts would take more room than the counts."""


@dataclass(frozen=True, kw_only=True)
class PartRows:
    """Rows of I images × E exits: C classes, K signals."""

    images: tuple[str, ...]
    exits: tuple[str, ...]
    signal_names: tuple[str, ...]
    intersection: NDArray[np.int32]
    """(I, E, C)."""
    predicted: NDArray[np.int32]
    """(I, E, C)."""
    agreement: NDArray[np.int32]
    """(I, E)."""
    lost: NDArray[np.int32]
    """(I, E)."""
    signals: NDArray[np.float32]
    """(I, E, K)."""
    label_map: Maps
    """(I, E)."""
    confidence_map: Maps
    """(I, E)."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part on disk: whose rows it holds, and the fingerprints of what they were computed from."""

    path: Path
    schema_version: int
    exits: Mapping[str, str]
    images: Mapping[str, str]
    signal_names: tuple[str, ...]
    label_maps: bool
    confidence_maps: tuple[str, ...]
    """Exits that have them."""


def write_part(
    folder: Path, rows: PartRows, exits: Mapping[str, str], images: Mapping[str, str]
) -> Path:
    """Write a part atomically; `exits` and `images` give the fingerprints of all ids."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "exits": {exit_id: exits[exit_id] for exit_id in rows.exits},
        "images": {image_id: images[image_id] for image_id in rows.images},
        "signal_names": rows.signal_names,
        # A part has maps where every row does, so that no reader has to look at single rows.
        "label_maps": None not in rows.label_map.ravel().tolist(),
        "confidence_maps": [
            exit_id
            for exit_id, column in zip(rows.exits, rows.confidence_map.T, strict=True)
            if None not in column.tolist()
        ],
    }
    return write_named_by_content(
        folder, STEM, SUFFIX, lambda path: write_table(path, _table(rows), facts, _REPEATING)
    )


def open_part(path: Path) -> Part:
    """What a part is of; raises CacheError where its content is not what its name says."""
    again = f"Run {remedy(path.parent.parent)} to compute it again; the rest of the cache stays."
    require_whole(path, again)
    part = describe_part(path)
    if part is None:
        raise CacheError(f"{path} is of another version of mess. {again}")
    return part


def describe_part(path: Path) -> Part | None:
    """What a part says it is of, its content unchecked; None from another version."""
    facts = read_facts(path)
    if facts.get("schema_version") not in PREDICTIONS_OF:
        return None
    facts["signal_names"] = tuple(facts["signal_names"])
    facts["confidence_maps"] = tuple(facts["confidence_maps"])
    return Part(path=path, **facts)


_COUNTS = ("intersection", "predicted", "agreement", "lost", "signals")


def read_counts(part: Part, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Some of the numbers, or all that the part has, as in `PartRows`."""
    schema = PREDICTIONS_OF[part.schema_version]
    names = [name for name in _COUNTS if name in schema.names] if names is None else names
    table = read_table(part.path, schema, names)
    rows = len(part.images), len(part.exits)
    counts = {}
    for name in names:
        # Rows need no sorting: `_table` writes them image by image, in the order of the facts.
        values = _values(table[name])
        counts[name] = values.reshape(*rows, values.size // (rows[0] * rows[1]))
    # One number a row, not a list of them.
    return {n: v[:, :, 0] if n in ("agreement", "lost") else v for n, v in counts.items()}


def read_maps(part: Part, column: str) -> Maps:
    """`label_map` or `confidence_map` as in `PartRows`."""
    schema = PREDICTIONS_OF[part.schema_version]
    maps = read_table(part.path, schema, [column])[column].to_pylist()
    # Without dtype object numpy makes bytes strings of one width, which lose their last zeros.
    out = np.empty(len(maps), dtype=np.object_)
    out[:] = maps
    return out.reshape(len(part.images), len(part.exits))


def read_rows_of(part: Part) -> PartRows:
    """Everything in a part of the current version."""
    return PartRows(
        images=tuple(part.images),
        exits=tuple(part.exits),
        signal_names=part.signal_names,
        **read_counts(part),
        label_map=read_maps(part, "label_map"),
        confidence_map=read_maps(part, "confidence_map"),
    )


def excerpt(
    rows: PartRows, images: Sequence[str], exits: Sequence[str], signal_names: Sequence[str]
) -> PartRows:
    """Some of the rows, with some of the signals."""
    block = np.ix_([rows.images.index(i) for i in images], [rows.exits.index(e) for e in exits])
    signals = [rows.signal_names.index(name) for name in signal_names]
    return PartRows(
        images=tuple(images),
        exits=tuple(exits),
        signal_names=tuple(signal_names),
        intersection=rows.intersection[block],
        predicted=rows.predicted[block],
        agreement=rows.agreement[block],
        lost=rows.lost[block],
        signals=rows.signals[block][:, :, signals],
        label_map=rows.label_map[block],
        confidence_map=rows.confidence_map[block],
    )


def row_ids(part: Part) -> Iterator[tuple[str, str]]:
    """Image and exit of every row, as the rows themselves say."""
    table = read_table(part.path, PREDICTIONS_OF[part.schema_version], ["image_id", "exit_id"])
    yield from zip(table["image_id"].to_pylist(), table["exit_id"].to_pylist(), strict=True)


def _table(rows: PartRows) -> pa.Table:
    images, exits = len(rows.images), len(rows.exits)
    image_I, exit_E = np.repeat(np.arange(images), exits), np.tile(np.arange(exits), images)
    columns = {
        "exit_id": repeated_strings(exit_E, rows.exits),
        "image_id": repeated_strings(image_I, rows.images),
        "intersection": _lists(rows.intersection, "intersection"),
        "predicted": _lists(rows.predicted, "predicted"),
        "agreement": pa.array(rows.agreement.ravel(), pa.int32()),
        "lost": pa.array(rows.lost.ravel(), pa.int32()),
        "signals": _lists(rows.signals, "signals"),
        "label_map": pa.array(rows.label_map.ravel().tolist(), pa.binary()),
        "confidence_map": pa.array(rows.confidence_map.ravel().tolist(), pa.binary()),
    }
    return pa.table(columns, schema=PREDICTIONS)


def _lists(values: NDArray[Any], column: str) -> pa.Array:
    """Rows of the last axis as lists."""
    kind = PREDICTIONS.field(column).type
    # int32 is what a list array takes: 2^31 numbers a column and part, far above 32 images' rows.
    offsets = np.arange(0, values.size + 1, values.shape[-1] or 1, dtype=np.int32)
    if not values.shape[-1]:
        # No signals: every row has an empty list all the same.
        offsets = np.zeros(values.shape[0] * values.shape[1] + 1, dtype=np.int32)
    flat = pa.array(np.ascontiguousarray(values).ravel(), kind.value_type)
    # With the type: Arrow would call the lists' child "item", and the schema's is "element".
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind)


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    """All numbers of a column, those of lists one list after the other."""
    array = column.combine_chunks()
    return (array.flatten() if pa.types.is_list(array.type) else array).to_numpy()
