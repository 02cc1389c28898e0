"""Schemas of every Parquet file a run holds; users open them with pandas, DuckDB or Polars."""

from __future__ import annotations

import pyarrow as pa

# Raise it with any change to what a cache's files mean: readers refuse what they do not know.
SCHEMA_VERSION = 3

BEFORE_LOST = 2
"""The version that had no `lost` pixels: it is still read, by all that goes without them."""

PAIRS_VERSION = 2
"""Of signals that compare exits, which changed less."""


def _list(kind: pa.DataType) -> pa.DataType:
    # Parquet renames a list's child to "element"; declaring it keeps the schema equal both ways.
    return pa.list_(pa.field("element", kind, nullable=False))


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


EXITS = pa.schema(
    [
        pa.field("exit_id", pa.string(), nullable=False),
        pa.field("point", pa.int32(), nullable=False),
        pa.field("block", pa.string(), nullable=False),
        pa.field("crm", pa.int32()),
        pa.field("blocks", pa.int32()),
        pa.field("rdi", pa.bool_()),
        pa.field("head", pa.string()),
        pa.field("exit_macs", pa.int64(), nullable=False),
        pa.field("backbone_macs", pa.int64(), nullable=False),
        pa.field("params", pa.int64(), nullable=False),
        pa.field("backbone_params", pa.int64(), nullable=False),
        pa.field("output_stride", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("skip", _list(pa.string())),
        pa.field("skip_channels", _list(pa.int32())),
        pa.field("alive_bytes", pa.int64()),
        pa.field("rates", _list(pa.int32())),
    ]
)
"""The architecture columns are null for the network's own head, the lists empty for exits that read
their own features alone."""

EXITS_LATER = ("skip", "skip_channels", "alive_bytes", "rates")
"""Columns that files of earlier versions lack."""

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("label", _list(pa.int32()), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("thumbnail", pa.binary()),
    ]
)
"""Files from before there was a `thumbnail` are read without it."""

PREDICTIONS = pa.schema(
    [
        pa.field("exit_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("intersection", _list(pa.int32()), nullable=False),
        pa.field("predicted", _list(pa.int32()), nullable=False),
        pa.field("agreement", pa.int32(), nullable=False),
        pa.field("lost", pa.int32(), nullable=False),
        pa.field("signals", _list(pa.float32()), nullable=False),
        pa.field("label_map", pa.binary()),
        pa.field("confidence_map", pa.binary()),
    ]
)
"""The maps are null where they were not asked for."""

PREDICTIONS_OF = {
    SCHEMA_VERSION: PREDICTIONS,
    BEFORE_LOST: PREDICTIONS.remove(PREDICTIONS.get_field_index("lost")),
}
"""By version, of all that are read."""

PAIRS = _schema(
    exit_a=pa.string(),
    exit_b=pa.string(),
    image_id=pa.string(),
    signal=pa.float32(),
)

LATENCY = _schema(
    kind=pa.string(),
    name=pa.string(),
    median_ms=pa.float64(),
    p90_ms=pa.float64(),
    min_ms=pa.float64(),
    rounds=pa.int32(),
)

FRONT = pa.schema(
    [
        pa.field("miou", pa.float64(), nullable=False),
        pa.field("macs", pa.float64(), nullable=False),
        pa.field("latency_ms", pa.float64()),
        pa.field("params", pa.float64(), nullable=False),
        pa.field("configuration", pa.string(), nullable=False),
        pa.field("proven", pa.bool_(), nullable=False),
    ]
)
