"""Whether a prediction cache is whole, what it takes up, and what of it can go."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mess.cache.content import (
    Verification,
    find_parts,
    parquet_files,
    remedy,
    size_of,
)
from mess.cache.pairs.store import PairStore
from mess.cache.pairs.verify import unneeded_pairs, verify_pairs
from mess.cache.predictions.parts import Part, describe_part, open_part, read_counts, row_ids
from mess.cache.predictions.store import CacheManifest, Overlap, PredictionStore, Snapshot
from mess.common.files import is_abandoned
from mess.common.metrics import MASKS
from mess.errors import CacheError

_TEMPORARY = re.compile(r"\.(part|manifest|images)\.")
"""What names of files begin with that memoising has not finished."""


def verify(store: PredictionStore) -> Verification:
    """Look at everything in a cache: checksums, rows, pairs, and numbers that cannot be."""
    faults: list[str] = []
    again = remedy(store.directory)
    paths = parquet_files(store.parts_folder)
    try:
        held = Snapshot(store, None)
        manifest, prints = held.manifest, held.image_fingerprints
    except CacheError as error:
        return Verification(len(paths), 0, size_of(paths), (str(error),))
    images, exits = {row["image_id"]: row for row in held.images}, held.exit_fingerprints
    names = tuple(signal["name"] for signal in manifest["signals"])
    filled = np.zeros((len(exits), len(images)), np.int64)
    rows = 0
    for path in paths:
        try:
            part = open_part(path)
            rows += len(part.exits) * len(part.images)
            faults += [f"{path}: {fault}" for fault in _faults(part, images, manifest)]
        except CacheError as error:
            faults.append(str(error))
            continue
        overlap = Overlap.of(part, exits, prints)
        wanted_maps = set(manifest["confidence_maps"]) & set(part.exits)
        whole = (
            part.signal_names == names
            and part.schema_version == manifest["schema_version"]
            and part.label_maps == manifest["label_maps"]
            and set(part.confidence_maps) == wanted_maps
            and len(overlap.exits) == len(part.exits)
            and len(overlap.images) == len(part.images)
        )
        # An unfinished cache may hold parts of something else, which `finish` takes away. They
        # are no fault, but they do not count as predictions either.
        if whole or not manifest["complete"]:
            filled[np.ix_(overlap.exits, overlap.images)] += whole
        else:
            faults.append(f"{path} holds what the cache is not made for. Run {again}.")
    lacking, double = np.argwhere(filled == 0), np.argwhere(filled > 1)
    if len(double) and manifest["complete"]:
        exit_index, image_index = double[0]
        faults.append(
            f"{store.directory} holds {len(double)} predictions twice, the first of "
            f"{list(exits)[exit_index]} for image {list(images)[image_index]}. Run {again}."
        )
    if len(lacking):
        exit_index, image_index = lacking[0]
        faults.append(
            f"{store.directory} lacks {len(lacking)} predictions, the first of "
            f"{list(exits)[exit_index]} for image {list(images)[image_index]}. Run {again}."
        )
    elif not manifest["complete"]:
        faults.append(f"{store.directory} is unfinished. Run {again} to go on.")
    found = Verification(len(paths), rows, size_of(paths), tuple(faults))
    return found + verify_pairs(PairStore(store.directory), len(manifest["classes"]))


def missing(store: PredictionStore) -> int:
    """Predictions that a cache lacks by what its parts say of themselves; they are not read.

    Raises CacheError for a cache without a readable manifest or images.
    """
    held = Snapshot(store, None)
    images, exits = held.image_fingerprints, held.exit_fingerprints
    filled = np.zeros((len(exits), len(images)), np.bool_)
    for path in find_parts(store.parts_folder):
        part = describe_part(path)
        if part is not None and part.schema_version >= held.manifest["schema_version"]:
            overlap = Overlap.of(part, exits, images)
            filled[np.ix_(overlap.exits, overlap.images)] = True
    return int((~filled).sum())


def unneeded(store: PredictionStore) -> list[Path]:
    """Files of mess that nothing reads: of killed writers, damaged, or made for something else.

    Only those of killed writers where there is no manifest to tell the others.
    """
    left = [*store.directory.glob(".*"), *store.parts_folder.glob(".*")]
    files = {path for path in left if _TEMPORARY.match(path.name)}
    unfinished = store.directory.glob(f".{store.hashes_file.name}.*")
    # Searches write these without the lock of the run, so one may be at work.
    files |= {path for path in unfinished if is_abandoned(path)}
    pairs = PairStore(store.directory)
    try:
        held = Snapshot(store, None)
        images, exits = held.image_fingerprints, held.exit_fingerprints
    except CacheError:
        files |= set(unneeded_pairs(pairs, None, {}, 0))
        return sorted(filter(Path.is_file, files))
    files |= set(unneeded_pairs(pairs, exits, images, len(held.manifest["classes"])))
    for path in parquet_files(store.parts_folder):
        try:
            part = open_part(path)
            current = part.schema_version >= held.manifest["schema_version"]
            needed = current and bool(Overlap.of(part, exits, images))
        except CacheError:
            needed = False
        if not needed:
            files.add(path)
    return sorted(filter(Path.is_file, files))


def _faults(
    part: Part, images: Mapping[str, Mapping[str, Any]], manifest: CacheManifest
) -> Iterator[str]:
    """What cannot be true of the rows of a part."""
    if list(row_ids(part)) != list(product(part.images, part.exits)):
        # What follows reads rows by their place alone.
        yield "the rows are not those that the file says it holds"
        return
    counts = read_counts(part)
    hits, predicted = counts["intersection"], counts["predicted"]
    if (hits < 0).any() or (hits > predicted).any():
        yield "a class has more correct pixels than predicted ones"
    if manifest["labels"] in part.exits:
        itself = list(part.exits).index(manifest["labels"])
        if (hits[:, itself] != predicted[:, itself]).any():
            yield f"{manifest['labels']} differs from its own label maps, which are the labels"
    if not np.isfinite(counts["signals"]).all():
        yield "a signal is not a number"
    for i, (image_id, fingerprint) in enumerate(part.images.items()):
        image = images.get(image_id)
        if image is None or image["fingerprint"] != fingerprint:
            continue
        label = np.array(image["label"])
        # Labels that an exit gives are written when the cache is complete.
        if manifest["labels"] == MASKS or manifest["complete"]:
            if (hits[i] > label).any():
                yield f"a class of image {image_id} has more correct pixels than labelled ones"
            # Void is left out of both, so every labelled pixel is predicted as some class.
            if (predicted[i].sum(axis=1) != label.sum()).any():
                yield f"the predictions for image {image_id} are not as many as its labelled pixels"
            # Lost pixels are labelled ones that this exit gets wrong.
            lost = counts.get("lost", np.zeros_like(counts["agreement"]))[i]
            if (lost < 0).any() or (lost + hits[i].sum(axis=1) > label.sum()).any():
                yield f"more pixels of image {image_id} are lost than are wrong"
        # Void counts here: two exits can be compared without labels.
        if (counts["agreement"][i] > image["height"] * image["width"]).any():
            yield f"exits agree on more pixels than image {image_id} has"
