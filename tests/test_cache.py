"""The prediction cache: frozen schemas, round trips, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mess.cache import schema
from mess.cache.parquet import read_facts, read_rows, write_rows
from mess.cache.store import Identity, PredictionStore
from mess.errors import CacheError

CLASSES, IMAGES, SIGNALS = 3, 5, 2
EXITS = ("p1-crm1-b0-fcn", "p2-crm2-b1-rdi-fcn", "final")

IDENTITY = Identity(
    classes=("sky", "road", "car"),
    images=IMAGES,
    exits=EXITS,
    signals=({"name": "share-top1-0.5"}, {"name": "share-top1-0.5-edges"}),
    weights="ab12",
    data="cd34",
    part_images=2,
    label_maps=True,
    confidence_maps=(),
)
IMAGE_IDS = [f"image-{i}" for i in range(IMAGES)]
SHAPES: dict[str, tuple[int, int]] = dict.fromkeys(EXITS, (4, 6))


def image_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"image_id": name, "height": 32, "width": 48, "label": rng.integers(0, 99, CLASSES)}
        for name in IMAGE_IDS
    ]


def prediction(exit_id: str, image_id: str) -> dict[str, Any]:
    """Numbers that depend on nothing but the pair."""
    rng = np.random.default_rng([EXITS.index(exit_id), IMAGE_IDS.index(image_id)])
    return {
        "exit_id": exit_id,
        "image_id": image_id,
        "intersection": rng.integers(0, 2**31 - 1, CLASSES).astype(np.int32),
        "predicted": rng.integers(0, 2**31 - 1, CLASSES).astype(np.int32),
        "agreement": int(rng.integers(0, 99)),
        "signals": rng.random(SIGNALS).astype(np.float32),
        "label_map": rng.bytes(7),
        "confidence_map": None,
    }


def part_rows(part: int) -> list[dict[str, Any]]:
    return [
        prediction(exit_id, image_id)
        for image_id in IMAGE_IDS[2 * part : 2 * part + 2]
        for exit_id in EXITS
    ]


def part_file(store: PredictionStore, part: int) -> Path:
    return store.directory / "predictions" / f"part-{part:05d}.parquet"


@pytest.fixture
def store(tmp_path: Path) -> PredictionStore:
    """A complete cache of five images in three parts."""
    store = PredictionStore(tmp_path / "calibration")
    for part in store.prepare(IDENTITY, image_rows()):
        store.write_part(part, part_rows(part))
    store.finish(SHAPES)
    return store


# ---- Frozen schemas

FROZEN = {
    "EXITS": {
        "exit_id": "string",
        "point": "int32",
        "block": "string",
        "crm": "int32?",
        "blocks": "int32?",
        "rdi": "bool?",
        "head": "string?",
        "exit_macs": "int64",
        "backbone_macs": "int64",
        "params": "int64",
        "backbone_params": "int64",
        "output_stride": "int32",
        "channels": "int32",
        "status": "string",
    },
    "IMAGES": {
        "image_id": "string",
        "height": "int32",
        "width": "int32",
        "label": "list<element: int32 not null>",
    },
    "PREDICTIONS": {
        "exit_id": "string",
        "image_id": "string",
        "intersection": "list<element: int32 not null>",
        "predicted": "list<element: int32 not null>",
        "agreement": "int32",
        "signals": "list<element: float not null>",
        "label_map": "binary?",
        "confidence_map": "binary?",
    },
    "LATENCY": {
        "kind": "string",
        "name": "string",
        "median_ms": "double",
        "p90_ms": "double",
        "min_ms": "double",
        "rounds": "int32",
    },
    "FRONT": {
        "miou": "double",
        "macs": "double",
        "latency_ms": "double?",
        "params": "double",
        "configuration": "string",
        "proven": "bool",
    },
}
"""Columns in order; a question mark allows null. Changing one breaks other people's programs."""


def spelled(found: pa.Schema) -> dict[str, str]:
    return {field.name: f"{field.type}{'?' if field.nullable else ''}" for field in found}


