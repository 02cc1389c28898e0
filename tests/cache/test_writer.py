"""Filling a cache: everything once, and later only what is no longer true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mess.cache import schema
from mess.cache.parquet import write_rows
from mess.cache.predictions import verify as integrity
from mess.cache.predictions.parts import open_part, read_maps
from mess.cache.predictions.store import PredictionStore, Snapshot
from mess.cache.predictions.writer import CacheWriter
from mess.common.files import sha256
from mess.errors import CacheError
from tests.cache.conftest import (
    EXITS,
    IDENTITY,
    IMAGES,
    SHAPE,
    assert_true,
    begin,
    fill,
    part_files,
    prediction,
)
from tests.caches import made_before_lost, rows_of


def test_what_was_written_is_read(store: PredictionStore) -> None:
    found, manifest = store.read({"weights": "ab12"})
    assert_true(found)
    assert manifest["complete"] is True
    assert found.label.dtype == np.int64
    assert found.intersection.dtype == found.predicted.dtype == np.int32
    assert found.signals.dtype == np.float32


def test_label_maps_are_read_for_the_images_asked_for(store: PredictionStore) -> None:
    maps = Snapshot(store, None).label_maps(["image-1", "image-4"])
    assert maps == {
        (exit_id, image_id): prediction(exit_id, image_id)["label_map"]
        for exit_id in EXITS
        for image_id in ("image-1", "image-4")
    }


def test_a_part_has_the_images_of_a_batch_and_every_exit(store: PredictionStore) -> None:
    parts = [open_part(path) for path in part_files(store)]
    assert [len(part.images) for part in parts] == [2, 2, 1]
    assert all(part.exits == EXITS for part in parts)


def test_a_complete_cache_lacks_nothing_and_stays_as_it_is(store: PredictionStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.directory.rglob("*.*")}
    writer, gaps = begin(store, IDENTITY)
    assert gaps == []
    assert writer.is_finished()
    assert {path: path.stat().st_mtime_ns for path in store.directory.rglob("*.*")} == before


def test_thumbnails_are_added_to_a_cache_that_has_none_and_nothing_is_computed_again(
    store: PredictionStore,
) -> None:
    old = schema.IMAGES.remove(schema.IMAGES.get_field_index("thumbnail"))
    manifest = store.manifest()
    rows = store.images(manifest)
    write_rows(store.images_file, [{name: row[name] for name in old.names} for row in rows], old)
    store.write_manifest({**manifest, "images_sha256": sha256(store.images_file)})
    assert_true(store.read({})[0])
    assert all("thumbnail" not in row for row in store.images(store.manifest()))
    assert not CacheWriter(store, IDENTITY).is_finished()
    assert fill(store) == 0
    assert all("thumbnail" in row for row in store.images(store.manifest()))
    assert CacheWriter(store, IDENTITY).is_finished()


def test_a_cache_without_exits_that_leave_early_has_no_signals(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    bare = replace(IDENTITY, signals=())
    fill(store, bare)
    found, _ = store.read({})
    assert found.signals.shape == (3, 5, 0)
    assert_true(found, bare)


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"images": IMAGES | {"image-3": "changed"}}, 3),
        ({"images": {"image-9": "i9"} | IMAGES}, 3),
        ({"images": {name: IMAGES[name] for name in ("image-4", "image-0")}}, 0),
        ({"images": dict(reversed(IMAGES.items()))}, 0),
        ({"exits": EXITS | {"final": "changed"}}, 5),
        ({"exits": {"p1-crm4-b0-fcn": "e0"} | EXITS}, 5),
        ({"exits": {"final": "e3"}}, 0),
        (
            {
                "exits": EXITS | {"p1-crm4-b0-fcn": "e4"},
                "images": IMAGES | {"image-0": "changed", "image-9": "i9"},
            },
            4 + 4 + 4,
        ),
        ({"exits": dict.fromkeys(EXITS, "other"), "weights": "other"}, 15),
        ({"weights": "other"}, 0),
        ({"signals": IDENTITY.signals[:1]}, 0),
        ({"signals": IDENTITY.signals[::-1]}, 0),
        ({"signals": ({"name": "a"}, *IDENTITY.signals, {"name": "b"})}, 15),
        ({"signals": ({"name": "a"},)}, 15),
        ({"confidence_maps": ("final",)}, 5),
        ({"label_maps": False}, 0),
    ],
)
def test_only_what_changed_is_computed(
    store: PredictionStore, change: dict[str, Any], computed: int
) -> None:
    identity = replace(IDENTITY, **change)
    assert fill(store, identity) == computed
    assert_true(store.read({})[0], identity)
    assert integrity.verify(store).faults == ()
    # Whoever opens the files finds each prediction once, and nothing that is no longer true.
    frame = pd.concat(pd.read_parquet(path) for path in part_files(store))
    assert len(frame) == len(identity.exits) * len(identity.images)
    for row in frame.to_dict("records"):
        expected = prediction(row["exit_id"], row["image_id"], identity)
        assert row["predicted"].tolist() == expected["predicted"].tolist()
        assert row["signals"].tolist() == np.float32(expected["signals"]).tolist()
        maps = expected["label_map"] if identity.label_maps else None, expected["confidence_map"]
        assert (row["label_map"], row["confidence_map"]) == maps
    assert integrity.unneeded(store) == []
    fill(store)
    assert_true(store.read({})[0])


def test_added_signals_leave_everything_else_as_it_was_stored(store: PredictionStore) -> None:
    more = replace(IDENTITY, signals=(*IDENTITY.signals, {"name": "new"}))
    _, gaps = begin(store, more)
    assert {gap.signal_names for gap in gaps} == {("new",)}
    assert all(gap.base is not None for gap in gaps)
    # What is given beside the new signal is not looked at: counts come from the old parts.
    writer, gaps = begin(store, more)
    for gap in gaps:
        rows = rows_of(more, gap, lambda e, i: prediction(e, i, more))
        nonsense = replace(rows, intersection=rows.intersection - 7, label_map=rows.label_map[::-1])
        writer.write(gap, nonsense)
    writer.finish(dict.fromkeys(EXITS, SHAPE))
    assert_true(store.read({})[0], more)
    assert (
        Snapshot(store, None).label_maps(["image-2"])["final", "image-2"]
        == (prediction("final", "image-2")["label_map"])
    )


def test_confidence_maps_are_stored_for_the_exits_named(store: PredictionStore) -> None:
    wanted = replace(IDENTITY, confidence_maps=("final",))
    fill(store, wanted)
    parts = [open_part(path) for path in part_files(store)]
    named = [part for part in parts if part.confidence_maps]
    assert all(part.confidence_maps == ("final",) for part in named)
    stored = {
        image_id: read_maps(part, "confidence_map")[i, list(part.exits).index("final")]
        for part in named
        for i, image_id in enumerate(part.images)
    }
    assert stored == {i: prediction("final", i, wanted)["confidence_map"] for i in IMAGES}


def test_work_goes_on_behind_the_parts_that_are_there(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path / "c")
    writer, gaps = begin(store, IDENTITY)
    assert [gap.images for gap in gaps] == [(0, 1), (2, 3), (4,)]
    writer.write(gaps[1], rows_of(IDENTITY, gaps[1], prediction))
    with pytest.raises(CacheError, match="unfinished"):
        store.read({})
    _, rest = begin(store, IDENTITY)
    assert [gap.images for gap in rest] == [(0, 1), (4,)]
    assert fill(store) == 9
    assert_true(store.read({})[0])


def test_a_writer_that_stops_within_a_part_leaves_no_part(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    writer, gaps = begin(store, IDENTITY)
    rows = rows_of(IDENTITY, gaps[0], prediction)

    class Killed(tuple[str, ...]):
        def __iter__(self) -> Iterator[str]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(gaps[0], replace(rows, images=Killed(rows.images)))
    assert not store.parts_folder.exists() or not list(store.parts_folder.iterdir())
    assert len(begin(store, IDENTITY)[1]) == 3


def test_a_cache_with_missing_predictions_cannot_be_finished(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    writer, gaps = begin(store, IDENTITY)
    writer.write(gaps[0], rows_of(IDENTITY, gaps[0], prediction))
    with pytest.raises(CacheError, match="no prediction of p1-crm1-b0-fcn for image-2"):
        writer.finish(dict.fromkeys(EXITS, SHAPE))


@pytest.mark.parametrize(
    ("expected", "named"),
    [
        ({"weights": "other", "data": "cd34"}, "other weights"),
        ({"weights": "ab12", "signals": [{"name": "x"}]}, "other signals"),
        ({"weights": "other", "exits": ["final"]}, "other weights, exits"),
    ],
)
def test_a_stale_cache_is_refused_with_what_differs(
    store: PredictionStore, expected: dict[str, Any], named: str
) -> None:
    with pytest.raises(CacheError, match=rf"stale: it was made for {named}\. Run"):
        store.read(expected)


def test_a_cache_that_does_not_exist_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        CacheError, match=r"Run `mess memoise --name none --run .*` first"
    ) as refusal:
        PredictionStore(tmp_path / "none").read({})
    assert str(tmp_path / "none") in str(refusal.value)


def test_a_cache_from_before_lost_pixels_is_read_without_them(store: PredictionStore) -> None:
    whole = store.read({})[0]
    made_before_lost(store)
    found, manifest = store.read({})
    assert (found.lost, manifest["schema_version"]) == (None, 2)
    for name in ("label", "intersection", "predicted", "signals"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert Snapshot(store, None).label_maps(["image-1"])
    assert integrity.verify(store).faults == ()
    assert integrity.missing(store) == 0
    assert integrity.unneeded(store) == []


def test_lost_pixels_are_added_to_all_of_a_cache_or_none(store: PredictionStore) -> None:
    made_before_lost(store)
    old = part_files(store)
    writer, gaps = begin(store, IDENTITY)
    assert sum(len(gap.images) * len(gap.exits) for gap in gaps) == len(EXITS) * len(IMAGES)
    first, *others = gaps
    writer.write(first, rows_of(IDENTITY, first, prediction))
    # A kill in between: nobody reads it, what is written stays, and the rest is computed.
    with pytest.raises(CacheError, match="is unfinished"):
        store.read({})
    with pytest.raises(CacheError, match="has no prediction of"):
        _ = Snapshot(store, None).predictions
    assert integrity.missing(store) == sum(len(gap.images) for gap in others) * len(EXITS)
    assert integrity.unneeded(store) == sorted(old)
    assert fill(store) == sum(len(gap.images) for gap in others) * len(EXITS)
    assert_true(store.read({})[0])
    assert not set(old) & set(part_files(store))
    assert integrity.verify(store).faults == ()


def test_an_old_part_in_a_new_cache_is_a_fault(store: PredictionStore, tmp_path: Path) -> None:
    other = PredictionStore(tmp_path / "other")
    fill(other)
    made_before_lost(other)
    first, *_ = part_files(store)
    old, *_ = part_files(other)
    first.unlink()
    old.rename(store.parts_folder / old.name)
    with pytest.raises(CacheError, match="has no prediction of"):
        store.read({})
    assert "holds what the cache is not made for" in integrity.verify(store).faults[0]
    assert fill(store) == 2 * len(EXITS)
    assert_true(store.read({})[0])
