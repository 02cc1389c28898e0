"""Filling a prediction cache: what is missing is found from the parts themselves.

A prediction stays true as long as the fingerprints of its exit and its image do. So changed images,
added exits, added signals and damaged parts are computed anew, and nothing else is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mess.cache.parquet import write_rows
from mess.cache.parts import Part, PartRows, find_parts, open_part, read_rows_of, write_part
from mess.cache.schema import IMAGES
from mess.cache.store import Overlap, PredictionStore
from mess.errors import CacheError
from mess.files import sha256


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What predictions depend on; a cache serves only the identity it was made for."""

    classes: tuple[str, ...]
    exits: Mapping[str, str]
    """Fingerprint of what each exit computes, by identifier."""
    images: Mapping[str, str]
    """Fingerprint of each image with its labels, by identifier."""
    signals: tuple[Mapping[str, Any], ...]
    """`SignalSpec.to_json`, in the order of the columns."""
    weights: str
    """sha256 of network.safetensors."""
    data: str
    """Fingerprint of the split's content and size."""
    source: Mapping[str, Any]
    """Where the images came from: `kind`, `split` and `root`, None where it is the run's own."""
    label_maps: bool
    confidence_maps: tuple[str, ...]
    """Exits that have them."""

    @property
    def signal_names(self) -> tuple[str, ...]:
        return tuple(signal["name"] for signal in self.signals)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it; the images' fingerprints are in images.parquet."""
        return json.loads(
            json.dumps(
                {
                    "classes": self.classes,
                    "images": len(self.images),
                    "exits": list(self.exits),
                    "signals": self.signals,
                    "weights": self.weights,
                    "data": self.data,
                    "source": self.source,
                    "label_maps": self.label_maps,
                    "confidence_maps": self.confidence_maps,
                    "exit_fingerprints": dict(self.exits),
                }
            )
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """Predictions that are missing: of these images (positions), at these exits.

    `signal_names` are the signals to compute. With a `base`, that part has everything else.
    """

    images: tuple[int, ...]
    exits: tuple[str, ...]
    signal_names: tuple[str, ...]
    base: Part | None = None


class CacheWriter:
    """Brings the cache of a store to an identity."""

    def __init__(self, store: PredictionStore, identity: Identity) -> None:
        self.store, self.identity = store, identity

    def begin(self, image_row: Callable[[int], Mapping[str, Any]]) -> list[Task]:
        """Make the store ready for writing and return what it lacks.

        `image_row` gives the row of images.parquet of an image by position, its fingerprint left
        out; it is asked only for what the store does not know. Damaged parts are deleted.
        """
        if self._recorded() is None:
            known = self._known_rows()
            rows = []
            for index, (image_id, fingerprint) in enumerate(self.identity.images.items()):
                row = known.get((image_id, fingerprint)) or image_row(index)
                rows.append({**row, "fingerprint": fingerprint})
            write_rows(self.store.images_file, rows, IMAGES)
            self._write_manifest(shapes={}, complete=False)
        return list(self._tasks())

    def is_complete(self) -> bool:
        """Whether a finished cache of this identity is recorded; its parts are not looked at."""
        recorded = self._recorded()
        return recorded is not None and recorded["complete"]

    def write(self, rows: PartRows) -> None:
        """Write a part; a kill loses none that was written before."""
        write_part(self.store.parts_folder, rows, self.identity.exits, self.identity.images)

    def extended(self, base: Part, rows: PartRows) -> PartRows:
        """`rows` with all that they lack taken from `base`: everything but the signals in them."""
        old = read_rows_of(base)
        images = [old.images.index(image_id) for image_id in rows.images]
        exits = [old.exits.index(exit_id) for exit_id in rows.exits]
        block = np.ix_(images, exits)
        columns = {name: old.signals[block][:, :, k] for k, name in enumerate(old.signal_names)}
        columns |= {name: rows.signals[:, :, k] for k, name in enumerate(rows.signal_names)}
        return PartRows(
            images=rows.images,
            exits=rows.exits,
            signal_names=tuple(columns),
            intersection=old.intersection[block],
            predicted=old.predicted[block],
            agreement=old.agreement[block],
            signals=np.stack(list(columns.values()), axis=2),
            label_map=old.label_map[block],
            confidence_map=old.confidence_map[block],
        )

    def finish(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Declare the cache complete; `shapes` are the native output sizes of the exits."""
        lacking = next(self._tasks(), None)
        if lacking is not None:
            image_id = list(self.identity.images)[lacking.images[0]]
            raise CacheError(
                f"{self.store.directory} has no prediction of {lacking.exits[0]} for {image_id}."
            )
        self._write_manifest(shapes=shapes, complete=True)

    def _tasks(self) -> Iterator[Task]:
        identity = self.identity
        wanted, exit_ids = set(identity.signal_names), list(identity.exits)
        have_EI = np.zeros((len(identity.exits), len(identity.images)), np.bool_)
        partial: list[Part] = []
        for part in self._whole_parts():
            if identity.label_maps and not part.label_maps:
                continue
            overlap = self._overlap(part)
            if wanted <= set(part.signal_names):
                have_EI[np.ix_(overlap.exits, overlap.images)] = True
            elif overlap:
                partial.append(part)
        for part in partial:
            overlap = self._overlap(part)
            block = np.ix_(overlap.exits, overlap.images)
            lacks_EI = ~have_EI[block]
            exits, images = lacks_EI.any(axis=1), lacks_EI.any(axis=0)
            if exits.any():
                yield Task(
                    images=tuple(overlap.images[images].tolist()),
                    exits=tuple(exit_ids[e] for e in overlap.exits[exits]),
                    signal_names=tuple(
                        name for name in identity.signal_names if name not in part.signal_names
                    ),
                    base=part,
                )
            have_EI[block] = True
        groups: dict[bytes, list[int]] = {}
        for image, have_E in enumerate(have_EI.T):
            if not have_E.all():
                groups.setdefault(have_E.tobytes(), []).append(image)
        for pattern, images in groups.items():
            have_E = np.frombuffer(pattern, np.bool_)
            yield Task(
                images=tuple(images),
                exits=tuple(exit_ids[e] for e in np.flatnonzero(~have_E)),
                signal_names=identity.signal_names,
            )

    def _overlap(self, part: Part) -> Overlap:
        """What of a part is still true and has the confidence maps it should have."""
        wanted = set(self.identity.confidence_maps) - set(part.confidence_maps)
        exits = {e: "" if e in wanted else print_ for e, print_ in self.identity.exits.items()}
        return Overlap.of(part, exits, self.identity.images)

    def _whole_parts(self) -> Iterator[Part]:
        for path in find_parts(self.store.parts_folder):
            try:
                yield open_part(path)
            except CacheError:
                path.unlink()

    def _recorded(self) -> dict[str, Any] | None:
        """The manifest if it is of this identity and the images are as it says."""
        try:
            manifest = self.store.manifest()
            rows = self.store.images(manifest)
        except CacheError:
            return None
        images = {row["image_id"]: row["fingerprint"] for row in rows}
        expected = self.identity.to_json()
        same = images == dict(self.identity.images) and list(images) == list(self.identity.images)
        return manifest if same and expected.items() <= manifest.items() else None

    def _known_rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        try:
            rows = self.store.images(self.store.manifest())
        except CacheError:
            return {}
        return {(row["image_id"], row["fingerprint"]): row for row in rows}

    def _write_manifest(self, *, shapes: Mapping[str, tuple[int, int]], complete: bool) -> None:
        self.store.write_manifest(
            {
                **self.identity.to_json(),
                "images_sha256": sha256(self.store.images_file),
                "native_shapes": {name: list(shape) for name, shape in shapes.items()},
                "complete": complete,
            }
        )
