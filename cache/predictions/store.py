"""The prediction cache of one split: a manifest, the images, and parts of predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.cache.content import find_parts, matches, remedy
from mess.cache.parquet import read_table
from mess.cache.predictions.parts import Part, open_part, read_counts, read_maps
from mess.cache.schema import IMAGES, SCHEMA_VERSION
from mess.common.files import sha256, write_json
from mess.errors import CacheError

MANIFEST = "manifest.json"


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


@dataclass(frozen=True)
class Overlap:
    """Which of a part's images and exits are still what they were computed from.

    Positions in the part, and in the mappings that were asked for.
    """

    part_images: NDArray[np.intp]
    images: NDArray[np.intp]
    part_exits: NDArray[np.intp]
    exits: NDArray[np.intp]

    @classmethod
    def of(cls, part: Part, exits: Mapping[str, str], images: Mapping[str, str]) -> Overlap:
        """The ids of a part whose fingerprints are those in `exits` and `images`."""
        return cls(*matches(part.images, images), *matches(part.exits, exits))

    def __bool__(self) -> bool:
        return len(self.images) > 0 and len(self.exits) > 0


class PredictionStore:
    """The cache in `directory`, for reading; `mess.cache.predictions.writer` fills it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def images_file(self) -> Path:
        return self.directory / "images.parquet"

    @property
    def parts_folder(self) -> Path:
        return self.directory / "predictions"

    @property
    def _remedy(self) -> str:
        return remedy(self.directory)

    def manifest(self) -> dict[str, Any]:
        """The manifest; raises CacheError where there is none or another version wrote it."""
        path = self.directory / MANIFEST
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CacheError(
                f"{self.directory} holds no predictions yet. Run {self._remedy} first."
            ) from None
        except ValueError as error:
            raise CacheError(f"{path} is damaged: {error}. Run {self._remedy} again.") from error
        version = recorded.get("schema_version") if isinstance(recorded, dict) else None
        if version != SCHEMA_VERSION:
            raise CacheError(
                f"{self.directory} has schema version {version}, this version of mess reads "
                f"{SCHEMA_VERSION}. Run {self._remedy} again."
            )
        if recorded.pop("checksum", None) != _checksum(recorded):
            raise CacheError(
                f"{path} was altered: its checksum is wrong. Run {self._remedy} again; predictions "
                "that are whole stay."
            )
        return recorded

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Replace the manifest; the schema version and a checksum are added."""
        content = {"schema_version": SCHEMA_VERSION, **json.loads(json.dumps(content))}
        write_json(self.directory / MANIFEST, {**content, "checksum": _checksum(content)})

    def checked_manifest(self, expected: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of a complete cache that agrees with `expected`, some of its items.

        Raises CacheError that names what differs.
        """
        manifest = self.manifest()
        stale = [name for name in expected if manifest.get(name) != expected[name]]
        if stale:
            raise CacheError(
                f"{self.directory} is stale: it was made for other {', '.join(stale)}. "
                f"Run {self._remedy} again."
            )
        if not manifest["complete"]:
            raise CacheError(f"{self.directory} is unfinished. Run {self._remedy} to go on.")
        return manifest

    def images(self, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of images.parquet; raises CacheError where it is not the manifest's."""
        if not self.images_file.exists() or sha256(self.images_file) != manifest["images_sha256"]:
            raise CacheError(
                f"{self.images_file} is missing or was altered. Run {self._remedy} again; "
                "predictions stay."
            )
        return read_table(self.images_file, IMAGES).to_pylist()

    def parts(self) -> Iterator[Part]:
        """All parts, whole and readable; raises CacheError that names one which is not."""
        return map(open_part, find_parts(self.parts_folder))

    def read(self, expected: Mapping[str, Any]) -> tuple[Predictions, dict[str, Any]]:
        """All counts and signals, and the manifest.

        Refuses a cache that is missing, unfinished, stale, damaged or holey.
        """
        manifest = self.checked_manifest(expected)
        rows = self.images(manifest)
        images = {row["image_id"]: row["fingerprint"] for row in rows}
        exits = manifest["exit_fingerprints"]
        names = [signal["name"] for signal in manifest["signals"]]
        shape = (len(exits), len(images), len(manifest["classes"]))
        arrays = {
            "intersection": np.empty(shape, np.int32),
            "predicted": np.empty(shape, np.int32),
            "signals": np.empty((*shape[:2], len(names)), np.float32),
        }
        filled = np.zeros(shape[:2], np.bool_)
        for part in self.parts():
            overlap = Overlap.of(part, exits, images)
            if not overlap or not set(names) <= set(part.signal_names):
                continue
            counts = read_counts(part, list(arrays))
            columns = [part.signal_names.index(name) for name in names]
            counts["signals"] = counts["signals"][:, :, columns]
            to = np.ix_(overlap.exits, overlap.images)
            for name, array in arrays.items():
                some = counts[name][np.ix_(overlap.part_images, overlap.part_exits)]
                array[to] = some.swapaxes(0, 1)
            filled[to] = True
        if not filled.all():
            exit_index, image_index = np.argwhere(~filled)[0]
            raise CacheError(
                f"{self.directory} has no prediction of {list(exits)[exit_index]} for image "
                f"{list(images)[image_index]}. Run {self._remedy} to compute what is missing."
            )
        label = np.array([row["label"] for row in rows], np.int64)
        predictions = Predictions(
            exit_ids=tuple(exits),
            image_ids=tuple(images),
            label=label.reshape(len(images), shape[2]),
            **arrays,
        )
        return predictions, manifest

    def label_maps(
        self, image_ids: Iterable[str], manifest: Mapping[str, Any] | None = None
    ) -> dict[tuple[str, str], bytes]:
        """Compressed label maps by (exit, image), of the given images.

        They are those of `manifest`, which a writer may have replaced since it was read; by
        default of the one that is there now.
        """
        manifest = manifest or self.manifest()
        rows = self.images(manifest)
        wanted = set(image_ids)
        images = {r["image_id"]: r["fingerprint"] for r in rows if r["image_id"] in wanted}
        exits = manifest["exit_fingerprints"]
        maps = {}
        for part in self.parts():
            overlap = Overlap.of(part, exits, images)
            if not overlap or not part.label_maps:
                continue
            label_map = read_maps(part, "label_map")
            part_images, part_exits = list(part.images), list(part.exits)
            for i in overlap.part_images:
                for e in overlap.part_exits:
                    maps[part_exits[e], part_images[i]] = label_map[i, e]
        return maps


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
