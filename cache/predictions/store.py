"""The prediction cache of one split: a manifest, the images, and parts of predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mess.cache.content import find_parts, matches, remedy
from mess.cache.parquet import read_table
from mess.cache.predictions.parts import Part, open_part, read_counts, read_maps
from mess.cache.schema import BEFORE_LOST, IMAGES, PREDICTIONS_OF, SCHEMA_VERSION
from mess.common.files import sha256, write_json
from mess.common.metrics import MASKS
from mess.common.records import as_record, digest_of
from mess.errors import CacheError

MANIFEST = "manifest.json"


class CacheSource(TypedDict):
    """Where images came from; `root` is None where it is the run's own."""

    kind: str
    split: str | None
    """None of pictures in a folder, which has no splits."""
    root: str | None


class CacheManifest(TypedDict):
    """The content of manifest.json (docs/files.md), the checksum left out."""

    schema_version: int
    classes: list[str]
    images: int
    exits: list[str]
    signals: list[dict[str, Any]]
    weights: str
    pipeline: str
    data: str
    source: CacheSource
    labels: str
    """What is counted against: `masks`, or the exit whose label maps are in their place."""
    label_maps: bool
    confidence_maps: list[str]
    exit_fingerprints: dict[str, str]
    images_sha256: str
    native_shapes: dict[str, list[int]]
    complete: bool


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
    lost: NDArray[np.int32] | None
    """(E, I); None from a cache that was made before they were counted."""


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
    def hashes_file(self) -> Path:
        """What searches remember of the images' files; no part of the cache's content."""
        return self.directory / "file-hashes.json"

    @property
    def remedy(self) -> str:
        """The command that brings the cache up to date."""
        return remedy(self.directory)

    def manifest(self) -> CacheManifest:
        """The manifest; raises CacheError where there is none or another version wrote it."""
        path = self.directory / MANIFEST
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CacheError(
                f"{self.directory} holds no predictions yet. Run {self.remedy} first."
            ) from None
        except ValueError as error:
            raise CacheError(f"{path} is damaged: {error}. Run {self.remedy} again.") from error
        # Before the checksum: what another version wrote was not altered.
        version = recorded.get("schema_version") if isinstance(recorded, dict) else None
        if version not in PREDICTIONS_OF:
            raise CacheError(
                f"{self.directory} has schema version {version}, this version of mess reads "
                f"{SCHEMA_VERSION}. Run {self.remedy} again."
            )
        if recorded.pop("checksum", None) != digest_of(recorded):
            raise CacheError(
                f"{path} was altered: its checksum is wrong. Run {self.remedy} again; predictions "
                "that are whole stay."
            )
        # Before there was a choice all caches were of masks.
        recorded.setdefault("labels", MASKS)
        return as_record(recorded, CacheManifest, path, f"Run {self.remedy} again.", CacheError)

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Replace the manifest; the schema version and a checksum are added."""
        content = {"schema_version": SCHEMA_VERSION, **json.loads(json.dumps(content))}
        write_json(self.directory / MANIFEST, {**content, "checksum": digest_of(content)})

    def checked_manifest(
        self, expected: Mapping[str, Any], manifest: CacheManifest | None = None
    ) -> CacheManifest:
        """The manifest of a complete cache that agrees with `expected`, some of its items.

        `manifest` where it was read before. Raises CacheError that names what differs.
        """
        manifest = manifest or self.manifest()
        stale = [name for name in expected if manifest.get(name) != expected[name]]
        if stale:
            raise CacheError(
                f"{self.directory} is stale: it was made for other {', '.join(stale)}. "
                f"Run {self.remedy} again."
            )
        if not manifest["complete"]:
            raise CacheError(f"{self.directory} is unfinished. Run {self.remedy} to go on.")
        return manifest

    def images(self, manifest: CacheManifest) -> list[dict[str, Any]]:
        """The rows of images.parquet; raises CacheError where it is not the manifest's.

        Those of a cache that an earlier version made have no `thumbnail`.
        """
        if not self.images_file.exists() or sha256(self.images_file) != manifest["images_sha256"]:
            raise CacheError(
                f"{self.images_file} is missing or was altered. Run {self.remedy} again; "
                "predictions stay."
            )
        return read_table(self.images_file, IMAGES, later=["thumbnail"]).to_pylist()

    def read(self, expected: Mapping[str, Any]) -> tuple[Predictions, CacheManifest]:
        """All counts and signals, and the manifest.

        Refuses a cache that is missing, unfinished, stale, damaged or holey.
        """
        found = Snapshot(self, expected)
        return found.predictions, found.manifest


class Snapshot:
    """A cache as its manifest was when it was first asked for; every file is read once.

    `expected` are items that the manifest of a complete cache has to have; with None it is taken
    as it is. What cannot be read, is stale or damaged is a CacheError when it is asked for.
    """

    def __init__(self, store: PredictionStore, expected: Mapping[str, Any] | None) -> None:
        self.store, self._expected = store, expected
        self._opened: dict[Path, Part] = {}

    @cached_property
    def manifest(self) -> CacheManifest:
        if self._expected is None:
            return self.store.manifest()
        return self.store.checked_manifest(self._expected)

    @cached_property
    def images(self) -> list[dict[str, Any]]:
        """The rows of images.parquet."""
        return self.store.images(self.manifest)

    @cached_property
    def exit_fingerprints(self) -> dict[str, str]:
        """By identifier, in the order of the axes."""
        return self.manifest["exit_fingerprints"]

    @cached_property
    def image_fingerprints(self) -> dict[str, str]:
        """By identifier, in the order of the axes."""
        return {row["image_id"]: row["fingerprint"] for row in self.images}

    @cached_property
    def predictions(self) -> Predictions:
        """All counts and signals; raises CacheError where any is missing."""
        exits, images = self.exit_fingerprints, self.image_fingerprints
        names = [signal["name"] for signal in self.manifest["signals"]]
        shape = (len(exits), len(images), len(self.manifest["classes"]))
        arrays = {
            "intersection": np.empty(shape, np.int32),
            "predicted": np.empty(shape, np.int32),
            "signals": np.empty((*shape[:2], len(names)), np.float32),
        }
        version = self.manifest["schema_version"]
        if version > BEFORE_LOST:
            arrays["lost"] = np.empty(shape[:2], np.int32)
        filled = np.zeros(shape[:2], np.bool_)
        for part in self.parts():
            overlap = Overlap.of(part, exits, images)
            if not overlap or not set(names) <= set(part.signal_names):
                continue
            # What an unfinished `mess memoise` has not replaced yet: it lacks columns.
            if part.schema_version < version:
                continue
            counts = read_counts(part, list(arrays))
            columns = [part.signal_names.index(name) for name in names]
            counts["signals"] = counts["signals"][:, :, columns]
            to = np.ix_(overlap.exits, overlap.images)
            for name, array in arrays.items():
                some = counts[name][np.ix_(overlap.part_images, overlap.part_exits)]
                # Parts may overlap while a writer is at work: by its fingerprint either is true.
                array[to] = some.swapaxes(0, 1)
            filled[to] = True
        if not filled.all():
            exit_index, image_index = np.argwhere(~filled)[0]
            raise CacheError(
                f"{self.store.directory} has no prediction of {list(exits)[exit_index]} for image "
                f"{list(images)[image_index]}. Run {self.store.remedy} to compute what is missing."
            )
        label = np.array([row["label"] for row in self.images], np.int64)
        return Predictions(
            exit_ids=tuple(exits),
            image_ids=tuple(images),
            label=label.reshape(len(images), shape[2]),
            lost=arrays.pop("lost", None),
            **arrays,
        )

    def label_maps(self, image_ids: Iterable[str]) -> dict[tuple[str, str], bytes]:
        """Compressed label maps by (exit, image), of the given images.

        They are those of the manifest, which a writer may have replaced since it was read.
        """
        wanted = set(image_ids)
        images = {i: print_ for i, print_ in self.image_fingerprints.items() if i in wanted}
        maps = {}
        for part in self.parts():
            overlap = Overlap.of(part, self.exit_fingerprints, images)
            if not overlap or not part.label_maps:
                continue
            label_map = read_maps(part, "label_map")
            part_images, part_exits = list(part.images), list(part.exits)
            for i in overlap.part_images:
                for e in overlap.part_exits:
                    maps[part_exits[e], part_images[i]] = label_map[i, e]
        return maps

    def parts(self) -> Iterator[Part]:
        """All parts, whole and readable; raises CacheError that names one which is not."""
        # Opening takes the sha256 of the whole part, so each is opened once.
        for path in find_parts(self.store.parts_folder):
            if path not in self._opened:
                self._opened[path] = open_part(path)
            yield self._opened[path]
