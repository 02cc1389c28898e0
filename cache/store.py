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
    """Writes and reads the cache in `directory` for one identity."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        self.directory = directory
        self.identity = identity

    @property
    def fingerprint(self) -> dict[str, str]:
        """What result.json records of the cache a search ran on."""
        return {"weights": self.identity.weights, "data": self.identity.data}

    def prepare(self, images: Iterable[Mapping[str, Any]]) -> list[int]:
        """Make the cache ready for writing and return the numbers of the parts it lacks.

        Parts of the same identity stay; a cache of another identity is cleared, for none of its
        numbers are true any more. `images` are rows of images.parquet.
        """
        recorded = _read_manifest(self.directory)
        if recorded is None or _identity(recorded) != self._facts():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(parents=True)
            write_rows(self.directory / "images.parquet", images, IMAGES)
            self._write_manifest(complete=False, shapes={})
        return [part for part in range(self.parts) if not self._part(part).exists()]

    @property
    def parts(self) -> int:
        """Number of part files of the complete cache."""
        return -(-self.identity.images // self.identity.part_images)

    def write_part(self, part: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows of every (exit, image) of part `part`."""
        write_rows(self._part(part), rows, PREDICTIONS)

    def finish(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Declare the cache complete; `shapes` are the native output sizes of the exits."""
        lacking = [part for part in range(self.parts) if not self._part(part).exists()]
        if lacking:
            raise CacheError(f"{self.directory} lacks part {lacking[0]} of {self.parts}.")
        self._write_manifest(complete=True, shapes=shapes)

    def read(self) -> Predictions:
        """All counts and signals; refuses a cache that is missing, unfinished, stale or holey."""
        self._check()
        images = read_table(self.directory / "images.parquet", IMAGES)
        image_ids = images["image_id"].to_pylist()
        columns = ["exit_id", "image_id", "intersection", "predicted", "signals"]
        exits, classes = len(self.identity.exits), len(self.identity.classes)
        shape = (exits, len(image_ids), classes)
        intersection, predicted = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        signals = np.zeros((*shape[:2], len(self.identity.signals)), np.float32)
        filled = np.zeros(shape[:2], bool)
        row_of = {exit_id: row for row, exit_id in enumerate(self.identity.exits)}
        column_of = {image_id: column for column, image_id in enumerate(image_ids)}
        for part in range(self.parts):
            table = read_table(self._part(part), PREDICTIONS, columns)
            rows = np.array([row_of[name] for name in table["exit_id"].to_pylist()], np.intp)
            places = np.array([column_of[name] for name in table["image_id"].to_pylist()], np.intp)
            for name, target in (
                ("intersection", intersection),
                ("predicted", predicted),
                ("signals", signals),
            ):
                values = table[name].combine_chunks().flatten().to_numpy()
                target[rows, places] = values.reshape(len(rows), -1)
            filled[rows, places] = True
        if not filled.all():
            exit_index, image_index = np.argwhere(~filled)[0]
            raise CacheError(
                f"{self.directory} has no prediction of {self.identity.exits[exit_index]} for "
                f"image {image_ids[image_index]}. Run `mess memoise` again."
            )
        label = images["label"].combine_chunks().flatten().to_numpy()
        return Predictions(
            exit_ids=self.identity.exits,
            image_ids=tuple(image_ids),
            label=label.reshape(len(image_ids), classes).astype(np.int64),
            intersection=intersection,
            predicted=predicted,
            signals=signals,
        )

    def _check(self) -> None:
        recorded = _read_manifest(self.directory)
        if recorded is None:
            raise CacheError(
                f"{self.directory} holds no predictions yet. Run `mess memoise` first."
            )
        if recorded.get("schema_version") != SCHEMA_VERSION:
            raise CacheError(
                f"{self.directory} has schema version {recorded.get('schema_version')}, this "
                f"version of mess reads {SCHEMA_VERSION}. Run `mess memoise` again."
            )
        facts, wanted = _identity(recorded), self._facts()
        stale = [name for name in wanted if facts.get(name) != wanted[name]]
        if stale:
            raise CacheError(
                f"{self.directory} is stale: it was made for other {', '.join(stale)}. "
                "Run `mess memoise` again."
            )
        if not recorded["complete"]:
            raise CacheError(f"{self.directory} is unfinished. Run `mess memoise` to go on.")

    def _part(self, part: int) -> Path:
        return self.directory / "predictions" / f"part-{part:05d}.parquet"

    def _facts(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self.identity)))

    def _write_manifest(
        self, *, complete: bool, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        manifest = {
            "schema_version": SCHEMA_VERSION,
            **self._facts(),
            "native_shapes": {name: list(shape) for name, shape in shapes.items()},
            "complete": complete,
        }
        write_json(self.directory / MANIFEST, manifest)


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CacheError(
            f"{directory / MANIFEST} is damaged: {error}. Delete {directory} and memoise again."
        ) from error


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    other = ("schema_version", "native_shapes", "complete")
    return {name: value for name, value in manifest.items() if name not in other}
