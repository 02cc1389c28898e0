"""Images and masks in layouts of others, by `data.pairs`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mess.config import DataConfig, load_config
from mess.data import SegmentationData, open_split
from mess.errors import ConfigError, DataError

CITYSCAPES = (
    "leftImg8bit/{split}/**/{id}_leftImg8bit.png",
    "gtFine/{split}/**/{id}_gtFine_labelIds.png",
)


def write(root: Path, path: str, level: int = 0) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (4, 6) if "mask" in path or "gt" in path or "annot" in path else (4, 6, 3)
    Image.fromarray(np.full(shape, level, np.uint8)).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    classes = [{"id": i, "name": f"class{i}", "color": [i, i, i]} for i in range(3)]
    (tmp_path / "classes.json").write_text(json.dumps({"num_classes": 3, "classes": classes}))
    return tmp_path


def opened(root: Path, images: str, masks: str, split: str = "train") -> SegmentationData:
    config = DataConfig(
        kind="folder", root=root, size=(4, 6), holdout=0.0, pairs={"images": images, "masks": masks}
    )
    return open_split(config, split, seed=0)


def test_cityscapes(root: Path) -> None:
    for number, (split, city) in enumerate(
        [("train", "bonn"), ("train", "ulm"), ("val", "lindau"), ("test", "berlin")]
    ):
        name = f"{city}_000001_00001{number}"
        write(root, f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", 40 + number)
        for kind, level in (("labelIds", number % 3), ("instanceIds", 9), ("color", 9)):
            write(root, f"gtFine/{split}/{city}/{name}_gtFine_{kind}.png", level)
    data = opened(root, *CITYSCAPES)
    assert data.ids == ["bonn_000001_000010", "ulm_000001_000011"]
    assert data.others == ()
    for index in range(2):
        image, mask = data.read(index)
        assert (image == 40 + index).all()
        assert (mask == index).all()
    assert opened(root, *CITYSCAPES, "calibration").ids == ["lindau_000001_000012"]
    assert opened(root, *CITYSCAPES, "test").ids == ["berlin_000001_000013"]


def test_masks_beside_their_images_are_not_left_out(root: Path) -> None:
    """As DeepGlobe has them."""
    for split, number in (("train", 1), ("train", 2), ("val", 3)):
        write(root, f"{split}/{number}_sat.jpg")
        write(root, f"{split}/{number}_mask.png", 1)
    write(root, "train/4_other.png")
    data = opened(root, "{split}/{id}_sat.jpg", "{split}/{id}_mask.png")
    assert data.ids == ["1", "2"]
    assert data.others == (root / "train/4_other.png",)


def test_ade20k_and_loveda_name_their_splits_otherwise(root: Path) -> None:
    for split in ("training", "validation"):
        write(root, f"images/{split}/ADE_{split}_1.jpg")
        write(root, f"annotations/{split}/ADE_{split}_1.png")
    ade = ("images/{split}/{id}.jpg", "annotations/{split}/{id}.png")
    assert opened(root, *ade).ids == ["ADE_training_1"]
    assert opened(root, *ade, "calibration").ids == ["ADE_validation_1"]
    for split in ("Train", "Val"):
        for number, place in enumerate(("Rural", "Urban")):
            write(root, f"{split}/{place}/images_png/{number}.png")
            write(root, f"{split}/{place}/masks_png/{number}.png")
    love = ("{split}/**/images_png/{id}.png", "{split}/**/masks_png/{id}.png")
    assert opened(root, *love).ids == opened(root, *love, "calibration").ids == ["0", "1"]


def test_names_that_repeat_in_folders(root: Path) -> None:
    for video in ("a", "b"):
        write(root, f"train/{video}/frames/0001.jpg", 60 if video == "b" else 50)
        write(root, f"train/{video}/masks/0001.png", 1 if video == "b" else 0)
    with pytest.raises(DataError, match=r"a/frames/0001\.jpg and .*b/frames.* share the id '0001'"):
        opened(root, "{split}/**/frames/{id}.jpg", "{split}/**/masks/{id}.png")
    data = opened(root, "{split}/{video}/frames/{id}.jpg", "{split}/{video}/masks/{id}.png")
    assert data.ids == ["a/0001", "b/0001"]
    assert (data.read(1)[1] == 1).all()


def test_an_id_may_span_folders(root: Path) -> None:
    for name in ("x", "night/x", "night/deep/y"):
        write(root, f"train/images/{name}.jpg")
        write(root, f"train/masks/{name}.png")
    write(root, "train/images/night/.hidden.jpg")
    (root / "train/images/again").symlink_to(root / "train/images", target_is_directory=True)
    assert opened(root, "{split}/images/{id}.jpg", "{split}/masks/{id}.png").ids == [
        "night/deep/y", "night/x", "x",
    ]  # fmt: skip


def test_images_that_no_pattern_names_are_counted(root: Path) -> None:
    write(root, "images/train_1.jpg")
    write(root, "images/val_1.jpg")
    write(root, "images/old_1.jpg")
    (root / "images/notes.txt").touch()
    write(root, "masks/train_1.png")
    data = opened(root, "images/{split}_{id}.jpg", "masks/{split}_{id}.png")
    assert data.ids == ["1"]
    assert [path.name for path in data.others] == ["old_1.jpg"]


def test_special_characters_mean_themselves(root: Path) -> None:
    write(root, "train/images (1)+/a.b.jpg")
    write(root, "train/masks/a.b[0].png")
    data = opened(root, "{split}/images (1)+/{id}.jpg", "{split}/masks/{id}[0].png")
    assert data.ids == ["a.b"]


def test_what_has_no_partner_is_named(root: Path) -> None:
    plain = ("{split}/images/{id}.jpg", "{split}/masks/{id}.png")
    write(root, "train/images/a.jpg")
    with pytest.raises(
        DataError, match=r"image train/images/a\.jpg \(id 'a'\) has no mask \(1 of 1 images have"
    ):
        opened(root, *plain)
    write(root, "train/masks/a.png")
    write(root, "train/masks/b.png")
    with pytest.raises(DataError, match=r"mask train/masks/b\.png .*has no image \(1 of 2 masks"):
        opened(root, *plain)


def test_a_pattern_that_nothing_is_like_is_told_with_a_file(root: Path) -> None:
    write(root, "train/pictures/a.jpg")
    with pytest.raises(
        DataError,
        match=r"is like '\{split\}/images/\{id\}\.jpg' with \{split\} as calibration or val or "
        r".*There is, for example, (train/pictures/a\.jpg|classes\.json)",
    ):
        opened(root, "{split}/images/{id}.jpg", "{split}/masks/{id}.png", "calibration")
    with pytest.raises(DataError, match="There is no file"):
        opened(root, "nowhere/{split}/{id}.jpg", "{split}/masks/{id}.png")


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ("images/{id}.jpg", "{split}/{id}.png", r"images = .* has \{split\} 0 times"),
        ("{split}/a.jpg", "{split}/{id}.png", r"images = .* has \{id\} 0 times"),
        ("{split}/{id}.jpg", "{split}/{id}/{id}.png", r"masks = .* has \{id\} 2 times"),
        ("{split}/{id.jpg", "{split}/{id}.png", r"images = .* has "),
        ("{split}/{Id}/{id}.jpg", "{split}/{id}.png", r"has '\{Id\}'; a name is like \{id\}"),
        ("{split}/{a}/{a}/{id}.jpg", "{split}/{id}.png", "repeats a name in braces"),
        ("{split}/{a}/{id}.jpg", "{split}/{id}.png", r"images has \{a\}, \{id\} and masks \{id\}"),
        ("../{split}/{id}.jpg", "{split}/{id}.png", r"leaves data\.root"),
        ("/{split}/{id}.jpg", "{split}/{id}.png", r"leaves data\.root"),
    ],
)
def test_faulty_patterns(root: Path, images: str, masks: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(root, images, masks)


def test_pairs_are_two_and_a_folders(root: Path) -> None:
    config = DataConfig(kind="folder", root=root, pairs={"images": "{split}/{id}.png"})
    with pytest.raises(ConfigError, match=r"data\.pairs has images alone; it needs"):
        open_split(config, "train", seed=0)
    config = DataConfig(kind="voc", root=root, pairs={})
    with pytest.raises(ConfigError, match=r"data\.kind = 'voc' has a layout of its own"):
        open_split(config, "train", seed=0)


def test_pairs_are_a_table_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[data]\nkind = "folder"\n[data.pairs]\nimages = "a/{split}/{id}.jpg"\nmasks = "b/{id}"\n'
    )
    config = load_config(file)
    assert config.data.pairs == {"images": "a/{split}/{id}.jpg", "masks": "b/{id}"}
    (tmp_path / "again.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "again.toml") == config
    file.write_text('[data.pairs]\nlabels = "b/{id}"\n')
    with pytest.raises(ConfigError, match=r"data\.pairs\.labels.* 'images' or 'masks'"):
        load_config(file)
