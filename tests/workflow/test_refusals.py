"""Bad requests: one clear message on stderr, exit code 1, nothing lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mess import workflow
from mess.cache.parquet import read_rows, write_rows
from mess.cache.schema import LATENCY
from mess.cli.app import main
from mess.common.records import with_digest
from mess.errors import CacheError, MessError
from mess.runs.profiles import read_profile, write_profile
from mess.runs.run import Run
from tests.seeds import seeded


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> str:
    """The message of a refused command."""
    monkeypatch.setattr("sys.argv", ["mess", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.fixture
def refuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    return lambda *words: refused(capsys, monkeypatch, *(str(word) for word in words))


def folder_data(root: Path, *, bad: tuple[str, int] | None = None) -> Path:
    """A folder data set of two classes; the mask of image `bad` holds a ninth."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((48, 64, 3), number, np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{number}.png")
            mask = np.full((48, 64), 9 if (split, number) == bad else number % 2, np.uint8)
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    names = [{"id": i, "name": str(i), "color": [i, i, i]} for i in range(2)]
    classes = {"num_classes": 2, "ignore_index": 255, "classes": names}
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def settings(root: Path) -> list[str]:
    """Options of a training on `root`, with data-loading workers."""
    options = [
        "data.kind=folder",
        f"data.root={root}",
        "data.workers=1",
        "data.holdout=0.0",
        "training.batch_size=2",
    ]
    return [word for option in options for word in ("--set", option)]


