"""What is wrong or missing in the data is told before anything is trained on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mess import workflow
from mess.cli.app import main
from mess.commands.check_data import check_images, check_masks
from mess.commands.train import train_network
from mess.common.files import write_text
from mess.common.progress import Once, Silent, Task
from mess.config import Config
from mess.data import open_split
from mess.errors import DataError
from mess.runs.run import Run
from tests.conftest import MakeConfig
from tests.pngs import exif_chunk, write_png
from tests.seeds import seeded

VOID = 255

Searched = Callable[..., Path]


class Said(Silent):
    """Keeps what is said, and which tasks were begun."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.tasks: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        self.tasks.append(name)
        with super().task(name, total, done) as task:
            yield task


@pytest.fixture
def place(tmp_path: Path, make_config: MakeConfig) -> Run:
    """A run that is not trained, on two classes whose masks hold 0 and 1."""
    root = tmp_path / "images"
    classes = [{"id": i, "name": name, "color": [i, i, i]} for i, name in enumerate(("no", "yes"))]
    rng = np.random.default_rng(seeded(0))
    for split, count in (("train", 5), ("val", 3)):
        for number in range(count):
            for kind, shape, high in (("images", (32, 48, 3), 256), ("masks", (32, 48), 2)):
                path = root / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, high, shape).astype(np.uint8)).save(path)
    (root / "classes.json").write_text(json.dumps({"num_classes": 2, "classes": classes}))
    config = make_config(data={"kind": "folder", "root": root, "holdout": 0.2})
    return begun(tmp_path / "run", config)


def begun(path: Path, config: Config) -> Run:
    run = Run(path)
    write_text(run.config_file, config.to_toml())
    return run


def root_of(run: Run) -> Path:
    assert run.config.data.root is not None
    return run.config.data.root


def change_masks(run: Run, split: str, values: list[int]) -> None:
    """Give 0 and 1 in the masks of a split other values."""
    for path in (root_of(run) / split / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.array(values, np.uint8)[mask]).save(path)


def test_a_class_that_no_mask_holds_is_said_when_training_starts(place: Run) -> None:
    """Masks of 0 and 255, as many are: 255 is void, and mIoU would be 1."""
    for split in ("train", "val"):
        change_masks(place, split, [0, 255])
    (root_of(place) / "val" / "images" / "night").mkdir()
    (root_of(place) / "val" / "images" / "night" / "0.png").touch()
    said = Said()
    train_network(place, "cpu", said)
    told = [text for text in said.messages if "no mask holds 'yes' (1 of 2 classes)" in text]
    assert [text.split("'")[1] for text in told if "holdout" not in text] == [
        "train",
        "calibration",
    ]
    assert all("255 is void" in text for text in told)
    left_out = [text for text in said.messages if text.startswith("Left out")]
    assert len(left_out) == 1
    assert "1 file in split 'calibration'" in left_out[0]
    assert left_out[0].endswith("such as 0.png.")
    # Told before the first step.
    assert said.tasks[:3] == ["checking train", "checking holdout", "checking calibration"]
    # Memoising, too, which may be of other images.
    workflow.memoise(place.path, reporter=(again := Said()))
    assert set(again.messages) >= {told[-1], left_out[0]}


def test_nothing_is_said_of_data_that_lacks_nothing(place: Run) -> None:
    data, said = place.config.data, Said()
    check_masks(open_split(data, "train", 0), "train", said)
    check_images(open_split(data, "calibration", 0), "calibration", said)
    assert said.messages == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_label_is_refused_before_training(place: Run, split: str) -> None:
    change_masks(place, split, [VOID, VOID])
    named = {"train": "'train'", "val": "'calibration'"}[split]
    said = Said()
    with pytest.raises(DataError, match=rf"split {named} in .* no labelled pixel: all \d masks"):
        train_network(place, "cpu", said)
    assert not [name for name in said.tasks if "checking" not in name]
    assert not place.checkpoint.exists()