@pytest.mark.parametrize("name", FROZEN)
def test_a_schema_is_what_was_published(name: str) -> None:
    assert list(spelled(getattr(schema, name)).items()) == list(FROZEN[name].items())


def test_files_on_disk_have_the_published_schema(store: PredictionStore) -> None:
    assert spelled(pq.read_schema(part_file(store, 0))) == FROZEN["PREDICTIONS"]
    assert spelled(pq.read_schema(store.directory / "images.parquet")) == FROZEN["IMAGES"]


def test_manifest_keys_are_what_was_published(store: PredictionStore) -> None:
    manifest = json.loads((store.directory / "manifest.json").read_text())
    assert set(manifest) == {
        "schema_version",
        "classes",
        "images",
        "exits",
        "signals",
        "weights",
        "data",
        "part_images",
        "label_maps",
        "confidence_maps",
        "native_shapes",
        "complete",
    }
    assert manifest["schema_version"] == 1
    assert manifest["complete"] is True
    assert manifest["native_shapes"]["final"] == [4, 6]


# ---- Round trips


def test_what_was_written_is_read(store: PredictionStore) -> None:
    found = store.read({"weights": "ab12"})
    assert found.exit_ids == EXITS
    assert found.image_ids == tuple(IMAGE_IDS)
    for i, image in enumerate(image_rows()):
        np.testing.assert_array_equal(found.label[i], image["label"])
        for e, exit_id in enumerate(EXITS):
            row = prediction(exit_id, image["image_id"])
            np.testing.assert_array_equal(found.intersection[e, i], row["intersection"])
            np.testing.assert_array_equal(found.predicted[e, i], row["predicted"])
            np.testing.assert_array_equal(found.signals[e, i], row["signals"])
    assert found.label.dtype == np.int64
    assert found.intersection.dtype == found.predicted.dtype == np.int32
    assert found.signals.dtype == np.float32


def test_the_order_of_rows_in_a_part_does_not_matter(store: PredictionStore) -> None:
    before = store.read({})
    store.write_part(1, part_rows(1)[::-1])
    after = store.read({})
    np.testing.assert_array_equal(before.intersection, after.intersection)
    np.testing.assert_array_equal(before.signals, after.signals)


def test_label_maps_are_read_for_the_images_asked_for(store: PredictionStore) -> None:
    maps = store.label_maps(["image-1", "image-4"])
    assert set(maps) == {(e, i) for e in EXITS for i in ("image-1", "image-4")}
    assert maps["final", "image-4"] == prediction("final", "image-4")["label_map"]


def test_files_open_with_pandas(store: PredictionStore) -> None:
    frame = pd.read_parquet(part_file(store, 0))
    assert list(frame.columns) == list(FROZEN["PREDICTIONS"])
    assert len(frame) == 2 * len(EXITS)
    row = frame.to_dict("records")[0]
    expected = prediction(row["exit_id"], row["image_id"])
    assert row["intersection"].tolist() == expected["intersection"].tolist()
    assert len(pd.read_parquet(store.directory / "images.parquet")) == IMAGES


def test_facts_are_kept_beside_the_rows(tmp_path: Path) -> None:
    rows = [{"image_id": "a", "height": 1, "width": 2, "label": [1, 2]}]
    write_rows(tmp_path / "f.parquet", rows, schema.IMAGES, {"size": [3, 4]})
    assert read_facts(tmp_path / "f.parquet") == {"size": [3, 4]}
    assert read_rows(tmp_path / "f.parquet", schema.IMAGES) == rows


# ---- Interrupted and resumed


def test_parts_that_are_missing_are_asked_for_and_the_others_kept(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path / "c")
    assert store.prepare(IDENTITY, image_rows()) == [0, 1, 2]
    store.write_part(1, part_rows(1))
    kept = part_file(store, 1).stat().st_mtime_ns
    again = PredictionStore(tmp_path / "c")
    assert again.prepare(IDENTITY, image_rows()) == [0, 2]
    assert part_file(store, 1).stat().st_mtime_ns == kept
    for part in (0, 2):
        again.write_part(part, part_rows(part))
    again.finish(SHAPES)
    assert again.prepare(IDENTITY, image_rows()) == []
    assert again.read({}).image_ids == tuple(IMAGE_IDS)


