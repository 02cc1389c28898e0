"""Masks as people have them: what stands for a class by `values`, `colors` and `void`."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mess.common.images import PREPROCESSING
from mess.config import DataConfig, load_config
from mess.data import SegmentationData, open_split
from mess.data.mask_encoding import MaskEncoding
from mess.errors import DataError
from tests.pngs import exif_chunk, write_png
from tests.seeds import seeded

VOID = 255
NAMES = ("road", "sky", "tree")
COLORS = ((128, 64, 128), (70, 130, 180), (0, 0, 0))


def config(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(kind="folder", root=root, size=(8, 8), holdout=0.0, workers=0, **changes)


def train(root: Path) -> SegmentationData:
    return open_split(config(root), "train", seed=0)


def write_classes(root: Path, *entries: dict[str, Any], **top: Any) -> None:
    """Classes of the names and colours above, with those keys added to each and to all."""
    classes = [
        {"id": number, "name": NAMES[number], "color": list(COLORS[number])} | entry
        for number, entry in enumerate(entries)
    ]
    root.mkdir(exist_ok=True)
    content = {"num_classes": len(classes), "classes": classes} | top
    (root / "classes.json").write_text(json.dumps(content))


def write_pair(root: Path, name: str, mask: NDArray[Any], bits: int = 8, kind: int = 0) -> None:
    pixels = np.zeros((*mask.shape[:2], 3), np.uint8)
    images = root / "train" / "images"
    images.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(images / f"{name}.png")
    write_png(root / "train" / "masks" / f"{name}.png", mask, bits=bits, kind=kind)


def looked_up(stored: NDArray[Any], known: dict[int, int]) -> NDArray[np.uint8]:
    """Pixel by pixel."""
    flat = [known[value] for value in stored.ravel().tolist()]
    return np.array(flat, np.uint8).reshape(stored.shape)


@pytest.mark.parametrize(
    ("bits", "values", "void"),
    [
        (8, [[1], [2], [3]], [0]),  # ADE20K, LoveDA
        (8, [[0], [255], [7]], []),  # 255 is a class
        (8, [[7, 8], [11], [33, 26]], [0, 255]),  # Cityscapes: gaps, and several of one class
        (16, [[1000, 1001], [256], [65535]], [0]),  # more than 8 bits
        (2, [[3], [1], [0]], [2]),
        (1, [[1], [0]], []),
    ],
)
def test_values_of_the_classes(
    tmp_path: Path, bits: int, values: list[list[int]], void: list[int]
) -> None:
    known = {value: number for number, each in enumerate(values) for value in each}
    known |= dict.fromkeys(void, VOID)
    rng = np.random.default_rng(seeded(1))
    stored = rng.choice(list(known), size=(9, 11))
    write_classes(tmp_path, *({"values": each} for each in values), void=void)
    write_pair(tmp_path, "a", stored, bits)
    mask = train(tmp_path).read(0)[1]
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, looked_up(stored, known))


def test_values_far_apart_and_below_zero(tmp_path: Path) -> None:
    """Of 32-bit TIFF, where -9999 is usual for what nobody measured."""
    values, void = [[2**31 - 1], [5]], [-(2**31), -9999]
    write_classes(tmp_path, *({"values": each} for each in values), void=void)
    stored = np.array([[2**31 - 1, 5, -9999], [5, -(2**31), 5]])
    write_pair(tmp_path, "a", np.zeros((2, 3)))
    (tmp_path / "train/masks/a.png").unlink()
    Image.fromarray(stored.astype(np.int32)).save(tmp_path / "train/masks/a.tif")
    np.testing.assert_array_equal(train(tmp_path).read(0)[1], [[0, 1, VOID], [1, VOID, 1]])


@pytest.mark.parametrize("mode", ["display", "own", "palette", "mixed"])
def test_colours_of_the_classes(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(seeded(2))
    void = [[255, 255, 255], [1, 2, 3]]
    known: dict[tuple[int, ...], int] = {color: number for number, color in enumerate(COLORS)}
    known |= {tuple(color): VOID for color in void}
    entries: list[dict[str, Any]] = [{}, {}, {}]
    if mode == "own":
        entries = [{"colors": [list(color)]} for color in COLORS]
    elif mode == "mixed":
        entries[1] = {"colors": [[9, 9, 9], [70, 130, 180]]}
        known[9, 9, 9] = 1
    write_classes(tmp_path, *entries, void=void, **({} if mode == "own" else {"colors": True}))
    palette = np.array(list(known), np.uint8)
    indices = rng.integers(0, len(palette), (9, 11))
    write_pair(tmp_path, "a", palette[indices], kind=2)
    if mode == "palette":
        picture = Image.fromarray(indices.astype(np.uint8))
        picture.putpalette(palette.tobytes())
        picture.save(tmp_path / "train/masks/a.png")
    expected = np.array(list(known.values()), np.uint8)[indices]
    np.testing.assert_array_equal(train(tmp_path).read(0)[1], expected)


def test_without_these_keys_masks_hold_ids_of_any_depth(tmp_path: Path) -> None:
    write_classes(tmp_path, {}, {}, {})
    stored = np.array([[0, 1, 2], [2, 1, 0]])
    for bits in (2, 4, 8, 16):
        write_pair(tmp_path, f"bits{bits}", stored, bits)
    data = train(tmp_path)
    for index in range(len(data)):
        np.testing.assert_array_equal(data.read(index)[1], stored)


def test_a_wide_value_is_never_taken_for_its_lower_bits(tmp_path: Path) -> None:
    write_classes(tmp_path, {}, {}, {})
    write_pair(tmp_path, "a", np.array([[256, 511, 1]]), bits=16)
    with pytest.raises(DataError, match=r"256 \(33\.3% .*511 \(33\.3%"):
        train(tmp_path).read(0)


def test_image_and_mask_are_turned_alike(tmp_path: Path) -> None:
    write_classes(tmp_path, {}, {}, {})
    stored = np.arange(12).reshape(3, 4) % 3
    write_pair(tmp_path, "a", np.rot90(stored))
    path = tmp_path / "train/images/a.png"
    write_png(path, 80 * stored, bits=8, before=exif_chunk(8))
    image, mask = train(tmp_path).read(0)
    np.testing.assert_array_equal(image[..., 0], 80 * mask.astype(int))
    np.testing.assert_array_equal(mask, np.rot90(stored))


# ---- Values that nobody named


def test_unknown_values_are_listed_with_their_shares(tmp_path: Path) -> None:
    write_classes(tmp_path, {"values": [1]}, {"values": [2]}, void=[0])
    for number in range(4):
        stored = np.ones((10, 10), int)
        stored[: number // 2] = 9  # 10 pixels in two of four
        stored[9, 9] = 77 if number == 3 else 0
        write_pair(tmp_path, f"m{number}", stored)
    message = (
        r"not void: 9 \(5\.0% of the pixels, in 2 of 4 masks\), 77 \(0\.2% of the pixels, in 1 of 4"
        r" masks\)\. Give them to a class or to `void` in classes\.json"
    )
    with pytest.raises(DataError, match=message):
        train(tmp_path).read(3)
    assert train(tmp_path).read(0)[1].max() == VOID
    with pytest.raises(DataError, match=message):
        list(train(tmp_path).masks())


def test_unknown_colours_are_listed_as_they_are_written(tmp_path: Path) -> None:
    write_classes(tmp_path, {}, {}, {}, colors=True)
    stored = np.zeros((4, 5, 3), int)
    stored[0, 0] = 12, 0, 255
    write_pair(tmp_path, "a", stored, kind=2)
    with pytest.raises(DataError, match=r"hold colours .*: \[12, 0, 255\] \(5\.0% of the pixels"):
        train(tmp_path).read(0)


def test_many_unknown_values_are_counted(tmp_path: Path) -> None:
    write_classes(tmp_path, {}, {})
    write_pair(tmp_path, "a", np.arange(30).reshape(5, 6))
    with pytest.raises(DataError, match=r"\) and 20 more\. Class ids are 0\.\.1, and 255 is void"):
        train(tmp_path).read(0)


# ---- classes.json


@pytest.mark.parametrize(
    ("entries", "top", "message"),
    [
        ([{"values": [1]}, {}], {}, "entry 1 of `classes` has no 'values', and others have"),
        ([{"colors": [[1, 2, 3]]}, {}], {}, "entry 1 of `classes` has no 'colors'"),
        ([{"values": [1]}, {"values": [1]}], {}, "1 is of 'road' and of 'sky'; a value has one"),
        ([{"values": [1]}, {"values": [2]}], {"void": [2]}, "2 is of 'sky' and of void"),
        ([{}, {}], {"void": [0]}, "0 is of 'road' and of void"),
        ([{"values": 1}, {"values": [2]}], {}, "values of entry 0 .* is 1; it should be a list"),
        ([{"values": []}, {"values": [2]}], {}, "values of entry 0 .* is empty"),
        ([{"values": [True]}, {"values": [2]}], {}, "has True; it lists whole numbers"),
        ([{"values": [2**31]}, {"values": [2]}], {}, "has 2147483648; it lists whole numbers"),
        ([{"values": [[1, 2, 3]]}, {"values": [2]}], {}, r"has \[1, 2, 3\]; it lists whole"),
        ([{"colors": [1]}, {"colors": [2]}], {}, r"has 1; it lists colours, each \[r, g, b\]"),
        ([{"colors": [[1, 2, 256]]}, {}], {"colors": True}, r"has \[1, 2, 256\]; it lists colours"),
        ([{}, {}], {"colors": True, "void": [0]}, "void has 0; it lists colours"),
        ([{}, {}], {"colors": [[1, 2, 3]]}, r"colors is \[\[1, 2, 3\]\]; true says"),
        ([{"values": [1]}, {"values": [2]}], {"colors": True}, "`values` and colours; masks hold"),
        ([{"color": [1, 1, 1]}, {"color": [1, 1, 1]}], {"colors": True}, r"\[1, 1, 1\] is of 'ro"),
    ],
)
def test_faulty_encodings(
    tmp_path: Path, entries: list[dict[str, Any]], top: dict[str, Any], message: str
) -> None:
    write_classes(tmp_path, *entries, **top)
    write_pair(tmp_path, "a", np.zeros((2, 2)))
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))}/classes.json: .*{message}"):
        train(tmp_path)


def test_ignore_index_means_nothing_beside_values(tmp_path: Path) -> None:
    """A template's 255 does not void what a class was given."""
    write_classes(tmp_path, {"values": [0]}, {"values": [255]}, ignore_index=255)
    write_pair(tmp_path, "a", np.array([[0, 255]]))
    np.testing.assert_array_equal(train(tmp_path).read(0)[1], [[0, 1]])