def test_no_run(
    refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "mess train-overprovisioned" in refuse("search")
    assert str(tmp_path / "nowhere") in refuse("search", "--run", tmp_path / "nowhere")


def test_unknown_configuration_key(refuse: Callable[..., str]) -> None:
    message = refuse("exits", "--set", "trainig.batch_size=3")
    assert "'trainig'" in message
    assert "'training'" in message


def test_unknown_backbone(refuse: Callable[..., str]) -> None:
    message = refuse("exits", "--set", "backbone.name=mobilenet_v3")
    assert "'mobilenet_v3'" in message
    assert "'mobilenet_v2'" in message


@pytest.mark.parametrize("verb", ["exits", "train-overprovisioned"])
def test_limits_that_leave_no_exit(refuse: Callable[..., str], tmp_path: Path, verb: str) -> None:
    place = ["--run", tmp_path / "run"] if verb == "train-overprovisioned" else []
    message = refuse(verb, "shapes", *place, "--set", "exits.max_exit_cost=0.01")
    assert "none of 6 candidate exits before the last point" in message
    assert "max_exit_cost is 0.01" in message
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_unknown_signal_before_anything_is_trained(
    refuse: Callable[..., str], tmp_path: Path
) -> None:
    message = refuse(
        "train-overprovisioned", "--run", tmp_path / "run", "--set", 'memoise.signals=["shares"]'
    )
    assert "'shares'" in message
    assert "'share'" in message
    assert not (tmp_path / "run").exists()


def test_search_before_memoising(refuse: Callable[..., str], run: Run) -> None:
    shutil.rmtree(run.cache("calibration"))
    assert "mess memoise" in refuse(
        "search", "--run", run.path, "--max-error", "0.05", "--target", "macs"
    )


def test_search_before_training_is_over(refuse: Callable[..., str], run: Run) -> None:
    run.weights.unlink()
    assert "mess train-overprovisioned" in refuse(
        "search", "--run", run.path, "--max-error", "0.05"
    )


def test_cache_of_other_weights(refuse: Callable[..., str], run: Run) -> None:
    weights = bytearray(run.weights.read_bytes())
    weights[-1] ^= 1
    run.weights.write_bytes(weights)
    message = refuse("search", "--run", run.path, "--max-error", "0.05", "--target", "macs")
    assert "stale" in message
    assert "weights" in message


def test_infeasible_request_writes_nothing(refuse: Callable[..., str], run: Run) -> None:
    message = refuse(
        "search", "--run", run.path, "--target", "macs", "--max-error", "0.05", "--max-macs", "5"
    )
    assert "needs at most 5 MACs" in message
    assert run.searches() == []


def test_share_that_looks_like_a_percentage(refuse: Callable[..., str], run: Run) -> None:
    assert "0.65" in refuse("search", "--run", run.path, "--min-miou", "65")


def test_missing_latency_profile(refuse: Callable[..., str], run: Run) -> None:
    shutil.rmtree(run.path / "latency")
    assert "mess profile" in refuse(
        "search", "--run", run.path, "--max-error", "0.05", "--target", "latency"
    )
    assert "gpu" in refuse("search", "--run", run.path, "--max-error", "0.05", "--profile", "gpu")


def test_altered_bundle(
    refuse: Callable[..., str], run: Run, searched: Callable[..., Path]
) -> None:
    bundle = searched(target="macs", max_error=0.05)
    program = bundle / "segment-1.onnx"
    program.write_bytes(program.read_bytes() + b"x")
    message = refuse("evaluate", bundle)
    assert "segment-1.onnx" in message
    assert "altered" in message


def test_export_before_search(refuse: Callable[..., str], run: Run) -> None:
    assert "mess search" in refuse("export", "--run", run.path)


def test_export_never_overwrites_other_files(run: Run, tmp_path: Path) -> None:
    workflow.search(run.path, target="macs", max_error=0.05)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MessError, match="is no bundle"):
        workflow.export(run.path, output=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_cost_target_without_an_accuracy_to_keep(refuse: Callable[..., str], run: Run) -> None:
    assert "Give --max-error" in refuse("search", "--run", run.path, "--target", "params")


def test_device_that_is_not_there(refuse: Callable[..., str], run: Run) -> None:
    shutil.rmtree(run.cache("calibration"))
    assert "'tpu'" in refuse("memoise", "--run", run.path, "--device", "tpu")
    assert "'cuda:99'" in refuse("memoise", "--run", run.path, "--device", "cuda:99")


def test_two_processes_do_not_share_a_run(refuse: Callable[..., str], run: Run) -> None:
    shutil.rmtree(run.cache("calibration"))
    with run.locked():
        assert "another process" in refuse("memoise", "--run", run.path)


def test_a_killed_run_can_be_continued_at_once(run: Run) -> None:
    """Workers outlive a killed parent by seconds; the lock must not."""
    script = (
        "import multiprocessing, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from mess.runs.run import Run\n"
        "fork = multiprocessing.get_context('fork')\n"
        "up = fork.Event()\n"
        "def work():\n"
        "    up.set()\n"
        "    time.sleep(20)\n"
        "with Run(Path(sys.argv[1])).locked():\n"
        "    worker = fork.Process(target=work)\n"
        "    worker.start()\n"
        "    up.wait()\n"
        "    print(worker.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    worker = int(killed.stdout.readline())
    assert killed.wait() == -signal.SIGKILL
    try:
        with run.locked():
            os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)
        killed.stdout.close()


def test_a_bad_calibration_mask_stops_before_training(
    refuse: Callable[..., str], tmp_path: Path
) -> None:
    root = folder_data(tmp_path / "data", bad=("val", 2))
    message = refuse("train-overprovisioned", "--run", tmp_path / "run", *settings(root))
    assert "not void: 9 (25.0% of the pixels, in 1 of 4 masks)" in message
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_output_that_cannot_be_made(
    refuse: Callable[..., str], run: Run, searched: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = searched(target="macs", max_error=0.05)
    image, blocked = tmp_path / "image.png", tmp_path / "file"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(image)
    blocked.write_text("in the way")
    assert str(blocked) in refuse("predict", bundle, image, "--output", blocked)


def test_bad_image_in_a_worker_is_one_message(refuse: Callable[..., str], tmp_path: Path) -> None:
    root = folder_data(tmp_path / "data")
    image = root / "train" / "images" / "2.png"
    image.write_text("no image")
    message = refuse("train-overprovisioned", "--run", tmp_path / "run", *settings(root))
    assert f"Error: image {image} cannot be read" in message


def test_evaluating_a_bundle_of_other_weights(
    refuse: Callable[..., str], run: Run, searched: Callable[..., Path]
) -> None:
    bundle = searched(target="macs", max_error=0.05)
    manifest = bundle / "manifest.json"
    content = json.loads(manifest.read_text())
    content["source"]["weights"] = "0" * 64
    manifest.write_text(json.dumps(with_digest(content)))
    assert "other weights" in refuse("evaluate", bundle)


def test_predictions_that_would_overwrite_each_other(
    refuse: Callable[..., str], run: Run, searched: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = searched(target="macs", max_error=0.05)
    message = refuse("predict", bundle, tmp_path / "a/x.jpg", tmp_path / "b/x.png")
    assert "x.png" in message


def test_a_label_map_never_replaces_a_picture(
    refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    picture, other = Path("images/a.png"), Path("images/b.jpg")
    for path in (picture, other):
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
    before = picture.read_bytes()
    Path("link").symlink_to("images")
    for output in ("images", tmp_path / "images", "link"):
        # Refused before it is seen that there is no bundle.
        message = refuse("predict", "no-bundle", picture, other, "--output", output)
        assert "label map of images/a.png would replace images/a.png" in message
    # The map of a.jpg would be that a.png.
    Path("images/a.jpg").symlink_to("b.jpg")
    message = refuse("predict", "no-bundle", "images/a.jpg", other, "--output", "images")
    assert "is no bundle" in message
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--name", "../../x"], "profile's name"),
        (["--name", "a/b"], "profile's name"),
        (["--rounds", "1000000000000"], "--rounds is from 1 to 10,000, got 1000000000000"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_before_it_is_measured(
    refuse: Callable[..., str], run: Run, words: list[str], told: str
) -> None:
    # That the weights are not read shows that nothing was begun.
    run.weights.unlink()
    assert told in refuse("profile", "--run", run.path, *words)


@pytest.mark.parametrize(("threads", "rounds"), [(1, 0), (0, 1), (2**31, 1)])
def test_rounds_and_threads_that_cannot_be_are_refused(run: Run, threads: int, rounds: int) -> None:
    run.weights.unlink()
    with pytest.raises(MessError, match=r"--(rounds|threads) is from 1 to"):
        workflow.profile(run.path, threads=threads, rounds=rounds)


def test_a_cache_of_another_folder_is_not_searched(refuse: Callable[..., str], run: Run) -> None:
    message = refuse(
        "search", "--run", run.path, "--target", "macs", "--max-error", "0.05", "--cache", "../x"
    )
    assert "a cache's name" in message


def test_a_flipped_bit_of_a_profile_is_told(run: Run) -> None:
    """Wherever it is, whatever it would have made of a latency."""
    path = run.latency("onnxruntime-1thread")
    whole, rng = path.read_bytes(), random.Random(seeded(0))
    expected = read_profile(path)
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with suppress(CacheError):
            # Some bits mean nothing, such as those of names that nobody reads.
            assert read_profile(path) == expected
    rows, facts = expected
    write_rows(path, [rows[0] | {"median_ms": 1.0}, *rows[1:]], LATENCY, facts)
    with pytest.raises(CacheError, match="was altered, or an earlier version"):
        workflow.search(run.path, target="latency", max_error=0.05)
    path.write_bytes(whole)


@pytest.mark.parametrize("facts", [None, {}, {"signals": 3}])
def test_a_damaged_profile_is_measured_again(
    run: Run, facts: dict[str, object] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.latency("onnxruntime-1thread")
    if facts is None:
        path.write_bytes(b"")
    else:
        write_profile(path, read_rows(path, LATENCY), facts)
        with pytest.raises(CacheError, match="measured for other weights"):
            workflow.search(run.path, target="latency", max_error=0.05)
    measured = []
    monkeypatch.setattr(
        "mess.commands.profile.measure_run", lambda place, **_: measured.append(place.path)
    )
    workflow.train_overprovisioned(run=run.path)
    assert measured == [run.path]


def test_memoise_settings_may_change_after_training(run: Run) -> None:
    """Weights stay, predictions and profile follow."""
    before = run.weights.stat().st_mtime_ns
    overrides = ["memoise.pixel_thresholds=[0.9]"]
    workflow.train_overprovisioned(run=run.path, overrides=overrides)
    result = workflow.search(run.path, target="latency", max_error=0.05)
    assert run.weights.stat().st_mtime_ns == before
    assert result["search"]["space"]["signals"] == ["share-top1-0.9", "share-top1-0.9-edges"]


def test_run_of_another_configuration(refuse: Callable[..., str], run: Run) -> None:
    message = refuse("train-overprovisioned", "--run", run.path, "--set", "seed=9")
    assert str(run.config_file) in message
