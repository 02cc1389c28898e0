"""What users of the files rely on: frozen schemas, the manifest's keys, plain Parquet."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mess.cache import schema
from mess.cache.parquet import read_facts, read_rows, write_rows
from mess.cache.predictions.store import PredictionStore
from mess.errors import CacheError
from tests.cache.conftest import EXITS, IMAGES, part_files, prediction

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
        "skip": "list<element: string not null>?",
        "skip_channels": "list<element: int32 not null>?",
        "alive_bytes": "int64?",
        "rates": "list<element: int32 not null>?",
    },
    "IMAGES": {
        "image_id": "string",
        "height": "int32",
        "width": "int32",
        "label": "list<element: int32 not null>",
        "fingerprint": "string",
        "thumbnail": "binary?",
    },
    "PREDICTIONS": {
        "exit_id": "string",
        "image_id": "string",
        "intersection": "list<element: int32 not null>",
        "predicted": "list<element: int32 not null>",
        "agreement": "int32",
        "lost": "int32",
        "signals": "list<element: float not null>",
        "label_map": "binary?",
        "confidence_map": "binary?",
    },
    "PAIRS": {
        "exit_a": "string",
        "exit_b": "string",
        "image_id": "string",
        "signal": "float",
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
    assert spelled(pq.read_schema(part_files(store)[0])) == FROZEN["PREDICTIONS"]
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
        "pipeline",
        "data",
        "source",
        "labels",
        "label_maps",
        "confidence_maps",
        "exit_fingerprints",
        "images_sha256",
        "native_shapes",
        "complete",
        "checksum",
    }
    assert manifest["schema_version"] == 3
    assert manifest["complete"] is True
    assert manifest["native_shapes"]["final"] == [4, 6]


def test_files_open_with_pandas(store: PredictionStore) -> None:
    frame = pd.concat(pd.read_parquet(path) for path in part_files(store))
    assert list(frame.columns) == list(FROZEN["PREDICTIONS"])
    assert len(frame) == len(IMAGES) * len(EXITS)
    for row in frame.to_dict("records"):
        expected = prediction(row["exit_id"], row["image_id"])
        assert row["intersection"].tolist() == expected["intersection"].tolist()
    images = pd.read_parquet(store.images_file)
    assert dict(zip(images["image_id"], images["fingerprint"], strict=True)) == IMAGES


def test_facts_are_kept_beside_the_rows(tmp_path: Path) -> None:
    rows = [
        {"image_id": "a", "height": 1, "width": 2, "label": [1, 2], "fingerprint": "x"}
        | {"thumbnail": b"abc"}
    ]
    write_rows(tmp_path / "f.parquet", rows, schema.IMAGES, {"size": [3, 4]})
    assert read_facts(tmp_path / "f.parquet") == {"size": [3, 4]}
    assert read_rows(tmp_path / "f.parquet", schema.IMAGES) == rows


def test_facts_of_a_damaged_file_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "profile.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(CacheError, match=r"profile\.parquet is damaged"):
        read_facts(path)
