"""The prediction cache of one split: a manifest, the images, and parts of predictions.

A part holds every exit's rows for a run of consecutive images and is written atomically, so a kill
loses at most the part being written and the same command goes on with the next.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.cache.parquet import read_table, write_rows
from mess.cache.schema import IMAGES, PREDICTIONS, SCHEMA_VERSION
from mess.errors import CacheError
from mess.files import write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What predictions depend on; a cache serves only the identity it was made for."""

    classes: tuple[str, ...]
    images: int
    exits: tuple[str, ...]
    signals: tuple[Mapping[str, Any], ...]
    """`SignalSpec.to_json`, in the order of the columns."""
    weights: str
    """sha256 of network.safetensors."""
    data: str
    """Fingerprint of the split's content and size."""
    part_images: int
    label_maps: bool
    confidence_maps: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The arrays a search wants: E exits, I images, C classes, K signals."""

    exit_ids: tuple[str, ...]
    image_ids: tuple[str, ...]
    label: NDArray[np.int64]
    """(I, C)."""
    intersection: NDArray[np.int32]
    """(E, I, C)."""
    predicted: NDArray[np.int32]
    """(E, I, C)."""
    signals: NDArray[np.float32]
    """(E, I, K)."""


class PredictionStore:
    """The cache in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self, identity: Identity, images: Iterable[Mapping[str, Any]]) -> list[int]:
        """Make the cache ready for writing and return the numbers of the parts it lacks.

        Parts of the same identity stay; a cache of another identity is cleared, for none of its
        numbers are true any more. `images` are rows of images.parquet.
        """
        recorded = self._recorded()
        if (
            recorded is None
            or recorded.get("schema_version") != SCHEMA_VERSION
            or _facts(recorded) != identity.to_json()
        ):
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(parents=True)
            write_rows(self.directory / "images.parquet", images, IMAGES)
            self._write_manifest(identity.to_json(), shapes={}, complete=False)
        parts = _parts(identity.images, identity.part_images)
        return [part for part in range(parts) if not self._part(part).exists()]

    def write_part(self, part: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows of every (exit, image) of part `part`."""
        write_rows(self._part(part), rows, PREDICTIONS)

    def finish(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Declare the cache complete; `shapes` are the native output sizes of the exits."""
        manifest = self.manifest()
        parts = _parts(manifest["images"], manifest["part_images"])
        lacking = [part for part in range(parts) if not self._part(part).exists()]
        if lacking:
            raise CacheError(f"{self.directory} lacks part {lacking[0]} of {parts}.")
        self._write_manifest(_facts(manifest), shapes=shapes, complete=True)

    def manifest(self) -> dict[str, Any]:
        """The manifest; raises CacheError where there is none or another version wrote it."""
        recorded = self._recorded()
        if recorded is None:
            raise CacheError(
                f"{self.directory} holds no predictions yet. Run `mess memoise` first."
            )
        if recorded.get("schema_version") != SCHEMA_VERSION:
            raise CacheError(
                f"{self.directory} has schema version {recorded.get('schema_version')}, this "
                f"version of mess reads {SCHEMA_VERSION}. Run `mess memoise` again."
            )
        return recorded

    def checked_manifest(self, expected: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of a complete cache whose identity agrees with `expected`.

        `expected` is a part of `Identity.to_json`; raises CacheError that names what differs.
        """
        manifest = self.manifest()
        stale = [name for name in expected if manifest.get(name) != expected[name]]
        if stale:
            raise CacheError(
                f"{self.directory} is stale: it was made for other {', '.join(stale)}. "
                "Run `mess memoise` again."
            )
        if not manifest["complete"]:
            raise CacheError(f"{self.directory} is unfinished. Run `mess memoise` to go on.")
        return manifest

    def read(self, expected: Mapping[str, Any]) -> Predictions:
        """All counts and signals; refuses a cache that is missing, unfinished, stale or holey."""
        manifest = self.checked_manifest(expected)
        images = read_table(self.directory / "images.parquet", IMAGES)
        image_ids = images["image_id"].to_pylist()
        exit_ids = manifest["exits"]
        shape = (len(exit_ids), len(image_ids), len(manifest["classes"]))
        arrays = {
            "intersection": np.zeros(shape, np.int32),
            "predicted": np.zeros(shape, np.int32),
            "signals": np.zeros((*shape[:2], len(manifest["signals"])), np.float32),
        }
        filled = np.zeros(shape[:2], bool)
        row_of = {exit_id: row for row, exit_id in enumerate(exit_ids)}
        column_of = {image_id: column for column, image_id in enumerate(image_ids)}
        for part in range(_parts(manifest["images"], manifest["part_images"])):
            columns = ["exit_id", "image_id", *arrays]
            table = read_table(self._part(part), PREDICTIONS, columns)
            rows = self._indices(part, table["exit_id"].to_pylist(), row_of)
            places = self._indices(part, table["image_id"].to_pylist(), column_of)
            for name, array in arrays.items():
                values = table[name].combine_chunks().flatten().to_numpy()
                array[rows, places] = values.reshape(len(rows), -1)
            filled[rows, places] = True
        if not filled.all():
            exit_index, image_index = np.argwhere(~filled)[0]
            raise CacheError(
                f"{self.directory} has no prediction of {exit_ids[exit_index]} for image "
                f"{image_ids[image_index]}. Delete {self.directory} and memoise again."
            )
        label = images["label"].combine_chunks().flatten().to_numpy()
        return Predictions(
            exit_ids=tuple(exit_ids),
            image_ids=tuple(image_ids),
            label=label.reshape(len(image_ids), -1).astype(np.int64),
            intersection=arrays["intersection"],
            predicted=arrays["predicted"],
            signals=arrays["signals"],
        )

    def label_maps(self, image_ids: Iterable[str]) -> dict[tuple[str, str], bytes]:
        """Compressed label maps by (exit, image), of the given images."""
        manifest = self.manifest()
        wanted = set(image_ids)
        maps = {}
        for part in range(_parts(manifest["images"], manifest["part_images"])):
            columns = ["exit_id", "image_id", "label_map"]
            for row in read_table(self._part(part), PREDICTIONS, columns).to_pylist():
                if row["image_id"] in wanted and row["label_map"] is not None:
                    maps[row["exit_id"], row["image_id"]] = row["label_map"]
        return maps

    def _part(self, part: int) -> Path:
        return self.directory / "predictions" / f"part-{part:05d}.parquet"

    def _indices(self, part: int, names: list[str], index: Mapping[str, int]) -> NDArray[np.intp]:
        try:
            return np.array([index[name] for name in names], np.intp)
        except KeyError as error:
            raise CacheError(
                f"{self._part(part)} holds {error}, which the manifest does not list. "
                f"Delete {self.directory} and memoise again."
            ) from error

    def _recorded(self) -> dict[str, Any] | None:
        path = self.directory / MANIFEST
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CacheError(
                f"{path} is damaged: {error}. Delete {self.directory} and memoise again."
            ) from error

    def _write_manifest(
        self,
        identity: Mapping[str, Any],
        *,
        shapes: Mapping[str, Sequence[int]],
        complete: bool,
    ) -> None:
        manifest = {
            "schema_version": SCHEMA_VERSION,
            **identity,
            "native_shapes": {name: list(shape) for name, shape in shapes.items()},
            "complete": complete,
        }
        write_json(self.directory / MANIFEST, manifest)


def _parts(images: int, part_images: int) -> int:
    return -(-images // part_images)


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    other = ("schema_version", "native_shapes", "complete")
    return {name: value for name, value in manifest.items() if name not in other}
