"""`mess memoise` and `mess cache` on a run: what is stale is refused, what is true stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mess import workflow
from mess.cache.predictions.parts import open_part
from mess.cache.predictions.store import Predictions, PredictionStore
from mess.cli.app import main
from mess.commands import memoise as memoising
from mess.common import file_hashes
from mess.common.files import sha256, write_text
from mess.common.progress import Task
from mess.config import load_config
from mess.data import open_split
from mess.errors import CacheError, DataError, MessError
from mess.runs import fingerprints
from mess.runs.run import Run
from tests.workflow.children import forkserver

IMAGES = 40


class Listener:
    """Keeps what is said, and how many steps each task did."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: dict[str, float] = {}

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        listener = self
        self.steps.setdefault(name, 0)

        class Counter:
            def advance(self, steps: float = 1, **figures: float) -> None:
                listener.steps[name] += steps

        yield Counter()


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Run:
    """The shared run with images of its own, that may be changed."""
    root = run.config.data.root
    assert root is not None
    change_config(run, f"data.root={shutil.copytree(root, tmp_path / 'images')}")
    return run


def write_images(
    root: Path, ids: list[str], pairs: list[tuple[np.ndarray, np.ndarray]], split: str = "val"
) -> None:
    for kind in ("images", "masks"):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
    for image_id, (image, mask) in zip(ids, pairs, strict=True):
        Image.fromarray(image).save(root / split / "images" / f"{image_id}.png")
        Image.fromarray(mask).save(root / split / "masks" / f"{image_id}.png")


def change_config(run: Run, *overrides: str) -> None:
    write_text(run.config_file, load_config(run.config_file, overrides).to_toml())


def images_of(run: Run) -> Path:
    root = Run(run.path).config.data.root
    assert root is not None
    return root / "val"


def stored(run: Run, name: str = "calibration") -> Predictions:
    return PredictionStore(run.cache(name)).read({})[0]


CONTINUOUS = 2
"""Signals that are no shares, the last columns: mean confidence and normalised entropy."""


def assert_equal(found: Predictions, expected: Predictions) -> None:
    """The same counts and shares, and continuous signals up to the rounding of convolutions.

    How those round depends on `memoise.batch_size`, which some tests change.
    """
    for name, some in vars(expected).items():
        ours = getattr(found, name)
        if name == "signals":
            np.testing.assert_allclose(ours, some, rtol=0, atol=1e-6)
            ours, some = ours[..., :-CONTINUOUS], some[..., :-CONTINUOUS]
        np.testing.assert_array_equal(ours, some)


def remade(run: Run) -> Predictions:
    """What a cache holds that is made from nothing."""
    images = len(stored(run).image_ids)
    shutil.rmtree(run.cache("calibration"))
    listener = Listener()
    workflow.memoise(run.path, reporter=listener)
    assert listener.steps == {"reading labels": images, "memoising calibration": images}
    return stored(run)


def search(run: Run, **options: object) -> dict[str, object]:
    return workflow.search(run.path, target="macs", max_error=0.1, **options)  # pyright: ignore[reportArgumentType]


def repaint(run: Run) -> None:
    path = sorted((images_of(run) / "images").iterdir())[5]
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def relabel(run: Run) -> None:
    path = sorted((images_of(run) / "masks").iterdir())[5]
    Image.fromarray(np.full_like(np.asarray(Image.open(path)), 1)).save(path)


def add(run: Run) -> None:
    for kind in ("images", "masks"):
        path = sorted((images_of(run) / kind).iterdir())[5]
        shutil.copy(path, path.with_name("another.png"))


def remove(run: Run) -> None:
    for kind in ("images", "masks"):
        sorted((images_of(run) / kind).iterdir())[5].unlink()


