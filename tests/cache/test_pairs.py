"""Signals of pairs: read while they are true; faults are passed over and named."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mess.cache.pairs import store as pairs
from mess.cache.pairs.store import PairBlock, PairStore, blocks
from mess.cache.pairs.verify import count_pairs, unneeded_pairs, verify_pairs
from mess.cache.parquet import read_facts, write_table
from mess.cache.predictions import verify as integrity
from mess.cache.predictions.store import PredictionStore
from mess.cache.schema import PAIRS
from mess.common.files import write_named_by_content
from tests.cache.conftest import CLASSES
from tests.seeds import seeded

EXITS = {"p1-crm1-b0-fcn": "e1", "p1-crm2-b0-fcn": "e2", "p2-crm1-b0-fcn": "e3", "final": "e4"}
FIRST, SECOND, THIRD, LAST = EXITS
IMAGES = {f"image-{i}": f"i{i}" for i in range(5)}
HALVES = tuple(IMAGES)[:3], tuple(IMAGES)[3:]
VI = "vi"


def signal(*fingerprints: str) -> np.float32:
    """A number that depends on the fingerprints alone."""
    return np.float32(-(zlib.crc32(" ".join(fingerprints).encode()) % 3001) / 1000)


def block(
    exits_a: tuple[str, ...],
    exits_b: tuple[str, ...],
    images: tuple[str, ...] = tuple(IMAGES),
) -> PairBlock:
    rows = product(exits_b, exits_a, images)
    signals = [signal(EXITS[a], EXITS[b], IMAGES[i]) for b, a, i in rows]
    shape = len(exits_b), len(exits_a), len(images)
    return PairBlock(
        exits_a=exits_a,
        exits_b=exits_b,
        images=images,
        signal_BAI=np.array(signals, np.float32).reshape(shape),
    )


def write(
    store: PairStore,
    exits_a: tuple[str, ...],
    exits_b: tuple[str, ...],
    images: tuple[str, ...] = tuple(IMAGES),
) -> Path:
    return store.write(VI, block(exits_a, exits_b, images), EXITS, IMAGES)


@pytest.fixture
def pair_store(tmp_path: Path) -> PairStore:
    """(FIRST, SECOND) before THIRD in two parts, FIRST before SECOND in one."""
    store = PairStore(tmp_path / "calibration")
    for images in HALVES:
        write(store, (FIRST, SECOND), (THIRD,), images)
    write(store, (FIRST,), (SECOND,))
    return store


HELD = {(FIRST, THIRD), (SECOND, THIRD), (FIRST, SECOND)}


def files(store: PairStore) -> list[Path]:
    """The parts, that of two exits before another for the first images first."""
    return sorted(
        store.parts_folder.glob("part-*.parquet"),
        key=lambda path: (-len(read_facts(path)["exits_a"]), -len(read_facts(path)["images"])),
    )


def assert_holds(
    store: PairStore,
    held: set[tuple[str, str]],
    exits: Mapping[str, str] = EXITS,
    images: Mapping[str, str] = IMAGES,
    lost: tuple[str, ...] = (),
) -> None:
    """These pairs for all images but those lost; every other is NaN."""
    found = store.read(VI, exits, images)
    assert found.dtype == np.float32
    assert found.shape == (len(exits), len(exits), len(images))
    for (a, exit_a), (b, exit_b), (i, image) in product(
        enumerate(exits), enumerate(exits), enumerate(images)
    ):
        if (exit_a, exit_b) in held and image not in lost:
            assert found[a, b, i] == signal(EXITS[exit_a], EXITS[exit_b], IMAGES[image])
        else:
            assert np.isnan(found[a, b, i])


def test_what_was_written_is_read_and_nothing_else(pair_store: PairStore) -> None:
    assert_holds(pair_store, HELD)
    assert np.isnan(pair_store.read("another", EXITS, IMAGES)).all()


def test_it_is_read_in_the_order_asked_for(pair_store: PairStore) -> None:
    assert_holds(pair_store, HELD, dict(reversed(EXITS.items())), dict(reversed(IMAGES.items())))
    some = {name: IMAGES[name] for name in ("image-4", "image-1")}
    assert_holds(pair_store, {(SECOND, THIRD)}, {THIRD: "e3", "new": "e9", SECOND: "e2"}, some)


def test_a_cache_without_pairs_holds_none(tmp_path: Path) -> None:
    assert_holds(PairStore(tmp_path / "none"), set())


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        (FIRST, {(SECOND, THIRD)}),
        (SECOND, {(FIRST, THIRD)}),
        (THIRD, {(FIRST, SECOND)}),
        (LAST, HELD),
    ],
)
def test_of_a_changed_exit_nothing_is_read(
    pair_store: PairStore, changed: str, left: set[tuple[str, str]]
) -> None:
    assert_holds(pair_store, left, EXITS | {changed: "other"})


def test_of_a_changed_image_nothing_is_read(pair_store: PairStore) -> None:
    assert_holds(pair_store, HELD, images=IMAGES | {"image-3": "other"}, lost=("image-3",))


def test_files_have_the_rows_that_were_published(pair_store: PairStore) -> None:
    table = pq.read_table(files(pair_store)[0])
    assert table.schema.remove_metadata() == PAIRS
    assert table.to_pylist() == [
        {
            "exit_a": exit_a,
            "exit_b": THIRD,
            "image_id": image,
            "signal": signal(EXITS[exit_a], "e3", IMAGES[image]),
        }
        for exit_a in (FIRST, SECOND)
        for image in HALVES[0]
    ]


def test_the_same_signals_are_the_same_file(pair_store: PairStore) -> None:
    before = files(pair_store)
    assert write(pair_store, (FIRST,), (SECOND,)) in before
    assert files(pair_store) == before


def flip(place: float) -> Callable[[bytes], bytes]:
    def spoil(content: bytes) -> bytes:
        position = min(int(place * len(content)), len(content) - 1)
        return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]

    return spoil


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "appended to": lambda content: content + b"more",
    **{f"flipped at {place}": flip(place) for place in (0, 0.05, 0.2, 0.5, 0.75, 1)},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_part_is_passed_over_and_named(pair_store: PairStore, name: str) -> None:
    path = files(pair_store)[0]
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    assert np.isnan(pair_store.read(VI, EXITS, IMAGES)[0, 2]).tolist() == [True] * 3 + [False] * 2
    (fault,) = verify_pairs(pair_store, len(CLASSES)).faults
    assert fault.startswith(f"{path} was altered or cut short.")
    assert unneeded_pairs(pair_store, EXITS, IMAGES, len(CLASSES)) == [path]
    assert write(pair_store, (FIRST, SECOND), (THIRD,), HALVES[0]) == path
    assert_holds(pair_store, HELD)
    assert verify_pairs(pair_store, len(CLASSES)).faults == ()


def test_damaged_parts_can_be_dropped(pair_store: PairStore) -> None:
    lost, *left = files(pair_store)
    lost.write_bytes(b"PAR1")
    pair_store.drop_damaged()
    assert files(pair_store) == left


def test_a_part_under_anothers_name_is_passed_over(pair_store: PairStore) -> None:
    first, second, _ = files(pair_store)
    first.write_bytes(second.read_bytes())
    assert np.isnan(pair_store.read(VI, EXITS, IMAGES)[0, 2]).tolist() == [True] * 3 + [False] * 2
    assert len(verify_pairs(pair_store, len(CLASSES)).faults) == 1


def test_parts_of_another_version_are_passed_over(
    pair_store: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "PAIRS_VERSION", 99)
    assert_holds(pair_store, set())
    assert "of another version" in verify_pairs(pair_store, len(CLASSES)).faults[0]
    assert count_pairs(pair_store, EXITS, IMAGES) == 0


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (float("nan"), "a signal is not a number"),
        (float("-inf"), "a signal is not a number"),
        (1e-6, "a signal is above 0"),
        (-2 * np.log2(len(CLASSES)) - 1e-3, "below -3.170, which 3 classes cannot give"),
    ],
)
def test_numbers_that_cannot_be_are_named(pair_store: PairStore, value: float, fault: str) -> None:
    """A writer with a fault: the checksum is right, the number is not."""
    spoilt = block((FIRST,), (LAST,))
    spoilt.signal_BAI[0, 0, 2] = value
    path = pair_store.write(VI, spoilt, EXITS, IMAGES)
    faults = verify_pairs(pair_store, len(CLASSES)).faults
    assert all(text.startswith(f"{path}: ") for text in faults)
    assert any(fault in text for text in faults)
    assert unneeded_pairs(pair_store, EXITS, IMAGES, len(CLASSES)) == [path]


def test_numbers_that_can_just_be_are_no_fault(pair_store: PairStore) -> None:
    least = block((FIRST,), (LAST,))
    least.signal_BAI[0, 0, :2] = -2 * np.log2(len(CLASSES)), 0
    pair_store.write(VI, least, EXITS, IMAGES)
    assert verify_pairs(pair_store, len(CLASSES)).faults == ()


def test_a_number_that_cannot_be_hides_none_that_can(pair_store: PairStore) -> None:
    for value in (float("nan"), 1.0):
        spoilt = block((FIRST, SECOND), (THIRD,))
        spoilt.signal_BAI[:] = value
        pair_store.write(VI, spoilt, EXITS, IMAGES)
        assert_holds(pair_store, HELD)


def test_rows_of_other_pairs_than_stated_are_named(pair_store: PairStore) -> None:
    whole = files(pair_store)[2]
    table, facts = pq.read_table(whole), read_facts(whole)
    for rows in (table.take([1, 0, 2, 3, 4]), table.slice(1)):
        path = write_named_by_content(
            pair_store.parts_folder,
            "part",
            ".parquet",
            lambda path, rows=rows: write_table(path, rows, facts),
        )
        (fault,) = verify_pairs(pair_store, len(CLASSES)).faults
        assert "rows are not those that the file says" in fault
        assert path.name in fault
        assert unneeded_pairs(pair_store, EXITS, IMAGES, len(CLASSES)) == [path]
        path.unlink()


def test_what_is_not_current_is_no_fault_and_can_go(pair_store: PairStore) -> None:
    first, second, other = files(pair_store)
    assert verify_pairs(pair_store, len(CLASSES)).faults == ()

    def unneeded(exits: Mapping[str, str], images: Mapping[str, str]) -> list[Path]:
        return unneeded_pairs(pair_store, exits, images, len(CLASSES))

    assert unneeded(EXITS, IMAGES) == []
    assert unneeded(EXITS | {SECOND: "other"}, IMAGES) == [other]
    assert unneeded(EXITS | {THIRD: "other"}, IMAGES) == sorted([first, second])
    assert unneeded(EXITS, {name: IMAGES[name] for name in HALVES[1]}) == [first]
    assert unneeded({}, IMAGES) == sorted([first, second, other])


def test_what_other_parts_hold_as_well_can_go(pair_store: PairStore) -> None:
    twice = files(pair_store)
    whole = write(pair_store, (FIRST, SECOND), (SECOND, THIRD))
    assert unneeded_pairs(pair_store, EXITS, IMAGES, len(CLASSES)) == sorted(twice)
    assert_holds(pair_store, HELD | {(SECOND, SECOND)})
    other = pair_store.write("other", block((FIRST,), (THIRD,)), EXITS, IMAGES)
    assert unneeded_pairs(pair_store, EXITS, IMAGES, len(CLASSES)) == sorted(twice)
    assert {whole, other} < set(files(pair_store))


def test_what_a_killed_writer_left_goes_once_it_is_old(pair_store: PairStore) -> None:
    """A search may be writing, and holds no lock."""
    left = pair_store.parts_folder / ".part.parquet.abc"
    left.write_text("half")
    assert unneeded_pairs(pair_store, EXITS, IMAGES, len(CLASSES)) == []
    os.utime(left, (0, time.time() - 7200))
    assert unneeded_pairs(pair_store, EXITS, IMAGES, len(CLASSES)) == [left]
    assert unneeded_pairs(pair_store, None, {}, 0) == [left]


def test_pairs_are_counted_that_have_every_image(pair_store: PairStore) -> None:
    assert count_pairs(pair_store, EXITS, IMAGES) == 3
    assert count_pairs(pair_store, EXITS | {FIRST: "other"}, IMAGES) == 1
    assert count_pairs(pair_store, EXITS, IMAGES | {"image-9": "i9"}) == 0
    files(pair_store)[1].unlink()
    assert count_pairs(pair_store, EXITS, IMAGES) == 1


def test_a_cache_is_verified_and_pruned_with_its_pairs(store: PredictionStore) -> None:
    manifest = store.manifest()
    exits = manifest["exit_fingerprints"]
    images = {row["image_id"]: row["fingerprint"] for row in store.images(manifest)}
    before = integrity.verify(store)
    held = PairStore(store.directory)
    ids = tuple(exits)
    current = PairBlock(
        exits_a=ids[:1],
        exits_b=ids[1:2],
        images=tuple(images),
        signal_BAI=np.zeros((1, 1, len(images)), np.float32),
    )
    path = held.write(VI, current, exits, images)
    stale = held.write(VI, current, dict.fromkeys(exits, "old"), images)
    found = integrity.verify(store)
    assert found.faults == ()
    assert (found.parts, found.rows) == (before.parts + 2, before.rows + 10)
    assert found.bytes == before.bytes + path.stat().st_size + stale.stat().st_size
    assert integrity.unneeded(store) == [stale]
    path.write_bytes(b"")
    assert path.name in integrity.verify(store).faults[0]
    assert integrity.unneeded(store) == sorted([path, stale])
    left = held.parts_folder / ".part.parquet.abc"
    left.write_text("half")
    os.utime(left, (0, 0))
    (store.directory / "manifest.json").unlink()
    assert integrity.unneeded(store) == [left]


@pytest.mark.parametrize("seed", range(10))
def test_blocks_are_the_pairs_given_once_each(seed: int) -> None:
    rng = np.random.default_rng(seeded(seed))
    lacks = rng.random((7, 7)) < rng.random(7).round(1)
    covered = np.zeros((7, 7), int)
    for exits_a, exits_b in blocks(lacks):
        covered[np.ix_(exits_a, exits_b)] += 1
    np.testing.assert_array_equal(covered, lacks)


def test_exits_by_points_make_a_block_a_point() -> None:
    point = np.array([1, 1, 2, 2, 2, 3, 3])
    found = [(a.tolist(), b.tolist()) for a, b in blocks(point[:, None] < point)]
    assert found == [([0, 1], [2, 3, 4]), ([0, 1, 2, 3, 4], [5, 6])]
