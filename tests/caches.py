"""Prediction caches of made-up numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mess.cache.content import STEM, SUFFIX, find_parts
from mess.cache.parquet import read_facts, write_table
from mess.cache.predictions.parts import PartRows
from mess.cache.predictions.store import PredictionStore
from mess.cache.predictions.writer import CacheWriter, Gap, Identity
from mess.cache.schema import BEFORE_LOST
from mess.common.files import write_named_by_content

Prediction = Mapping[str, Any]
"""Columns of a row of predictions/*.parquet, the ids left out."""

Predict = Callable[[str, str], Prediction]
"""The prediction of an exit for an image, by their ids; its signals are all of the identity's."""


def rows_of(identity: Identity, gap: Gap, predict: Predict) -> PartRows:
    """What a gap lacks."""
    images = [list(identity.images)[index] for index in gap.images]
    grid = [[predict(exit_id, image_id) for exit_id in gap.exits] for image_id in images]
    chosen = [identity.signal_names.index(name) for name in gap.signal_names]

    def column(name: str, kind: Any) -> Any:
        values = [[row[name] for row in rows] for rows in grid]
        if kind is not object:
            return np.array(values, dtype=kind)
        out = np.empty((len(images), len(gap.exits)), dtype=object)
        out[:] = values
        return out

    return PartRows(
        images=tuple(images),
        exits=gap.exits,
        signal_names=gap.signal_names,
        intersection=column("intersection", np.int32),
        predicted=column("predicted", np.int32),
        agreement=column("agreement", np.int32),
        lost=column("lost", np.int32),
        signals=column("signals", np.float32)[:, :, chosen],
        label_map=column("label_map", object),
        confidence_map=column("confidence_map", object),
    )


def made_before_lost(store: PredictionStore) -> None:
    """Make a complete cache what the version wrote that did not count lost pixels."""
    for path in find_parts(store.parts_folder):
        table = pq.read_table(path)
        facts = read_facts(path) | {"schema_version": BEFORE_LOST}
        path.unlink()
        write_named_by_content(
            store.parts_folder,
            STEM,
            SUFFIX,
            lambda to, table=table, facts=facts: write_table(to, table.drop(["lost"]), facts),
        )
    store.write_manifest({**store.manifest(), "schema_version": BEFORE_LOST})


def fill(
    directory: Path,
    identity: Identity,
    labels: Sequence[Sequence[int]],
    predict: Predict,
    *,
    size: tuple[int, int],
    shape: tuple[int, int],
) -> PredictionStore:
    """A complete cache: `labels` of every image, image `size`, native output `shape`."""
    writer = CacheWriter(PredictionStore(directory), identity)
    ids = list(identity.images)
    gaps = writer.begin(
        lambda indices: [
            {"image_id": ids[i], "height": size[0], "width": size[1], "label": labels[i]}
            for i in indices
        ]
    )
    for gap in gaps:
        writer.write(gap, rows_of(identity, gap, predict))
    writer.finish(dict.fromkeys(identity.exits, shape))
    return writer.store
