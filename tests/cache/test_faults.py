"""Faults put into a cache: no wrong number is ever read, and each is repaired or named."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mess.cache.content import STEM, SUFFIX
from mess.cache.pairs.store import PairStore
from mess.cache.predictions import verify as integrity
from mess.cache.predictions.store import PredictionStore, Snapshot
from mess.cache.predictions.writer import Gap
from mess.common.files import write_named_by_content
from mess.errors import CacheError, MessError
from tests.cache.conftest import (
    EXITS,
    IDENTITY,
    IMAGES,
    PART_IMAGES,
    SHAPE,
    assert_true,
    begin,
    fill,
    part_files,
    prediction,
)
from tests.caches import rows_of

Fault = Callable[[PredictionStore], None]


def cut(part: int, keep: float) -> Fault:
    """A file that ends early; negative `keep` leaves so many bytes out."""

    def fault(store: PredictionStore) -> None:
        path = part_files(store)[part]
        content = path.read_bytes()
        size = int(keep * len(content)) if abs(keep) < 1 else int(keep)
        path.write_bytes(content[:size])

    return fault


def flip(part: int, place: float) -> Fault:
    """One byte inverted, at a share of the file's length."""
    return lambda store: _flip(part_files(store)[part], place)


def _flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= 0xFF
    path.write_bytes(content)