def test_a_holdout_without_a_label_is_refused_before_training(place: Run) -> None:
    """Though all other masks are labelled."""
    (held,) = open_split(place.config.data, "holdout", place.config.seed).ids
    void = Image.fromarray(np.full((32, 48), VOID, np.uint8))
    void.save(root_of(place) / "train" / "masks" / f"{held}.png")
    with pytest.raises(
        DataError, match=r"holdout of split 'train' .* has no labelled pixel: all 1 masks"
    ):
        train_network(place, "cpu", Silent())


def test_a_split_without_a_label_is_not_memoised(run: Run, tmp_path: Path) -> None:
    """Before the network sees an image, though the split is not the one of training."""
    root = shutil.copytree(root_of(run), tmp_path / "copy")
    for path in (root / "val" / "masks").iterdir():
        Image.fromarray(np.full((48, 64), VOID, np.uint8)).save(path)
    said = Said()
    with pytest.raises(DataError, match=r"split 'calibration' in .*copy/val has no labelled pixel"):
        workflow.memoise(run.path, root=root, name="other", reporter=said)
    assert said.tasks == ["reading labels"]


def test_values_that_nobody_named_are_refused_before_training(place: Run) -> None:
    change_masks(place, "train", [0, 3])
    with pytest.raises(DataError, match=r"3 \(\d\d\.\d% of the pixels, in 5 of 5 masks\)"):
        train_network(place, "cpu", Silent())
    assert not place.checkpoint.exists()


def test_one_class_is_refused_before_training(
    place: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root_of(place) / "classes.json"
    classes = json.loads(file.read_text())["classes"][:1]
    file.write_text(json.dumps({"num_classes": 1, "classes": classes}))
    monkeypatch.setattr("sys.argv", ["mess", "train-overprovisioned", "--run", str(place.path)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "'no' is the only class" in told
    assert "Make what is not of it a class, too" in told


def test_a_line_is_said_once_by_a_command() -> None:
    said = Said()
    once = Once(said)
    for text in ("a", "b", "a"):
        once.message(text)
    with once.task("work", 1):
        pass
    assert said.messages == ["a", "b"]
    assert said.tasks == ["work"]


def test_evaluation_says_what_is_missing(run: Run, searched: Searched, tmp_path: Path) -> None:
    root = shutil.copytree(root_of(run), tmp_path / "copy")
    for path in (root / "test" / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 1] = 0
        Image.fromarray(mask).save(path)
    text = run.config_file.read_text().replace(str(root_of(run)), str(root))
    bundle = searched(setting="final-only", target="latency", max_error=1.0)
    write_text(run.config_file, text)
    workflow.evaluate(bundle, run=run.path, split="test", reporter=(said := Said()))
    (line,) = [text for text in said.messages if "no mask holds" in text]
    assert repr(Run(run.path).class_table.names[1]) in line
    assert "split 'test'" in line


def test_predictions_are_of_what_training_would_see(
    run: Run, searched: Searched, tmp_path: Path
) -> None:
    """16 bits as their upper 8, turned as EXIF says, and what has no range refused by name."""
    bundle = searched(setting="final-only", target="latency", max_error=1.0)
    source = next((root_of(run) / "test" / "images").glob("*.png"))
    pixels = np.asarray(Image.open(source).convert("RGB")).astype(int)
    files = [tmp_path / f"{name}.png" for name in ("plain", "deep", "turned")]
    write_png(files[0], pixels, bits=8, kind=2)
    write_png(files[1], pixels * 256 + 99, bits=16, kind=2)
    write_png(files[2], np.rot90(pixels), bits=8, kind=2, before=exif_chunk(6))
    rows = workflow.predict(bundle, files, output=tmp_path / "maps")
    plain, *others = [np.asarray(Image.open(row["label_map"])) for row in rows]
    for label_map in others:
        np.testing.assert_array_equal(label_map, plain)
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"image .*float\.tif holds floating-point"):
        workflow.predict(bundle, [tmp_path / "float.tif"], output=tmp_path / "maps")
