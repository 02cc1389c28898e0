"""What a data set's grids can hold, told before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mess import workflow
from mess.cli.app import main
from mess.errors import DataError

SIZE = (32, 48)


@pytest.fixture
def poles(tmp_path: Path) -> Path:
    """A field, poles of one pixel, and a class without a pixel."""
    classes = [
        {"id": i, "name": n, "color": [i, i, i]} for i, n in enumerate(("field", "pole", "sea"))
    ]
    for split in ("train", "val", "test"):
        mask = np.zeros(SIZE, np.uint8)
        mask[4:28, 13] = 1
        mask[:, 40:] = 255
        for kind, array in (("images", np.zeros((*SIZE, 3), np.uint8)), ("masks", mask)):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            Image.fromarray(array).save(folder / "one.png")
    table = {"num_classes": 3, "ignore_index": 255, "classes": classes}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    return tmp_path


def options(root: Path) -> list[str]:
    return ["data.kind=folder", f"data.root={root}", f"data.size={list(SIZE)}"]


def test_a_class_finer_than_every_exit_is_out_of_reach(poles: Path) -> None:
    found = workflow.ceiling("shapes", overrides=options(poles), sizes=[SIZE, (256, 384)])
    assert found["images"] == 1
    assert found["pixels"] == [pytest.approx(1 - 24 / 1280), pytest.approx(24 / 1280), 0]
    rows = {(row["height"], row["output_stride"]): row for row in found["ceilings"]}
    finest = found["output_strides"][0]
    field, pole, sea = rows[32, finest]["iou"]
    # No pixel is answered as a pole, so those of it are all that the field is wrong in.
    assert (field, pole, sea) == (pytest.approx(1256 / 1280), 0.0, None)
    assert rows[32, finest]["miou"] == pytest.approx((field + pole) / 2)
    assert rows[256, finest]["iou"][1] > 0.5
    assert [(each["height"], each["class"]) for each in found["out_of_reach"]] == [(32, "pole")]


def test_a_split_without_a_labelled_pixel_is_refused(poles: Path) -> None:
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(poles / "test" / "masks" / "one.png")
    with pytest.raises(DataError, match=r"split 'test'.* has no labelled pixel"):
        workflow.ceiling("shapes", overrides=options(poles), split="test")


def test_the_command_names_it(
    poles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [argument for option in options(poles) for argument in ("--set", option)]
    for size, code in (("32x48", 0), ("360", 2)):
        monkeypatch.setattr("sys.argv", ["mess", "ceiling", "shapes", *sets, "--size", size])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == code
    told = capsys.readouterr()
    assert "At 32×48 no exit can get pole right: its IoU is at most about 0.00." in told.out
    assert "360x480, got '360'" in told.err
