"""Looking after the caches of a run. No torch."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mess.cache.content import find_parts, remedy
from mess.cache.pairs.store import PairStore
from mess.cache.pairs.verify import count_pairs, pair_bytes
from mess.cache.predictions.store import PredictionStore, Snapshot
from mess.cache.predictions.verify import missing, unneeded, verify
from mess.common.progress import Reporter
from mess.errors import CacheError, DataError, MessError, nearest
from mess.runs.freshness import data_changes, why_stale
from mess.runs.run import Run


def describe_caches(place: Run) -> list[dict[str, Any]]:
    """One row a cache: what it holds, what it takes up, and its `state`, "ready" or what is wrong.

    Only `verify_caches` reads all of the parts and looks at the data.
    """
    return [_described(place, name) for name in place.caches()]


def verify_caches(place: Run, name: str | None, reporter: Reporter) -> list[dict[str, Any]]:
    """One row a cache: what was looked at, and its `faults`.

    Besides the files, weights, exits, signals and data are held against those of the run.
    """
    rows = []
    place.forget_hashes()
    for cache in _named(place, name):
        begun = time.monotonic()
        store = PredictionStore(place.cache(cache))
        found = verify(store)
        told = [*found.faults, why_stale(place, cache)]
        try:
            told.append(data_changes(place, Snapshot(store, None)))
        except DataError as error:
            reporter.message(f"Cache {cache} was not held against its data: {error}")
        except CacheError:
            pass  # is among the faults
        # What cannot be read is found at each look.
        faults = list(dict.fromkeys(filter(None, told)))
        rows.append(
            {
                "name": cache,
                "parts": found.parts,
                "rows": found.rows,
                "bytes": found.bytes,
                "seconds": time.monotonic() - begun,
                "faults": faults,
            }
        )
    return rows


def prune_caches(place: Run, name: str | None, *, dry_run: bool) -> list[dict[str, Any]]:
    """Delete what no reader needs; one row a file, with its size. A dry run deletes nothing."""
    # Under the lock nobody memoises, so what is not finished was left by a kill.
    with nullcontext() if dry_run else place.locked():
        stores = [PredictionStore(place.cache(cache)) for cache in _named(place, name)]
        rows = [
            {"file": str(path), "bytes": path.stat().st_size}
            for store in stores
            for path in unneeded(store)
        ]
        if not dry_run:
            for row in rows:
                # A search holds no lock, and may have finished its file meanwhile.
                Path(row["file"]).unlink(missing_ok=True)
    return rows


def _described(place: Run, name: str) -> dict[str, Any]:
    store = PredictionStore(place.cache(name))
    held = Snapshot(store, None)
    paths = find_parts(store.parts_folder)
    row: dict[str, Any] = {
        "name": name,
        "bytes": sum(path.stat().st_size for path in paths),
        "parts": len(paths),
        "pair_bytes": pair_bytes(PairStore(store.directory)),
    }
    try:
        manifest = held.manifest
    except MessError as error:
        return {**row, "state": str(error)}
    return {
        **row,
        "split": manifest["source"]["split"],
        "root": manifest["source"]["root"],
        "labels": manifest["labels"],
        "images": manifest["images"],
        "exits": len(manifest["exits"]),
        "signals": [signal["name"] for signal in manifest["signals"]],
        "label_maps": manifest["label_maps"],
        "pairs": _pairs(held),
        "state": why_stale(place, name) or _holes(store) or "ready",
    }


def _holes(store: PredictionStore) -> str | None:
    """What a complete cache lacks nevertheless."""
    try:
        lacking = missing(store)
    except CacheError as error:
        return str(error)
    if not lacking:
        return None
    return f"{store.directory} lacks {lacking} predictions. Run {remedy(store.directory)}."


def _pairs(held: Snapshot) -> int | None:
    """Pairs of exits that have their signals; None where that cannot be told."""
    try:
        pairs = PairStore(held.store.directory)
        return count_pairs(pairs, held.exit_fingerprints, held.image_fingerprints)
    except CacheError:
        return None


def _named(place: Run, name: str | None) -> list[str]:
    known = place.caches()
    if not known:
        raise CacheError(f"{place.path} has no cache yet. Run {place.command('memoise')} first.")
    if name is not None and name not in known:
        raise CacheError(f"{place.path} has no cache {name!r}; {nearest(name, known)}")
    return known if name is None else [name]