# ---- Fingerprints


def test_fingerprints_of_plain_data_sets_are_of_nothing_else(tmp_path: Path) -> None:
    """By their definition: sha256 over those of header, void value, image, mask."""
    write_classes(tmp_path, {}, {}, {}, ignore_index=7)
    write_pair(tmp_path, "a", np.array([[0, 7]]))

    def sha256(content: bytes) -> bytes:
        return hashlib.sha256(content).digest()

    header = json.dumps([PREPROCESSING, [8, 8], list(NAMES)]).encode()
    files = [(tmp_path / "train" / kind / "a.png").read_bytes() for kind in ("images", "masks")]
    parts = b"".join(map(sha256, [header, bytes([7]), *files]))
    assert train(tmp_path).image_fingerprints() == {"a": sha256(parts).hex()}


def test_what_stands_for_a_class_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    seen: set[str] = set()
    write_pair(tmp_path, "a", np.array([[0, 1]]))
    ways: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        ([{}, {}, {}], {}),
        ([{}, {}, {}], {"void": [9]}),
        ([{"values": [0]}, {"values": [1]}, {"values": [2]}], {}),
        ([{"values": [1]}, {"values": [0]}, {"values": [2]}], {}),
        ([{}, {}, {}], {"colors": True}),
        ([{}, {}, {}], {"colors": True, "void": [[0, 0, 1]]}),
    ]
    for entries, top in ways:
        write_classes(tmp_path, *entries, **top)
        seen.add(train(tmp_path).fingerprint())
    assert len(seen) == len(ways)