def test_a_deleted_part_is_asked_for_again(store: PredictionStore) -> None:
    part_file(store, 2).unlink()
    assert store.prepare(IDENTITY, image_rows()) == [2]


def test_a_part_cut_short_is_no_part(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)

    def killed() -> Iterator[dict[str, Any]]:
        yield part_rows(0)[0]
        raise KeyboardInterrupt

    store.prepare(IDENTITY, image_rows())
    with pytest.raises(KeyboardInterrupt):
        store.write_part(0, killed())
    assert store.prepare(IDENTITY, image_rows()) == [0, 1, 2]


def test_a_cache_with_missing_parts_cannot_be_finished(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    store.prepare(IDENTITY, image_rows())
    store.write_part(0, part_rows(0))
    with pytest.raises(CacheError, match="lacks part 1 of 3"):
        store.finish(SHAPES)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "other"},
        {"data": "other"},
        {"exits": EXITS[1:]},
        {"signals": ({"name": "other"},)},
        {"label_maps": False},
    ],
)
def test_a_cache_of_another_identity_is_begun_anew(
    store: PredictionStore, change: dict[str, Any]
) -> None:
    assert store.prepare(replace(IDENTITY, **change), image_rows()) == [0, 1, 2]
    assert store.manifest()["complete"] is False


def test_a_cache_of_another_schema_version_is_begun_anew(store: PredictionStore) -> None:
    # Its refusal says to memoise again, which must then help.
    edit_manifest(store, schema_version=0)
    assert store.prepare(IDENTITY, image_rows()) == [0, 1, 2]
    assert store.manifest()["complete"] is False


# ---- Refusals


def edit_manifest(store: PredictionStore, **changes: Any) -> None:
    path = store.directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_cache_that_does_not_exist_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"Run `mess memoise` first") as refusal:
        PredictionStore(tmp_path / "none").read({})
    assert str(tmp_path / "none") in str(refusal.value)


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


def test_an_unfinished_cache_is_refused(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    for part in store.prepare(IDENTITY, image_rows()):
        store.write_part(part, part_rows(part))
    with pytest.raises(CacheError, match="unfinished"):
        store.read({})


def test_a_missing_pair_is_named(store: PredictionStore) -> None:
    rows = part_rows(1)
    lost = rows.pop(4)
    store.write_part(1, rows)
    with pytest.raises(CacheError, match=f"{lost['exit_id']} for image {lost['image_id']}"):
        store.read({})


def test_another_schema_version_is_refused_with_both(store: PredictionStore) -> None:
    edit_manifest(store, schema_version=99)
    with pytest.raises(CacheError, match="schema version 99, this version of mess reads 1"):
        store.read({})


@pytest.mark.parametrize("keep", [0, 4, 300])
def test_a_damaged_part_is_named(store: PredictionStore, keep: int) -> None:
    path = part_file(store, 1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CacheError, match=r"part-00001\.parquet is damaged"):
        store.read({})


def test_a_part_that_vanished_is_named(store: PredictionStore) -> None:
    part_file(store, 1).unlink()
    with pytest.raises(CacheError, match=r"part-00001\.parquet does not exist"):
        store.read({})


def test_a_part_of_another_schema_is_named(store: PredictionStore) -> None:
    path = part_file(store, 0)
    frame = pd.read_parquet(path)
    frame.to_parquet(path)  # pandas' own types
    with pytest.raises(CacheError, match=r"part-00000\.parquet has another schema"):
        store.read({})
    frame.drop(columns="signals").to_parquet(path)
    with pytest.raises(CacheError, match=r"part-00000\.parquet"):
        store.read({})


def test_a_damaged_manifest_is_named(store: PredictionStore) -> None:
    (store.directory / "manifest.json").write_text('{"schema_version": 1, ')
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        store.read({})


def test_facts_of_a_damaged_file_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "profile.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(CacheError, match=r"profile\.parquet is damaged"):
        read_facts(path)