@pytest.mark.parametrize(
    ("change", "named", "computed"),
    [
        (repaint, "1 changed (such as calibration-00005)", 1),
        (relabel, "1 changed (such as calibration-00005)", 1),
        (add, "1 new (such as another)", 1),
        (remove, "1 gone (such as calibration-00005)", 0),
    ],
)
def test_changed_data_is_refused_and_only_it_is_computed(
    folder: Run, change: Callable[[Run], None], named: str, computed: int
) -> None:
    search(folder)
    change(folder)
    with pytest.raises(CacheError, match=r"stale.*only what changed is computed") as refusal:
        search(folder)
    assert named in str(refusal.value)
    (row,) = workflow.cache_verify(folder.path)
    assert named in row["faults"][0]
    listener = Listener()
    workflow.memoise(folder.path, reporter=listener)
    assert listener.steps["memoising calibration"] == computed
    assert listener.steps.get("reading labels", 0) == computed
    assert workflow.cache_verify(folder.path)[0]["faults"] == []
    search(folder)
    assert_equal(stored(folder), remade(folder))


def test_a_touched_file_is_no_change(folder: Run) -> None:
    for path in (images_of(folder) / "images").iterdir():
        os.utime(path, (1, 1))
    listener = Listener()
    workflow.memoise(folder.path, reporter=listener)
    assert listener.steps == {}
    search(folder)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour has passed since the images were written, so that searches remember them."""
    monkeypatch.setattr(file_hashes, "time_ns", lambda: time.time_ns() + 3600 * 10**9)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [repaint, relabel])
def test_a_change_behind_the_same_size_and_date_is_refused(
    folder: Run, change: Callable[[Run], None]
) -> None:
    files = list(images_of(folder).rglob("*.png"))
    before = {path: path.stat() for path in files}
    for path in files:
        # Behind the end of a PNG nothing is read.
        path.write_bytes(path.read_bytes().ljust(20_000, b"\0"))
    workflow.memoise(folder.path)
    search(folder)
    change(folder)
    for path in files:
        path.write_bytes(path.read_bytes().ljust(20_000, b"\0"))
        os.utime(path, ns=(before[path].st_atime_ns, before[path].st_mtime_ns))
    with pytest.raises(CacheError, match="1 changed"):
        search(folder)
    with pytest.raises(CacheError, match="1 changed"):
        search(folder)


@pytest.mark.usefixtures("later")
def test_searches_hash_the_weights_once_and_verifying_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def count(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr(file_hashes, "sha256", count)
    search(run)
    assert hashed.count(run.weights) == 1
    search(run)
    assert hashed.count(run.weights) == 1
    workflow.cache_verify(run.path)
    assert hashed.count(run.weights) == 2
    weights, before = bytearray(run.weights.read_bytes()), run.weights.stat()
    weights[-1] ^= 1
    run.weights.write_bytes(weights)
    os.utime(run.weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CacheError, match="weights"):
        search(run)
    # A file system that hides the change deceives searches, and not who verifies.
    record = run.path / "cache" / "file-hashes.json"
    made_for = json.loads((run.cache("calibration") / "manifest.json").read_text())["weights"]
    state = file_hashes._state(run.weights)
    record.write_text(json.dumps({str(run.weights.absolute()): [state, made_for]}))
    search(run)
    assert "weights" in workflow.cache_verify(run.path)[0]["faults"][0]


@pytest.mark.usefixtures("later")
def test_verifying_reads_what_searches_remember(folder: Run) -> None:
    """A file system that hides a change deceives searches, and neither verifying nor memoising."""
    search(folder)
    record = PredictionStore(folder.cache("calibration")).hashes_file
    remembered = json.loads(record.read_text())
    assert len(remembered) == 2 * IMAGES
    repaint(folder)
    path = sorted((images_of(folder) / "images").iterdir())[5]
    remembered[str(path)][0] = file_hashes._state(path)
    record.write_text(json.dumps(remembered))
    search(folder)
    assert "1 changed" in workflow.cache_verify(folder.path)[0]["faults"][0]
    listener = Listener()
    workflow.memoise(folder.path, reporter=listener)
    assert listener.steps["memoising calibration"] == 1
    # What is remembered now is wrong, which refuses nothing.
    search(folder)
    assert workflow.cache_prune(folder.path) == []


@pytest.mark.usefixtures("later")
def test_a_damaged_record_of_the_files_is_no_hindrance(folder: Run) -> None:
    search(folder)
    record = PredictionStore(folder.cache("calibration")).hashes_file
    whole = record.read_text()
    record.write_text(whole[:-100])
    search(folder)
    assert record.read_text() == whole


def test_data_that_is_elsewhere_is_not_held_against_the_cache(folder: Run) -> None:
    images_of(folder).parent.rename(images_of(folder).parent.with_name("moved"))
    listener = Listener()
    search(folder, reporter=listener)
    assert any("was not held against its data" in text for text in listener.messages)


def test_more_signals_are_added_to_what_is_stored(run: Run) -> None:
    before = stored(run)
    change_config(run, "memoise.pixel_thresholds=[0.95,0.9,0.8]")
    with pytest.raises(CacheError, match="other signals"):
        search(run)
    workflow.memoise(run.path)
    found = stored(run)
    manifest = PredictionStore(run.cache("calibration")).manifest()
    names = [signal["name"] for signal in manifest["signals"]]
    assert names[:3] == ["share-top1-0.95", "share-top1-0.9", "share-top1-0.8"]
    np.testing.assert_array_equal(found.intersection, before.intersection)
    np.testing.assert_array_equal(found.signals[:, :, 2], before.signals[:, :, 0])
    assert_equal(found, remade(run))


def test_other_weights_are_refused_and_memoised_anew(run: Run) -> None:
    from safetensors.numpy import load_file, save_file

    state = load_file(run.weights)
    before = stored(run)
    (early, *_), exits = before.exit_ids, len(before.exit_ids)
    name = next(n for n in state if n.startswith(f"exits.{early}.") and state[n].ndim == 4)
    save_file(state | {name: state[name] * np.float32(2)}, run.weights)
    with pytest.raises(CacheError, match="other weights"):
        search(run)
    workflow.memoise(run.path)
    found = stored(run)
    # One exit changed; the others' predictions are those that were stored.
    np.testing.assert_array_equal(found.intersection[1:], before.intersection[1:])
    assert (found.intersection[0] != before.intersection[0]).any()
    parts = [open_part(path) for path in (run.cache("calibration") / "predictions").iterdir()]
    assert {len(part.exits) for part in parts} == {1, exits - 1}
    assert_equal(found, remade(run))


def _memoise_in_small_parts(run: Path) -> None:
    memoising._PART_IMAGES = 4
    workflow.memoise(run)


@pytest.mark.parametrize("moment", range(4))
def test_a_killed_memoising_goes_on_and_ends_the_same(run: Run, moment: int) -> None:
    expected = stored(run)
    cache = run.cache("calibration")
    shutil.rmtree(cache)
    change_config(run, "memoise.batch_size=4")
    process = forkserver.Process(target=_memoise_in_small_parts, args=(run.path,))
    process.start()
    parts = cache / "predictions"
    end = time.monotonic() + 120
    while time.monotonic() < end and process.is_alive():
        if len(list(parts.glob("part-*.parquet"))) > 2 * moment:
            process.kill()
            break
        time.sleep(0.001)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    survived = len(list(parts.glob("part-*.parquet")))
    assert survived > 2 * moment
    listener = Listener()
    workflow.memoise(run.path, reporter=listener)
    assert listener.steps.get("memoising calibration", 0) == max(IMAGES - 4 * survived, 0)
    assert_equal(stored(run), expected)
    assert workflow.cache_verify(run.path)[0]["faults"] == []


def test_a_cache_of_other_images_has_a_name_of_its_own(run: Run, tmp_path: Path) -> None:
    config = run.config
    data = open_split(config.data, "test", config.seed)
    root = tmp_path / "night"
    write_images(root, data.ids, [data.read(i) for i in range(len(data))])
    write_text(root / "classes.json", json.dumps(data.classes.to_json()))
    with pytest.raises(MessError, match="--name"):
        workflow.memoise(run.path, root=root)
    with pytest.raises(MessError, match="letters, digits"):
        workflow.memoise(run.path, root=root, name="../night")
    workflow.memoise(run.path, root=root, name="night")
    result = search(run, cache="night")
    assert result["cache"]["name"] == "night"  # pyright: ignore[reportIndexIssue]
    rows = {row["name"]: row for row in workflow.cache_info(run.path)}
    assert rows["night"]["root"] == str(root)
    assert rows["night"]["images"] == len(data)
    assert rows["night"]["state"] == "ready"
    assert workflow.cache_verify(run.path, name="night")[0]["faults"] == []
    bundle = workflow.export(run.path)
    assert json.loads((bundle / "manifest.json").read_text())["source"]["name"] == "night"
    workflow.report(run.path)


def test_a_named_cache_is_brought_up_to_date_by_its_name(folder: Run, tmp_path: Path) -> None:
    """As its messages say."""
    night = tmp_path / "night"
    shutil.copytree(images_of(folder).parent, night)
    workflow.memoise(folder.path, root=night, name="night")
    repaint(folder)
    search(folder, cache="night")
    path = sorted((night / "val" / "images").iterdir())[0]
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(CacheError, match="Run `mess memoise --name night --run .*` again"):
        search(folder, cache="night")
    workflow.memoise(folder.path, name="night")
    search(folder, cache="night")
    assert workflow.cache_info(folder.path)[1]["root"] == str(night)
    with pytest.raises(MessError, match="'night' holds the calibration split of .*night.*--name"):
        workflow.memoise(folder.path, name="night", root=tmp_path / "images")
    with pytest.raises(MessError, match="'night' holds"):
        workflow.memoise(folder.path, name="night", split="test")
    with pytest.raises(MessError, match="'calibration' is that of the run's own"):
        workflow.memoise(folder.path, name="calibration", split="test")
    with pytest.raises(MessError, match="nothing tells what the cache 'day' is of.*--split"):
        workflow.memoise(folder.path, name="day")
    assert sorted(row["name"] for row in workflow.cache_info(folder.path)) == [
        "calibration", "night",
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["more", "fewer", "renamed"])
def test_other_classes_than_the_networks_are_refused(folder: Run, change: str) -> None:
    path = images_of(folder).parent / "classes.json"
    classes = json.loads(path.read_text())
    entries = classes["classes"]
    if change == "more":
        entries.append({"id": len(entries), "name": "more", "color": [1, 2, 3]})
    elif change == "fewer":
        entries.pop()
    else:
        entries[1]["name"], entries[2]["name"] = entries[2]["name"], entries[1]["name"]
    path.write_text(json.dumps(classes | {"num_classes": len(entries)}))
    with pytest.raises(DataError, match="the network was trained on background, ellipse"):
        workflow.memoise(folder.path)
    with pytest.raises(CacheError, match="40 changed"):
        search(folder)


def test_a_bundle_is_not_evaluated_against_other_classes(folder: Run) -> None:
    search(folder)
    bundle = workflow.export(folder.path)
    path = images_of(folder).parent / "classes.json"
    classes = json.loads(path.read_text())
    first, second = classes["classes"][1:3]
    first["name"], second["name"] = second["name"], first["name"]
    path.write_text(json.dumps(classes))
    with pytest.raises(DataError, match="the network was trained on background, ellipse"):
        workflow.evaluate(bundle)


def test_a_stale_cache_is_named_where_its_data_is_elsewhere(folder: Run) -> None:
    images_of(folder).parent.rename(images_of(folder).parent.with_name("moved"))
    change_config(folder, "memoise.pixel_thresholds=[0.95]")
    (row,) = workflow.cache_verify(folder.path)
    assert len(row["faults"]) == 1
    assert "made for other signals" in row["faults"][0]


def test_a_cache_that_cannot_be_read_is_one_fault(run: Run) -> None:
    (run.cache("calibration") / "manifest.json").write_text("{")
    (row,) = workflow.cache_verify(run.path)
    assert len(row["faults"]) == 1


def test_pruning_passes_over_what_is_gone_meanwhile(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = run.cache("calibration") / ".manifest.json.abcdefgh"
    left.touch()
    unlink = Path.unlink

    def after_another(path: Path, missing_ok: bool = False) -> None:
        if path == left and path.exists():
            unlink(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", after_another)
    assert [row["file"] for row in workflow.cache_prune(run.path)] == [str(left)]


def test_an_image_that_changes_meanwhile_is_not_stored(
    folder: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder.cache("calibration"))
    predicted = memoising.predict

    def meddle(*arguments: Any, **options: Any) -> Any:
        for number, found in enumerate(predicted(*arguments, **options)):
            if number == 4:
                repaint_of(folder, 37)
            yield found

    def repaint_of(run: Run, index: int) -> None:
        path = sorted((images_of(run) / "images").iterdir())[index]
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)

    with monkeypatch.context() as patched:
        patched.setattr(memoising, "predict", meddle)
        with pytest.raises(DataError, match="'calibration-00037' changed while it was memoised"):
            workflow.memoise(folder.path)
    listener = Listener()
    workflow.memoise(folder.path, reporter=listener)
    assert listener.steps["memoising calibration"] == IMAGES - 32
    assert_equal(stored(folder), remade(folder))


def test_another_version_of_the_pipeline_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_VERSION", 99)
    with pytest.raises(CacheError, match="other pipeline"):
        search(run)
    assert "other pipeline" in workflow.cache_info(run.path)[0]["state"]
    listener = Listener()
    workflow.memoise(run.path, reporter=listener)
    assert listener.steps["memoising calibration"] == IMAGES
    search(run)


def test_drawn_images_have_no_root(run: Run, tmp_path: Path) -> None:
    change_config(run, "data.kind=shapes")
    with pytest.raises(MessError, match="'shapes' reads no files, so --root .* means nothing"):
        workflow.memoise(run.path, root=tmp_path, name="night")


def test_a_complete_cache_needs_no_writing(run: Run) -> None:
    with run.locked():
        workflow.memoise(run.path)
        assert workflow.cache_prune(run.path, dry_run=True) == []


def test_info_sees_what_is_missing(run: Run) -> None:
    parts = sorted((run.cache("calibration") / "predictions").iterdir())
    parts[0].unlink()
    assert "lacks" in workflow.cache_info(run.path)[0]["state"]
    (run.cache("calibration") / "images.parquet").unlink()
    assert "is missing" in workflow.cache_info(run.path)[0]["state"]


def test_prune_goes_on_past_a_cache_that_cannot_be_read(run: Run) -> None:
    (run.path / "cache" / "another" / "predictions").mkdir(parents=True)
    left = [
        run.path / "cache" / "another" / "predictions" / ".part.parquet.xyz",
        run.cache("calibration") / "predictions" / ".part.parquet.xyz",
    ]
    for path in left:
        path.write_text("half")
    rows = workflow.cache_prune(run.path)
    assert [row["file"] for row in rows] == [str(path) for path in left]
    assert not any(path.exists() for path in left)


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["mess", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), capsys.readouterr().out


def test_the_cache_commands(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mess(*words: object) -> tuple[int, str]:
        return command(monkeypatch, capsys, "cache", *words, "--run", run.path)

    code, out = mess("info", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert (row["name"], row["images"], row["state"]) == ("calibration", IMAGES, "ready")
    assert "ready" in mess("info")[1]

    code, out = mess("verify")
    assert code == 0
    assert "no faults" in out
    part = next((run.cache("calibration") / "predictions").iterdir())
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    code, out = mess("verify", "calibration", "--json")
    assert code == 1
    assert part.name in json.loads(out)[0]["faults"][0]
    assert mess("verify")[0] == 1

    code, out = mess("prune", "--dry-run")
    assert (code, part.exists()) == (0, True)
    assert part.name in out
    code, out = mess("prune", "--json")
    assert (code, part.exists()) == (0, False)
    assert [row["file"] for row in json.loads(out)] == [str(part)]
    workflow.memoise(run.path)
    assert mess("verify")[0] == 0


def test_a_cache_that_is_not_there_is_named(run: Run) -> None:
    with pytest.raises(CacheError, match="no cache 'calibratio'.*calibration"):
        workflow.cache_verify(run.path, name="calibratio")
    shutil.rmtree(run.path / "cache")
    with pytest.raises(CacheError, match="no cache yet"):
        workflow.cache_verify(run.path)
    assert workflow.cache_info(run.path) == []
