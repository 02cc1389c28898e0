"""What is written to a cache is read from it, whatever the numbers and the order of writing."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mess.cache.compression import compress, decompress
from mess.cache.predictions.store import PredictionStore, Snapshot
from mess.cache.predictions.writer import CacheWriter
from tests.cache.conftest import IDENTITY
from tests.caches import Prediction, rows_of

INT32 = st.integers(0, 2**31 - 1)
FLOAT32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
SHAPE = (2, 3)


@st.composite
def grids(draw: st.DrawFn) -> dict[tuple[str, str], Prediction]:
    """A prediction of every exit for every image."""
    classes, signals = len(IDENTITY.classes), len(IDENTITY.signals)

    def numbers(kind: Any, size: int, elements: st.SearchStrategy[Any]) -> np.ndarray:
        return draw(arrays(kind, size, elements=elements))

    return {
        (exit_id, image_id): {
            "intersection": numbers(np.int32, classes, INT32),
            "predicted": numbers(np.int32, classes, INT32),
            "agreement": draw(INT32),
            "lost": draw(INT32),
            "signals": numbers(np.float32, signals, FLOAT32),
            # Any bytes; numpy likes to lose zeros at the end.
            "label_map": draw(st.binary(max_size=8)) + b"\0",
            "confidence_map": None,
        }
        for exit_id in IDENTITY.exits
        for image_id in IDENTITY.images
    }


@settings(max_examples=8)  # files are written, which takes a while
@given(grids(), st.data())
def test_what_was_written_is_read(
    grid: dict[tuple[str, str], Prediction], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = PredictionStore(Path(folder) / "calibration")
        writer = CacheWriter(store, IDENTITY)
        ids = list(IDENTITY.images)
        (whole,) = writer.begin(
            lambda indices: [
                {"image_id": ids[i], "height": 4, "width": 6, "label": [i, 0, 2]} for i in indices
            ]
        )
        order = data.draw(st.permutations(whole.images))
        cut = data.draw(st.integers(1, len(order) - 1))
        for images in (order[:cut], order[cut:]):
            gap = replace(whole, images=tuple(images))
            writer.write(gap, rows_of(IDENTITY, gap, lambda e, i: grid[e, i]))
        writer.finish(dict.fromkeys(IDENTITY.exits, SHAPE))
        found, _ = store.read({})
        maps = Snapshot(store, None).label_maps(ids)
    assert (found.exit_ids, found.image_ids) == (tuple(IDENTITY.exits), tuple(ids))
    for e, exit_id in enumerate(found.exit_ids):
        for i, image_id in enumerate(found.image_ids):
            expected = grid[exit_id, image_id]
            for name in ("intersection", "predicted", "lost", "signals"):
                np.testing.assert_array_equal(getattr(found, name)[e, i], expected[name])
            assert maps[exit_id, image_id] == expected["label_map"]


@given(arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6))), st.booleans())
def test_a_map_survives_compression(some: np.ndarray, turned: bool) -> None:
    some = some.T if turned else some
    np.testing.assert_array_equal(decompress(compress(some), some.shape), some)