def swap_names(store: PredictionStore) -> None:
    first, second, _ = part_files(store)
    aside = first.with_suffix(".aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def copy_over(store: PredictionStore) -> None:
    first, second, _ = part_files(store)
    shutil.copy(first, second)


def edit_manifest(store: PredictionStore, edit: Callable[[str], str]) -> None:
    path = store.directory / "manifest.json"
    path.write_text(edit(path.read_text()))


def old_schema(store: PredictionStore) -> None:
    """What version 1 wrote: numbered parts, another manifest."""
    for number, path in enumerate(part_files(store)):
        path.rename(path.with_name(f"part-{number:05d}.parquet"))
    old = {"schema_version": 1, "classes": ["sky"], "complete": True}
    edit_manifest(store, lambda _: json.dumps(old))


DAMAGE: dict[str, tuple[Callable[[PredictionStore], object], int]] = {
    "empty part": (cut(0, 0), 6),
    "part of 4 bytes": (cut(0, 4), 6),
    "part of 300 bytes": (cut(1, 300), 6),
    "half a part": (cut(1, 0.5), 6),
    "part without its last byte": (cut(2, -1), 3),
    "part without its footer": (cut(2, -8), 3),
    "first byte flipped": (flip(0, 0), 6),
    "byte of the data flipped": (flip(0, 0.1), 6),
    "byte at a quarter flipped": (flip(1, 0.25), 6),
    "byte in the middle flipped": (flip(1, 0.5), 6),
    "byte of the metadata flipped": (flip(2, 0.75), 3),
    "byte near the end flipped": (flip(2, 0.95), 3),
    "last byte flipped": (flip(0, 1), 6),
    "bytes appended": (lambda s: _append(part_files(s)[0]), 6),
    "part deleted": (lambda s: part_files(s)[1].unlink(), 6),
    "all parts deleted": (lambda s: shutil.rmtree(s.parts_folder), 15),
    "names swapped": (swap_names, 12),
    "part copied over another": (copy_over, 6),
    "manifest deleted": (lambda s: (s.directory / "manifest.json").unlink(), 0),
    "manifest cut": (lambda s: edit_manifest(s, lambda text: text[:100]), 0),
    "manifest empty": (lambda s: edit_manifest(s, lambda _: ""), 0),
    "manifest no object": (lambda s: edit_manifest(s, lambda _: "[1, 2]"), 0),
    "manifest with another digit": (
        lambda s: edit_manifest(s, lambda text: text.replace("0.5", "0.6")),
        0,
    ),
    "manifest says complete": (
        lambda s: edit_manifest(s, lambda text: text.replace('"images": 5', '"images": 4')),
        0,
    ),
    "manifest of a later version": (
        lambda s: edit_manifest(
            s, lambda text: text.replace('"schema_version": 3', '"schema_version": 4')
        ),
        0,
    ),
    "images cut": (lambda s: s.images_file.write_bytes(s.images_file.read_bytes()[:200]), 0),
    "images flipped": (lambda s: _flip(s.images_file, 0.3), 0),
    "images deleted": (lambda s: s.images_file.unlink(), 0),
    "old schema": (old_schema, 15),
    "file that is no part": (
        lambda s: shutil.copy(part_files(s)[0], s.parts_folder / "part-00000.parquet"),
        0,
    ),
    "everything deleted": (lambda s: shutil.rmtree(s.directory), 15),
}
"""Each with the number of predictions that its repair has to compute."""


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_repaired(store: PredictionStore, name: str) -> None:
    fault, lost = DAMAGE[name]
    fault(store)
    if name == "file that is no part":
        assert_true(store.read({})[0])
    else:
        with pytest.raises(CacheError, match=r"Run `mess memoise --"):
            store.read({})
    assert integrity.verify(store).faults
    assert fill(store) == lost
    assert_true(store.read({})[0])
    assert integrity.verify(store).faults == ()
    assert len(list(store.parts_folder.iterdir())) == len(part_files(store))


@pytest.mark.parametrize("part", range(3))
def test_every_byte_of_a_part_counts(store: PredictionStore, part: int) -> None:
    path = part_files(store)[part]
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(CacheError, match=path.name):
            store.read({})


def test_a_damaged_part_is_named_by_every_check(store: PredictionStore) -> None:
    path = part_files(store)[1]
    _flip(path, 0.4)
    (lost,) = [fault for fault in integrity.verify(store).faults if path.name in fault]
    assert "was altered or cut short" in lost
    with pytest.raises(CacheError, match=path.name):
        Snapshot(store, None).label_maps(["image-0"])


def _killed_while_writing(directory: Path) -> None:
    """Writes one part, then dies in the middle of the second."""
    store = PredictionStore(directory)
    writer, gaps = begin(store, IDENTITY)
    writer.write(gaps[0], rows_of(IDENTITY, gaps[0], prediction))

    def die(number: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die
    writer.write(gaps[1], rows_of(IDENTITY, gaps[1], prediction))


def _in_another_process(work: Callable[..., None], *arguments: object) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def test_a_kill_while_writing_loses_only_that_part(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    assert _in_another_process(_killed_while_writing, tmp_path) == -signal.SIGKILL
    assert len(list(store.parts_folder.glob(".part*"))) == 1
    with pytest.raises(CacheError, match="unfinished"):
        store.read({})
    assert fill(store) == 9
    assert_true(store.read({})[0])
    assert [path.name[0] for path in integrity.unneeded(store)] == ["."]


def _full_disk(directory: Path, limit: int) -> None:
    """As on a full disk: no file may grow beyond `limit` bytes."""
    store = PredictionStore(directory)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(MessError, match=r"(?s)no room for it .* run the same command again"):
        fill(store)


@pytest.mark.parametrize("limit", [10, 600, 3000])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, limit: int) -> None:
    store = PredictionStore(tmp_path)
    writer, gaps = begin(store, IDENTITY)
    writer.write(gaps[0], rows_of(IDENTITY, gaps[0], prediction))
    assert _in_another_process(_full_disk, tmp_path, limit) == 0
    assert not list(tmp_path.rglob(".*"))
    assert fill(store) == 9
    assert_true(store.read({})[0])


def _fill(directory: Path) -> None:
    fill(PredictionStore(directory))


def test_writers_at_the_same_time_do_not_harm_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_fill, args=(tmp_path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    # One may find the cache finished, or a part of another on its way; none may do harm.
    store = PredictionStore(tmp_path)
    assert integrity.verify(store).faults == ()
    assert_true(store.read({})[0])
    assert fill(store) == 0


def test_a_part_that_is_what_its_name_says_and_no_part_is_made_again(
    store: PredictionStore,
) -> None:
    """As a writer with a fault would leave it: whole by its name, and nothing to be read."""
    path = part_files(store)[0]
    path.unlink()
    other = write_named_by_content(store.parts_folder, STEM, SUFFIX, lambda to: to.touch())
    pairs = PairStore(store.directory)
    pair = write_named_by_content(pairs.parts_folder, STEM, SUFFIX, lambda to: to.touch())
    assert integrity.unneeded(store) == sorted([other, pair])
    assert fill(store) == len(EXITS) * PART_IMAGES
    assert not other.exists()
    pairs.drop_damaged()
    assert not pair.exists()
    assert_true(store.read({})[0])


def test_a_reader_sees_whole_caches_while_one_is_rewritten(store: PredictionStore) -> None:
    identities = [IDENTITY, replace(IDENTITY, exits=dict.fromkeys(EXITS, "other"), weights="other")]
    known = {identity.weights: identity for identity in identities}
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for identity in reversed(identities):
                fill(store, identity)

    writer = threading.Thread(target=rewrite)
    writer.start()
    read, end = 0, time.monotonic() + 60
    try:
        while read < 20 and time.monotonic() < end:
            try:
                found, manifest = store.read({})
            except CacheError:
                continue
            assert_true(found, known[manifest["weights"]])
            read += 1
    finally:
        stop.set()
        writer.join()
    assert read == 20


def test_predictions_that_are_there_twice_are_named_and_reduced(store: PredictionStore) -> None:
    """As after a kill within the last step of a writer."""
    writer, _ = begin(store, IDENTITY)
    everything = Gap(
        images=tuple(range(len(IMAGES))), exits=tuple(EXITS), signal_names=IDENTITY.signal_names
    )
    writer.write(everything, rows_of(IDENTITY, everything, prediction))
    assert_true(store.read({})[0])
    assert "holds 15 predictions twice" in integrity.verify(store).faults[0]
    assert not writer.is_finished()
    assert fill(store) == 0
    assert writer.is_finished()
    assert len(part_files(store)) == 1
    assert integrity.verify(store).faults == ()
    assert_true(store.read({})[0])


def test_nothing_of_a_complete_cache_is_unneeded(store: PredictionStore) -> None:
    assert integrity.unneeded(store) == []
    (store.parts_folder / "notes.txt").write_text("not of mess")
    (store.parts_folder / ".part.folder").mkdir()
    (store.directory / ".manifest.json.abc").write_text("left by a killed writer")
    store.hashes_file.write_text("{}")
    (store.directory / ".file-hashes.json.new").write_text("of a search that may be at work")
    assert [path.name for path in integrity.unneeded(store)] == [".manifest.json.abc"]
    (store.directory / "manifest.json").unlink()
    assert [path.name for path in integrity.unneeded(store)] == [".manifest.json.abc"]
    (old := store.directory / ".file-hashes.json.old").write_text("left by a killed search")
    os.utime(old, (1, 1))
    assert [path.name for path in integrity.unneeded(store)] == [old.name, ".manifest.json.abc"]


def test_what_an_unfinished_cache_can_still_use_is_needed(store: PredictionStore) -> None:
    more = replace(IDENTITY, signals=(*IDENTITY.signals, {"name": "new"}))
    begin(store, more)
    assert integrity.unneeded(store) == []
    begin(store, replace(IDENTITY, exits=dict.fromkeys(EXITS, "other")))
    assert integrity.unneeded(store) == sorted(part_files(store))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        ("intersection", "more correct pixels than"),
        ("predicted", "not as many as its labelled pixels"),
        ("agreement", "agree on more pixels than"),
        ("lost", "are lost than are wrong"),
        ("signals", "a signal is not a number"),
    ],
)
def test_numbers_that_cannot_be_are_named(tmp_path: Path, spoil: str, fault: str) -> None:
    """A writer with a fault: checksums are right, the numbers are not."""
    store = PredictionStore(tmp_path)
    writer, gaps = begin(store, IDENTITY)
    for gap in gaps:
        rows = rows_of(IDENTITY, gap, prediction)
        values = getattr(rows, spoil).copy()
        values[0, 1] = float("nan") if spoil == "signals" else values[0, 1] + 2000
        writer.write(gap, replace(rows, **{spoil: values}))
    writer.finish(dict.fromkeys(EXITS, SHAPE))
    faults = integrity.verify(store).faults
    assert faults
    assert all(fault in text for text in faults if "more correct" not in fault)
    assert any(fault in text for text in faults)


@pytest.mark.parametrize("key", ["classes", "source", "complete"])
def test_a_manifest_that_lacks_a_key_is_named_with_it(store: PredictionStore, key: str) -> None:
    manifest = dict(store.manifest())
    del manifest[key], manifest["schema_version"]
    store.write_manifest(manifest)
    with pytest.raises(CacheError, match=rf"manifest\.json lacks {key}\. Run `mess memoise"):
        store.manifest()
