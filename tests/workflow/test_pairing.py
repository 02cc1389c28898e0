"""Bringing the pairs of a cache up to date: everything once, later only what is no longer true."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import variation_of_information

from mess import workflow
from mess.cache.compression import compress, decompress
from mess.cache.content import find_parts
from mess.cache.predictions import verify as integrity
from mess.cache.predictions.store import PredictionStore, Snapshot
from mess.cache.predictions.writer import CacheWriter, Identity
from mess.cli.app import main
from mess.common import files
from mess.common.progress import Silent, Task
from mess.config import MemoiseConfig
from mess.errors import CacheError
from mess.runs import pair_signals as pairing
from mess.runs.cache import RunCache
from mess.runs.pair_signals import pair_signals, possible_pairs
from mess.runs.run import Run
from tests.caches import fill
from tests.seeds import seeded

SHAPES = {
    "p1-crm1-b0-fcn": (6, 8),
    "p1-crm2-b0-fcn": (6, 8),
    "p2-crm1-b0-fcn": (3, 9),
    "p2-crm2-b0-fcn": (12, 16),
    "p3-crm1-b0-fcn": (3, 4),
    "p4-crm1-b0-fcn": (3, 4),
    "final": (3, 4),
}
EXITS = list(SHAPES)
POINTS = {exit_id: 4 if exit_id == "final" else int(exit_id[1]) for exit_id in EXITS}
CLASSES = 5
IMAGES = 6
PAIRS = 2 * 2 + 4
"""Two exits at point 2 after two at point 1, one at point 3 after all four; none at point 4."""

IDENTITY = Identity(
    classes=tuple("abcde"),
    exits={exit_id: f"print of {exit_id}" for exit_id in EXITS},
    images={f"image-{i}": f"print {i}" for i in range(IMAGES)},
    signals=(),
    weights="w",
    pipeline="p",
    data="d",
    source={"kind": "shapes", "split": "calibration", "root": None},
    label_maps=True,
    confidence_maps=(),
)


def label_map(identity: Identity, exit_id: str, image_id: str) -> np.ndarray:
    """Depends on the two fingerprints alone."""
    prints = f"{identity.exits[exit_id]} {identity.images[image_id]}"
    rng = np.random.default_rng(seeded(zlib.crc32(prints.encode())))
    return rng.integers(0, CLASSES, SHAPES[exit_id], dtype=np.uint8)


def memoise(run: Run, identity: Identity = IDENTITY) -> None:
    def predicted(exit_id: str, image_id: str) -> Mapping[str, object]:
        some = label_map(identity, exit_id, image_id)
        return {
            "intersection": [0] * CLASSES,
            "predicted": [2, 0, 0, 0, 0],
            "agreement": 0,
            "lost": 0,
            "signals": [],
            "label_map": compress(some) if identity.label_maps else None,
            "confidence_map": None,
        }

    labels = [[2, 0, 0, 0, 0]] * len(identity.images)
    store = fill(run.cache("made"), identity, labels, predicted, size=(12, 16), shape=(1, 1))
    CacheWriter(store, identity).finish(SHAPES)


def resized(some: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows = [row * len(some) // shape[0] for row in range(shape[0])]
    columns = [column * len(some[0]) // shape[1] for column in range(shape[1])]
    return some[rows][:, columns]


def compared(a: np.ndarray, b: np.ndarray) -> float:
    height, width = np.maximum(a.shape, b.shape)
    size = int(height), int(width)
    return -float(variation_of_information(resized(a, size), resized(b, size)).sum())


def assert_true(
    found: np.ndarray, identity: Identity = IDENTITY, wanted: np.ndarray | None = None
) -> None:
    """Every wanted pair is what scikit-image says, and no other has a signal."""
    assert found.dtype == np.float32
    assert found.shape == (len(EXITS), len(EXITS), len(identity.images))
    pairs = 0
    for a, exit_a in enumerate(EXITS):
        for b, exit_b in enumerate(EXITS):
            if not POINTS[exit_a] < POINTS[exit_b] < 4 or not (wanted is None or wanted[a, b]):
                assert np.isnan(found[a, b]).all()
                continue
            pairs += 1
            for i, image_id in enumerate(identity.images):
                maps = (label_map(identity, exit_id, image_id) for exit_id in (exit_a, exit_b))
                assert found[a, b, i] == pytest.approx(compared(*maps), abs=1e-6)
    assert pairs == (PAIRS if wanted is None else wanted.sum())


class Listener(Silent):
    """Counts what was done, and what had been before."""

    def __init__(self) -> None:
        self.steps, self.done = 0.0, 0

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        listener = self
        self.done = done

        class Counter:
            def advance(self, steps: float = 1, **figures: float) -> None:
                listener.steps += steps

        yield Counter()
        assert listener.done + listener.steps == total


def opened(run: Run) -> RunCache:
    return RunCache(run.cache("made"), {}, MemoiseConfig.model_construct(signals=()), POINTS)


def update(run: Run, wanted: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """The signals, and how many had to be computed."""
    listener = Listener()
    found = pair_signals(opened(run), listener, wanted)
    return found, int(listener.steps)


def parts(run: Run) -> list[Path]:
    return find_parts(run.cache("made") / "pairs")


@pytest.fixture
def mapped(tmp_path: Path) -> Run:
    """A run with a cache of made-up label maps, and nothing else."""
    run = Run(tmp_path / "run")
    memoise(run)
    return run


def test_exits_at_the_same_or_the_last_point_make_no_pair() -> None:
    found = possible_pairs(EXITS, POINTS)
    assert found.sum() == PAIRS
    assert [EXITS[b] for b in np.flatnonzero(found[0])] == EXITS[2:5]
    assert not found[:, 5:].any()


def test_pairs_are_computed_once(mapped: Run) -> None:
    found, computed = update(mapped)
    assert computed == PAIRS * IMAGES
    assert_true(found)
    before = {path: path.stat().st_mtime_ns for path in parts(mapped)}
    assert len(before) == 2
    found, computed = update(mapped)
    assert computed == 0
    assert_true(found)
    assert {path: path.stat().st_mtime_ns for path in parts(mapped)} == before
    assert integrity.verify(PredictionStore(mapped.cache("made"))).faults == ()


@pytest.mark.parametrize("limit", ["_PART_SIGNALS", "_MAP_BYTES"])
def test_work_is_divided_by_images(
    mapped: Run, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(pairing, limit, 1)
    found, computed = update(mapped)
    assert computed == PAIRS * IMAGES
    assert_true(found)
    assert len(parts(mapped)) == 2 * IMAGES
    assert_true(update(mapped)[0])


def test_only_what_is_wanted_is_computed(mapped: Run) -> None:
    wanted = np.zeros((len(EXITS),) * 2, np.bool_)
    wanted[0, 2] = wanted[1, 4] = wanted[0, 4] = True
    impossible = wanted.copy()
    impossible[0, 1] = impossible[4, 0] = impossible[0, 6] = True
    found, computed = update(mapped, impossible)
    assert computed == 3 * IMAGES
    assert_true(found, wanted=wanted)
    found, computed = update(mapped)
    assert computed == (PAIRS - 3) * IMAGES
    assert_true(found)


@pytest.mark.parametrize(
    ("exits", "images", "computed"),
    [
        (["p1-crm1-b0-fcn"], [], 3 * IMAGES),
        (["p2-crm2-b0-fcn"], [], 3 * IMAGES),
        (["p3-crm1-b0-fcn"], [], 4 * IMAGES),
        (["final", "p4-crm1-b0-fcn"], [], 0),
        ([], ["image-2"], PAIRS),
        ([], ["image-9"], PAIRS),
        (["p2-crm1-b0-fcn"], ["image-0", "image-5"], 3 * IMAGES + 2 * (PAIRS - 3)),
        (EXITS, [], PAIRS * IMAGES),
    ],
)
def test_only_what_changed_is_computed(
    mapped: Run, exits: list[str], images: list[str], computed: int
) -> None:
    update(mapped)
    changed = replace(
        IDENTITY,
        exits=IDENTITY.exits | dict.fromkeys(exits, "other"),  # pyright: ignore[reportOperatorIssue]
        images=IDENTITY.images | dict.fromkeys(images, "other"),  # pyright: ignore[reportOperatorIssue]
    )
    memoise(mapped, changed)
    store = PredictionStore(mapped.cache("made"))
    assert integrity.verify(store).faults == ()
    found, steps = update(mapped)
    assert steps == computed
    assert_true(found, changed)
    assert update(mapped)[1] == 0
    for path in integrity.unneeded(store):
        path.unlink()
    assert update(mapped)[1] == 0


def test_a_damaged_part_is_computed_again_and_replaced(
    mapped: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "_PART_SIGNALS", 2 * PAIRS)
    update(mapped)
    assert len(parts(mapped)) == 6
    for lost, name in (
        (parts(mapped)[0], None),
        (parts(mapped)[3], "part-0123456789abcdef.parquet"),
    ):
        content = bytearray(lost.read_bytes())
        content[len(content) // 2] ^= 1
        lost.write_bytes(content)
        if name:
            lost.rename(lost.with_name(name))
        found, computed = update(mapped)
        assert computed == 4 * 2
        assert_true(found)
        assert len(parts(mapped)) == 6
        assert integrity.verify(PredictionStore(mapped.cache("made"))).faults == ()


def test_a_cache_without_label_maps_says_what_to_do(mapped: Run) -> None:
    update(mapped)
    memoise(mapped, replace(IDENTITY, label_maps=False))
    # What is stored needs no maps.
    assert_true(update(mapped)[0])
    parts(mapped)[0].unlink()
    with pytest.raises(CacheError, match="no label maps") as refusal:
        update(mapped)
    assert "`memoise.label_maps = true`" in str(refusal.value)
    assert str(mapped.config_file) in str(refusal.value)
    assert "`mess memoise --name made --run " in str(refusal.value)


def test_a_missing_label_map_is_named(mapped: Run) -> None:
    for path in find_parts(mapped.cache("made") / "predictions"):
        path.unlink()
    with pytest.raises(CacheError, match="no label map of p1-crm1-b0-fcn for image image-0. Run"):
        update(mapped)


def test_maps_of_other_weights_are_not_taken_for_those_of_the_manifest(mapped: Run) -> None:
    """A cache may be memoised anew between reading its manifest and its maps."""
    cache = opened(mapped)
    assert cache.manifest
    memoise(mapped, replace(IDENTITY, exits=dict.fromkeys(EXITS, "other")))
    with pytest.raises(CacheError, match="no label map"):
        pair_signals(cache, Silent())
    assert parts(mapped) == []


def _update(path: Path, die_at: int | None) -> None:
    """In another process; as it writes its part number `die_at`, it is killed."""
    pairing._PART_SIGNALS = PAIRS
    settle, written = os.fsync, []

    def count(number: int) -> None:
        if len(written) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(number)
        time.sleep(0.01)
        settle(number)

    files.os.fsync = count
    update(Run(path))


def start(run: Run, die_at: int | None) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=_update, args=(run.path, die_at))
    process.start()
    return process


@pytest.mark.parametrize("written", [0, 1, 5, 11])
def test_a_kill_loses_what_was_being_written(mapped: Run, written: int) -> None:
    process = start(mapped, written)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(parts(mapped)) == written
    assert len(list((mapped.cache("made") / "pairs").glob(".part*"))) == 1
    found, computed = update(mapped)
    assert computed == PAIRS * IMAGES - 4 * written
    assert_true(found)
    assert integrity.verify(PredictionStore(mapped.cache("made"))).faults == ()


def test_processes_at_the_same_time_do_not_harm_each_other(mapped: Run) -> None:
    processes = [start(mapped, None) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found, computed = update(mapped)
    assert computed == 0
    assert_true(found)
    assert len(parts(mapped)) == 2 * IMAGES


def test_an_interrupt_stops_at_once_and_keeps_what_was_written(
    mapped: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "_PART_SIGNALS", PAIRS)

    class Interrupting(Silent):
        @contextmanager
        def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
            class Counter:
                def advance(self, steps: float = 1, **figures: float) -> None:
                    if len(parts(mapped)) == 4:
                        raise KeyboardInterrupt

            yield Counter()

    with pytest.raises(KeyboardInterrupt):
        pair_signals(opened(mapped), Interrupting())
    found, computed = update(mapped)
    assert computed == PAIRS * (IMAGES - 2)
    assert_true(found)


def mess(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["mess", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().out

    return command


def test_the_pairs_of_a_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of really memoised maps, and through the commands that look after caches."""
    cache = mess(monkeypatch, capsys)
    store = PredictionStore(run.cache("calibration"))
    manifest = store.manifest()
    points = {row["exit_id"]: row["point"] for row in run.exit_rows}
    (before,) = workflow.cache_info(run.path)
    assert (before["pairs"], before["pair_bytes"]) == (0, 0)
    (verified,) = workflow.cache_verify(run.path)

    found = pair_signals(Run(run.path).open_cache("calibration"), Silent())
    exit_ids = list(manifest["exits"])
    ids = [row["image_id"] for row in store.images(manifest)]
    maps = Snapshot(store, None).label_maps(ids)
    possible = np.argwhere(possible_pairs(exit_ids, points))
    assert len(possible)
    for a, b in possible:
        for i, image_id in enumerate(ids[:5]):
            pair = (
                decompress(
                    maps[exit_ids[e], image_id], tuple(manifest["native_shapes"][exit_ids[e]])
                )
                for e in (a, b)
            )
            assert found[a, b, i] == pytest.approx(compared(*pair), abs=1e-6)
    assert np.isfinite(found).sum() == len(possible) * len(ids)

    code, out = cache("cache", "info", "--json", "--run", run.path)
    (row,) = json.loads(out)
    written = find_parts(run.cache("calibration") / "pairs")
    assert code == 0
    assert (row["pairs"], row["state"]) == (len(possible), "ready")
    assert row["pair_bytes"] == sum(path.stat().st_size for path in written)
    assert row["bytes"] == before["bytes"]
    assert f" {len(possible)} " in cache("cache", "info", "--run", run.path)[1]
    (row,) = workflow.cache_verify(run.path)
    assert row["faults"] == []
    assert row["rows"] == verified["rows"] + len(possible) * len(ids)

    content = bytearray(written[0].read_bytes())
    content[100] ^= 1
    written[0].write_bytes(content)
    code, out = cache("cache", "verify", "--run", run.path)
    assert code == 1
    assert written[0].name in out
    assert cache("cache", "prune", "--run", run.path)[0] == 0
    assert find_parts(run.cache("calibration") / "pairs") == written[1:]
    assert cache("cache", "verify", "--run", run.path)[0] == 0
    again = pair_signals(Run(run.path).open_cache("calibration"), Silent())
    np.testing.assert_array_equal(again, found)
    assert find_parts(run.cache("calibration") / "pairs") == written
