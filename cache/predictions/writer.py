"""Filling a prediction cache: what is missing is found from the parts themselves.

A prediction stays true as long as the fingerprints of its exit and its image do. So changed images,
added exits, added signals and damaged parts are computed anew, and nothing else is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.cache.content import find_parts, parquet_files
from mess.cache.parquet import write_rows
from mess.cache.predictions.parts import (
    Part,
    PartRows,
    excerpt,
    open_part,
    read_counts,
    read_rows_of,
    write_part,
)
from mess.cache.predictions.store import CacheManifest, Overlap, PredictionStore
from mess.cache.schema import IMAGES, SCHEMA_VERSION
from mess.common.files import sha256
from mess.common.metrics import MASKS
from mess.errors import CacheError


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What predictions depend on; a cache serves only the identity it was made for."""

    classes: tuple[str, ...]
    exits: Mapping[str, str]
    """Fingerprint of what each exit computes, by identifier."""
    images: Mapping[str, str]
    """Fingerprint of each image with its labels, by identifier."""
    signals: tuple[Mapping[str, Any], ...]
    """`Signal.to_json` of each, in the order of the columns."""
    weights: str
    """sha256 of network.safetensors."""
    pipeline: str
    """Fingerprint of what decides predictions besides weights and images."""
    data: str
    """Fingerprint of the split's content and size."""
    source: Mapping[str, Any]
    """Where the images came from: `kind`, `split` and `root`, None where it is the run's own."""
    label_maps: bool
    confidence_maps: tuple[str, ...]
    """Exits that have them."""
    labels: str = MASKS
    """What is counted against: masks, or the exit whose label maps are in their place."""

    @property
    def signal_names(self) -> tuple[str, ...]:
        return tuple(signal["name"] for signal in self.signals)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it; the images' fingerprints are in images.parquet."""
        # Through JSON and back: the manifest it is compared with has lists for tuples.
        return json.loads(
            json.dumps(
                {
                    "classes": self.classes,
                    "images": len(self.images),
                    "exits": list(self.exits),
                    "signals": self.signals,
                    "weights": self.weights,
                    "pipeline": self.pipeline,
                    "data": self.data,
                    "source": self.source,
                    "labels": self.labels,
                    "label_maps": self.label_maps,
                    "confidence_maps": self.confidence_maps,
                    "exit_fingerprints": dict(self.exits),
                }
            )
        )


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Predictions that are missing: those of these images (positions) at these exits.

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
        self._opened: dict[Path, Part] = {}

    def begin(
        self, image_rows: Callable[[Sequence[int]], Iterable[Mapping[str, Any]]]
    ) -> list[Gap]:
        """Make the store ready for writing and return what it lacks.

        `image_rows` gives the rows of images.parquet of images by position, fingerprints left out;
        it is asked for those that the store does not know.
        """
        if self._recorded() is None:
            known = self._known_rows()
            images = list(self.identity.images.items())
            unknown = [index for index, image in enumerate(images) if image not in known]
            known |= {images[i]: row for i, row in zip(unknown, image_rows(unknown), strict=True)}
            rows = [{**known[image], "fingerprint": image[1]} for image in images]
            # The manifest comes second and holds the hash of the images: a kill between the two
            # leaves an old manifest that does not fit, and both are written again.
            write_rows(self.store.images_file, rows, IMAGES)
            # From here until `finish` readers refuse the cache as unfinished.
            self._write_manifest(shapes={}, complete=False)
        return self.missing()

    def missing(self) -> list[Gap]:
        """What the store lacks."""
        return list(self._gaps())

    def is_finished(self) -> bool:
        """Whether the cache is declared complete and its parts hold nothing else."""
        recorded = self._recorded()
        return (
            recorded is not None
            and recorded["complete"]
            and not any(self._gaps())
            and set(parquet_files(self.store.parts_folder))
            == {part.path for part, _, mine_EI in self._shares() if self._is_plain(part, mine_EI)}
        )

    def write(self, gap: Gap, rows: PartRows) -> None:
        """Write a part with rows of a gap; a kill loses none that was written before."""
        if gap.base is not None:
            rows = _extended(gap.base, rows)
        write_part(self.store.parts_folder, rows, self.identity.exits, self.identity.images)

    def finish(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Declare the cache complete; `shapes` are the native output sizes of the exits.

        Its parts then hold each prediction once and nothing else: what is no longer true goes.
        """
        lacking = next(self._gaps(), None)
        if lacking is not None:
            image_id = list(self.identity.images)[lacking.images[0]]
            raise CacheError(
                f"{self.store.directory} has no prediction of {lacking.exits[0]} for {image_id}."
            )
        # The manifest last: a new cache is not called complete before its parts are settled.
        self._settle()
        if self.identity.labels != MASKS:
            self._write_labels()
        self._write_manifest(shapes=shapes, complete=True)

    def _gaps(self) -> Iterator[Gap]:
        identity = self.identity
        exit_ids = list(identity.exits)
        have_EI = np.zeros((len(identity.exits), len(identity.images)), np.bool_)
        partial: list[Part] = []
        for part in self._whole_parts():
            if identity.label_maps and not part.label_maps:
                continue
            overlap = self._overlap(part)
            if self._serves(part):
                have_EI[np.ix_(overlap.exits, overlap.images)] = True
            elif overlap:
                partial.append(part)
        for part in partial:
            overlap = self._overlap(part)
            block = np.ix_(overlap.exits, overlap.images)
            # A part is a full block, so it is extended by whole rows and columns: what covers all
            # that is lacking may take in some that is there already.
            lacks_EI = ~have_EI[block]
            exits, images = lacks_EI.any(axis=1), lacks_EI.any(axis=0)
            if exits.any():
                yield Gap(
                    images=tuple(overlap.images[images].tolist()),
                    exits=tuple(exit_ids[e] for e in overlap.exits[exits]),
                    signal_names=tuple(
                        name for name in identity.signal_names if name not in part.signal_names
                    ),
                    base=part,
                )
            # Taken care of, so that no later part is extended for the same rows.
            have_EI[block] = True
        # Images that lack the same exits make one gap, and one pass over the network.
        groups: dict[bytes, list[int]] = {}
        for image, have_E in enumerate(have_EI.T):
            if not have_E.all():
                groups.setdefault(have_E.tobytes(), []).append(image)
        for pattern, images in groups.items():
            have_E = np.frombuffer(pattern, np.bool_)
            yield Gap(
                images=tuple(images),
                exits=tuple(exit_ids[e] for e in np.flatnonzero(~have_E)),
                signal_names=identity.signal_names,
            )

    def _settle(self) -> None:
        """Reduce the parts to what the cache is to hold."""
        kept: set[Path] = set()
        for part, overlap, mine_EI in self._shares():
            if self._is_plain(part, mine_EI):
                kept.add(part.path)
            else:
                kept |= {
                    write_part(
                        self.store.parts_folder, rows, self.identity.exits, self.identity.images
                    )
                    for rows in self._excerpts(part, overlap, mine_EI)
                }
        # Only now that all excerpts are on disk: a kill before this leaves rows twice, never none.
        for path in parquet_files(self.store.parts_folder):
            if path not in kept:
                path.unlink()

    def _write_labels(self) -> None:
        """Have the images say as labels what the exit in the place of masks predicted."""
        label: dict[str, list[int]] = {}
        for part in self._whole_parts():
            if self.identity.labels in part.exits:
                column = list(part.exits).index(self.identity.labels)
                predicted_IC = read_counts(part, ["predicted"])["predicted"][:, column]
                label |= zip(part.images, predicted_IC.tolist(), strict=True)
        rows = [
            {**row, "label": label[row["image_id"]]}
            for row in self.store.images(self.store.manifest())
        ]
        # A kill before the manifest follows leaves one that does not fit: images are read again,
        # and no prediction is lost.
        write_rows(self.store.images_file, rows, IMAGES)

    def _shares(self) -> Iterator[tuple[Part, Overlap, NDArray[np.bool_]]]:
        """Which predictions of the overlap to take from each part, so that none comes twice."""
        free_EI = np.ones((len(self.identity.exits), len(self.identity.images)), np.bool_)
        parts = [part for part in self._whole_parts() if self._serves(part)]
        # The largest first: where parts overlap, small ones give way and are written again.
        for part in sorted(parts, key=lambda part: -len(part.images) * len(part.exits)):
            overlap = self._overlap(part)
            block = np.ix_(overlap.exits, overlap.images)
            mine_EI, free_EI[block] = free_EI[block], False
            yield part, overlap, mine_EI

    def _excerpts(
        self, part: Part, overlap: Overlap, mine_EI: NDArray[np.bool_]
    ) -> Iterator[PartRows]:
        """Rows of a part that are still wanted, with what is wanted of them."""
        rows = read_rows_of(part)
        exits = np.array(rows.exits)[overlap.part_exits]
        images = np.array(rows.images)[overlap.part_images]
        # What is wanted need not be a block, as a part is: one part for each pattern of exits.
        for mine_E in np.unique(mine_EI, axis=1).T:
            if not mine_E.any():
                continue
            alike = (mine_EI == mine_E[:, np.newaxis]).all(axis=0)
            some = excerpt(
                rows, images[alike].tolist(), exits[mine_E].tolist(), self.identity.signal_names
            )
            # Indexing by arrays copied them already.
            label_map, confidence_map = some.label_map, some.confidence_map
            if not self.identity.label_maps:
                label_map[:] = None
            for e, exit_id in enumerate(some.exits):
                if exit_id not in self.identity.confidence_maps:
                    confidence_map[:, e] = None
            yield replace(some, label_map=label_map, confidence_map=confidence_map)

    def _serves(self, part: Part) -> bool:
        """Whether a part has all signals and the label maps."""
        return set(self.identity.signal_names) <= set(part.signal_names) and (
            part.label_maps or not self.identity.label_maps
        )

    def _is_plain(self, part: Part, mine_EI: NDArray[np.bool_]) -> bool:
        """Whether a part has nothing besides what is taken from it, in the right order."""
        return (
            np.count_nonzero(mine_EI) == len(part.images) * len(part.exits)
            and part.signal_names == self.identity.signal_names
            and part.label_maps == self.identity.label_maps
            and set(part.confidence_maps) <= set(self.identity.confidence_maps)
        )

    def _overlap(self, part: Part) -> Overlap:
        """What of a part is still true and has the confidence maps it should have."""
        wanted = set(self.identity.confidence_maps) - set(part.confidence_maps)
        # No fingerprint is empty: an exit that lacks the maps it should have matches nothing.
        exits = {e: "" if e in wanted else print_ for e, print_ in self.identity.exits.items()}
        return Overlap.of(part, exits, self.identity.images)

    def _whole_parts(self) -> Iterator[Part]:
        """The parts that can be used; each is read through once, for its name is its content.

        One of an earlier version cannot: what it lacks takes the network to run again, which gives
        all the rest, too.
        """
        for path in find_parts(self.store.parts_folder):
            if path not in self._opened:
                try:
                    self._opened[path] = open_part(path)
                except CacheError:
                    continue
            if self._opened[path].schema_version == SCHEMA_VERSION:
                yield self._opened[path]

    def _recorded(self) -> CacheManifest | None:
        """The manifest if it is of this identity and the images are as it says."""
        try:
            manifest = self.store.manifest()
            rows = self.store.images(manifest)
        except CacheError:
            return None
        images = {row["image_id"]: row["fingerprint"] for row in rows}
        expected = {"schema_version": SCHEMA_VERSION} | self.identity.to_json()
        # Equal dicts may differ in order, and the order of the images is that of the axes.
        same = images == dict(self.identity.images) and list(images) == list(self.identity.images)
        whole = all("thumbnail" in row for row in rows)
        return manifest if same and whole and expected.items() <= manifest.items() else None

    def _known_rows(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        try:
            rows = self.store.images(self.store.manifest())
        except CacheError:
            return {}
        # Without a thumbnail a row is of an earlier version, and the image is looked at again.
        whole = (row for row in rows if "thumbnail" in row)
        return {(row["image_id"], row["fingerprint"]): row for row in whole}

    def _write_manifest(self, *, shapes: Mapping[str, tuple[int, int]], complete: bool) -> None:
        self.store.write_manifest(
            {
                **self.identity.to_json(),
                "images_sha256": sha256(self.store.images_file),
                "native_shapes": {name: list(shape) for name, shape in shapes.items()},
                "complete": complete,
            }
        )


def _extended(base: Part, rows: PartRows) -> PartRows:
    """`rows` with all that they lack taken from `base`: everything but the signals in them."""
    stored = read_rows_of(base)
    old = excerpt(stored, rows.images, rows.exits, stored.signal_names)
    columns = {
        name: some.signals[:, :, k]
        for some in (old, rows)
        for k, name in enumerate(some.signal_names)
    }
    return replace(
        old,
        signal_names=tuple(columns),
        signals=np.stack(list(columns.values()), axis=2),
    )
