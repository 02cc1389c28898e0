"""Pictures in a folder, without masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mess.common.metrics import VOID
from mess.data import ClassTable, Unlabelled, open_unlabelled
from mess.errors import DataError

CLASSES = ClassTable(names=("a", "b", "c"), colors=((0, 0, 0), (1, 1, 1), (2, 2, 2)))
SIZE = (24, 32)


def opened(folder: Path, classes: ClassTable = CLASSES) -> Unlabelled:
    return open_unlabelled(folder, classes, SIZE)


def write(path: Path, level: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    write(folder / "b.png", 10)
    write(folder / "night" / "0001.JPG", 20, (30, 50))
    write(folder / "night" / "deep" / "x.jpeg", 30)
    return folder


def test_ids_are_paths_without_the_suffix(folder: Path) -> None:
    data = opened(folder)
    assert data.ids == ["b", "night/0001", "night/deep/x"]
    assert data.classes is CLASSES
    assert data.select([2, 0], "some").ids == ["night/deep/x", "b"]


def test_no_pixel_is_labelled_at_any_size(folder: Path) -> None:
    data = opened(folder)
    image, mask = data.read(1)
    assert image.shape == (30, 50, 3)
    assert mask.shape == (30, 50)
    image, mask = data.sized(1)
    assert image.shape == (*SIZE, 3)
    assert abs(image.astype(int) - 20).max() <= 3
    assert mask.shape == SIZE
    assert (mask == VOID).all()


def test_hidden_files_are_no_part_and_others_are_told(folder: Path) -> None:
    write(folder / ".thumbnails" / "b.png", 1)
    write(folder / "._b.png", 1)
    (folder / "notes.txt").write_text("of the site")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    data = opened(folder)
    assert data.ids == ["b", "night/0001", "night/deep/x"]
    assert [path.name for path in data.others] == ["again", "notes.txt"]


def test_pictures_of_every_kind_are_read(folder: Path) -> None:
    for suffix in ("bmp", "tif", "tiff", "webp"):
        write(folder / f"of_{suffix}.{suffix}", 40)
    data = opened(folder)
    assert not data.others
    for suffix in ("bmp", "tif", "tiff", "webp"):
        image, _ = data.read(data.ids.index(f"of_{suffix}"))
        assert abs(image.astype(int) - 40).max() <= 1


def test_fingerprints_cover_the_picture_alone(folder: Path, tmp_path: Path) -> None:
    """Whatever it is called, and whatever lies beside it; but its size and the classes count."""
    first = opened(folder).image_fingerprints()
    moved = tmp_path / "moved"
    shutil.copytree(folder / "night", moved / "day")
    write(moved / "other.png", 99)
    found = opened(moved).image_fingerprints()
    assert found["day/0001"] == first["night/0001"]
    assert found["day/deep/x"] == first["night/deep/x"]
    write(folder / "b.png", 11)
    changed = opened(folder).image_fingerprints()
    assert [name for name in first if changed[name] != first[name]] == ["b"]
    others = ClassTable(names=("a", "b", "d"), colors=CLASSES.colors)
    assert not set(opened(folder, others).image_fingerprints().values()) & set(changed.values())


def test_the_same_picture_twice_is_refused(folder: Path) -> None:
    data = opened(folder)
    data.require_distinct(data.image_fingerprints())
    shutil.copy(folder / "b.png", folder / "night" / "copy.png")
    data = opened(folder)
    with pytest.raises(DataError, match=r"b\.png and .*copy\.png are the same picture \(1 such"):
        data.require_distinct(data.image_fingerprints())


def test_two_files_of_an_id_are_refused(folder: Path) -> None:
    write(folder / "b.jpg", 77)
    with pytest.raises(DataError, match=r"b\.jpg and .*b\.png share the id 'b'; remove or rename"):
        opened(folder)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no pictures \(\.jpg, \.jpeg, \.png, .*\.webp\)"):
        opened(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="1 other file"):
        opened(tmp_path)
    with pytest.raises(DataError, match="nowhere is no folder; --images names one"):
        opened(tmp_path / "nowhere")


def test_a_picture_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "night" / "bad.png").write_bytes(b"no picture")
    data = opened(folder)
    with pytest.raises(DataError, match=r"bad\.png cannot be read.*Replace or remove it"):
        data.read(data.ids.index("night/bad"))
