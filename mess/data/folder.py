"""A data set in plain folders: ROOT/SPLIT/images, ROOT/SPLIT/masks and ROOT/classes.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.common.images import read_mask
from mess.common.metrics import VOID
from mess.config import DataConfig
from mess.data.base import ClassTable
from mess.data.files import FilePairs, data_root
from mess.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_SPLIT_FOLDERS = {"train": ("train",), "calibration": ("calibration", "val"), "test": ("test",)}


class Folder(FilePairs):
    """ROOT/SPLIT/images/ID.(jpg|png) with ROOT/SPLIT/masks/ID.png, 8-bit class ids.

    The calibration split is the folder `calibration` or, where there is none, `val`. classes.json
    may name any `ignore_index` above the class ids; masks are read with 255 in its place.
    """

    ignore_index: int = VOID
    """The void value in the files."""

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> Folder:
        root = data_root(config, "classes.json and SPLIT/images, SPLIT/masks")
        classes, ignore_index = read_classes(root / "classes.json")
        folder = _split_folder(root, split)
        where = f"split {split!r} in {folder}"
        images = _by_stem(folder / "images", IMAGE_SUFFIXES, where)
        masks = _by_stem(folder / "masks", (".png",), where)
        _require_pairs(images, masks, folder, where)
        files = [(stem, images[stem], masks[stem]) for stem in sorted(images)]
        data = cls(where=where, files=files, classes=classes, size=config.size)
        data.ignore_index = ignore_index
        return data

    def _read_mask(self, path: Path) -> NDArray[np.uint8]:
        mask_HW = read_mask(path)
        if self.ignore_index == VOID:
            return mask_HW
        return np.where(mask_HW == self.ignore_index, np.uint8(VOID), mask_HW)

    def _content(self, image_id: str) -> Iterable[bytes | Path]:
        # With another one the same file is another mask.
        yield bytes([self.ignore_index])
        yield from super()._content(image_id)


def read_classes(path: Path) -> tuple[ClassTable, int]:
    """The classes in classes.json, and the value that is void in the masks.

    Raises DataError that names the file, the key and the value.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; it names the classes: "
            '{"num_classes": 2, "ignore_index": 255, "classes": '
            '[{"id": 0, "name": "road", "color": [128, 64, 128]}, ...]}.'
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; it should be an object.")
    entries = _key(content, "classes", list, path)
    num_classes = _key(content, "num_classes", int, path)
    ignore_index = content.get("ignore_index", VOID)
    if num_classes != len(entries) or not 1 <= num_classes <= VOID:
        raise DataError(
            f"{path}: num_classes is {num_classes} and `classes` has {len(entries)} entries; "
            f"both are the same number in 1..{VOID}."
        )
    if not isinstance(ignore_index, int) or not num_classes <= ignore_index <= VOID:
        raise DataError(
            f"{path}: ignore_index is {ignore_index!r}; it is a mask value in "
            f"{num_classes}..{VOID}, above the class ids."
        )
    names, colors = [], []
    for position, entry in enumerate(entries):
        where = f"entry {position} of `classes`"
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {where} is {entry!r}; it should have id, name and color.")
        if (class_id := _key(entry, "id", int, path, where)) != position:
            raise DataError(f"{path}: {where} has id {class_id}; ids count up from 0 in order.")
        names.append(_key(entry, "name", str, path, where))
        colors.append(_color(_key(entry, "color", list, path, where), path, where))
    return ClassTable(names=tuple(names), colors=tuple(colors)), ignore_index


def _key(content: dict[str, Any], key: str, kind: type, path: Path, where: str = "it") -> Any:
    if key not in content:
        found = ", ".join(content) or "none"
        raise DataError(f"{path}: {where} has no key {key!r}; the keys are: {found}.")
    value = content[key]
    # A bool is an int to Python: `true` would pass for 1.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(
            f"{path}: {key} of {where} is {value!r}; it should be of type {kind.__name__}."
        )
    return value


def _color(value: list[Any], path: Path, where: str) -> tuple[int, int, int]:
    if len(value) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in value):
        raise DataError(f"{path}: color of {where} is {value}; it should be [r, g, b] in 0..255.")
    red, green, blue = value
    return red, green, blue


def _split_folder(root: Path, split: str) -> Path:
    names = _SPLIT_FOLDERS[split]
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    raise DataError(
        f"split {split!r} is missing: {root} has no folder {' or '.join(map(repr, names))}, "
        f"only {', '.join(found) or 'none'}."
    )


def _by_stem(folder: Path, suffixes: tuple[str, ...], where: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{where}: folder {folder} is missing.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                f"{where}: {found[path.stem].name} and {path.name} share the id {path.stem!r}; "
                "remove or rename one."
            )
        found[path.stem] = path
    return found


def _require_pairs(
    images: dict[str, Path], masks: dict[str, Path], folder: Path, where: str
) -> None:
    for kind, alone, wanted in (
        ("image", sorted(images.keys() - masks.keys()), folder / "masks" / "{}.png"),
        ("mask", sorted(masks.keys() - images.keys()), folder / "images" / "{}.(jpg|png)"),
    ):
        if alone:
            other = "mask" if kind == "image" else "image"
            raise DataError(
                f"{where}: {kind} {alone[0]!r} has no {other} "
                f"{str(wanted).format(alone[0])} ({len(alone)} such {kind}s); "
                f"add the {other} or remove the {kind}."
            )
