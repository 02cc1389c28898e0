"""A data set in folders: ROOT/SPLIT/images and ROOT/SPLIT/masks, or wherever data.pairs says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from mess.common.images import IMAGE_SUFFIXES
from mess.config import DataConfig
from mess.data.class_list import read_classes
from mess.data.files import FilePairs, Files, data_root
from mess.data.pairs import find_pairs
from mess.errors import DataError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
_SPLIT_FOLDERS = {"train": ("train",), "calibration": ("calibration", "val"), "test": ("test",)}


class Folder(FilePairs):
    """ROOT/SPLIT/images/ID.(jpg|png|...) with ROOT/SPLIT/masks/ID.png, and ROOT/classes.json.

    The calibration split is the folder `calibration` or, where there is none, `val`. `data.pairs`
    finds the files of other layouts. classes.json may say which numbers or colours in the masks
    stand for a class, and any `ignore_index` above the class ids; masks are read with 255 for void.
    """

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> Self:
        root = data_root(config, "classes.json and SPLIT/images, SPLIT/masks")
        classes, encoding = read_classes(root / "classes.json")
        if config.pairs is None:
            folder = _split_folder(root, split)
            where = f"split {split!r} in {folder}"
            files, others = _plain_pairs(folder, where)
        else:
            where = f"split {split!r} in {root}"
            found = find_pairs(root, config.pairs, split, where)
            files, others = [(name, *pair) for name, pair in found.files.items()], found.others
        data = cls(where=where, files=files, classes=classes, size=config.size)
        data.encoding, data.others = encoding, others
        return data

    def _remedy(self) -> str:
        if self.encoding.ignore_index is None:
            return "Give them to a class or to `void` in classes.json, or correct the masks."
        void = " or ".join(map(str, self.encoding.void))
        return (
            f"Class ids are 0..{self.classes.num_classes - 1}, and {void} is void. Correct the "
            "masks, or say what they hold by `values` and `void` in classes.json (docs/data.md)."
        )

    def _content(self, image_id: str) -> Iterable[bytes | Path]:
        # With another one the same file is another mask.
        yield self.encoding.fingerprint()
        yield from super()._content(image_id)


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


def _plain_pairs(folder: Path, where: str) -> tuple[list[Files], tuple[Path, ...]]:
    """The images of a split with their masks, and the files beside them that are neither."""
    images = _by_stem(folder / "images", IMAGE_SUFFIXES, where)
    masks = _by_stem(folder / "masks", MASK_SUFFIXES, where)
    others = (*images.others, *masks.others)
    if not images.files and not masks.files and others:
        raise DataError(
            f"{where} is empty: {len(others)} files there are left out, such as {others[0]}. "
            f"Images are {', '.join(IMAGE_SUFFIXES)} in {folder / 'images'} itself; for those in "
            "folders below it give data.pairs (docs/data.md)."
        )
    _require_pairs(images.files, masks.files, folder, where)
    files = [(stem, images.files[stem], masks.files[stem]) for stem in sorted(images.files)]
    return files, others


class _Listed(NamedTuple):
    """Files of a folder by stem, and those in it or below it that are left out."""

    files: dict[str, Path]
    others: list[Path]


def _by_stem(folder: Path, suffixes: tuple[str, ...], where: str) -> _Listed:
    if not folder.is_dir():
        raise DataError(f"{where}: folder {folder} is missing.")
    found, others = dict[str, Path](), list[Path]()
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in suffixes:
            others += _files_below(path) if path.is_dir() else [path]
            continue
        if path.stem in found:
            raise DataError(
                f"{where}: {found[path.stem].name} and {path.name} share the id {path.stem!r}; "
                "remove or rename one."
            )
        found[path.stem] = path
    return _Listed(found, others)


def _files_below(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and not path.is_dir():
            yield path


def _require_pairs(
    images: dict[str, Path], masks: dict[str, Path], folder: Path, where: str
) -> None:
    for kind, other, alone, wanted in (
        ("image", "mask", sorted(images.keys() - masks.keys()), ("masks", "png")),
        ("mask", "image", sorted(masks.keys() - images.keys()), ("images", "(jpg|png)")),
    ):
        if alone:
            path = folder / wanted[0] / f"{alone[0]}.{wanted[1]}"
            raise DataError(
                f"{where}: {kind} {alone[0]!r} has no {other} {path} ({len(alone)} such {kind}s); "
                f"add the {other} or remove the {kind}."
            )