def test_an_encoding_is_copied_without_its_tables() -> None:
    encoding = MaskEncoding(values=((1,), (70_000,)), void=(0,))
    before = len(pickle.dumps(encoding))
    encoding.ids_of(np.arange(5))
    assert len(pickle.dumps(encoding)) == before


def test_the_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (classes,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (pairs,) = [block for block in blocks if "pairs" in block]
    root = tmp_path / "cityscapes"
    for split in ("train", "val"):
        for folder, kind in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            stored = np.arange(14).reshape(2, 7)
            write_png(root / folder / split / "ulm" / f"ulm_1_{kind}.png", stored, bits=8)
    (root / "classes.json").write_text(classes)
    (tmp_path / "mine.toml").write_text(pairs)
    config = load_config(tmp_path / "mine.toml", [f"data.root={root}", "data.holdout=0.0"]).data
    for split, folder in (("train", "train"), ("calibration", "val")):
        data = open_split(config, split, seed=0)
        assert data.ids == ["ulm_1"]
        known = dict.fromkeys(range(7), VOID) | {7: 0, 11: 1, 12: 1, 13: 1}
        with pytest.raises(DataError, match=r"8 \(7\.1% .*9 \(7\.1% .*10 \(7\.1%"):
            data.read(0)
        stored = np.array([[7, 11, 0], [6, 12, 13]])
        write_png(root / f"gtFine/{folder}/ulm/ulm_1_gtFine_labelIds.png", stored, bits=8)
        found = next(open_split(config, split, seed=0).masks())
        np.testing.assert_array_equal(found, looked_up(stored, known))
