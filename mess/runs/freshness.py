"""Whether a cache is still of the run's network and data. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mess.cache.predictions.store import Snapshot
from mess.common.file_hashes import FileHashes
from mess.common.files import sha256
from mess.common.progress import Reporter
from mess.errors import CacheError, DataError, MessError
from mess.runs.run import Run
from mess.runs.sources import ImageSource


def require_current_data(place: Run, cache: Snapshot, reporter: Reporter) -> None:
    """Raise CacheError where the data is not what was memoised; say so where it is not there.

    Files that look untouched since an earlier search are not read.
    """
    hashes = FileHashes(cache.store.hashes_file)
    try:
        changes = data_changes(place, cache, hashes.sha256)
        if changes:
            # A damaged record refuses nothing: the files have the last word.
            hashes.forget()
            changes = data_changes(place, cache, hashes.sha256)
    except DataError as error:
        reporter.message(f"The cache was not held against its data: {error}")
        return
    hashes.save()
    if changes:
        raise CacheError(changes)


def data_changes(
    place: Run, cache: Snapshot, hash_file: Callable[[Path], str] = sha256
) -> str | None:
    """How the data differs from what was memoised; raises DataError where it cannot be read.

    Every file is read, unless `hash_file` knows its sha256 otherwise.
    """
    source = ImageSource.of(cache.manifest["source"])
    try:
        now = source.open(place).image_fingerprints(hash_file=hash_file)
    except DataError:
        raise
    except MessError as error:
        raise DataError(str(error)) from error
    then = cache.image_fingerprints
    # As lists, since order counts: positions in the tables are those of the images.
    if list(now.items()) == list(then.items()):
        return None
    changed = [name for name in now if name in then and now[name] != then[name]]
    added, removed = [n for n in now if n not in then], [n for n in then if n not in now]
    counts = ", ".join(
        f"{len(names)} {what} (such as {names[0]})"
        for what, names in (("changed", changed), ("new", added), ("gone", removed))
        if names
    )
    return (
        f"{cache.store.directory} is stale, for its images are no longer what they were: "
        f"{counts or 'their order changed'}. Run {cache.store.remedy} again; "
        "only what changed is computed."
    )


def why_stale(place: Run, name: str) -> str | None:
    """Why a search would refuse the cache of this name, apart from its data."""
    try:
        _ = place.open_cache(name).manifest
    except MessError as error:
        return str(error)
    return None
