"""Images and masks wherever they lie, by two patterns of paths (`data.pairs`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mess.common.images import IMAGE_SUFFIXES
from mess.errors import ConfigError, DataError

_SPLITS = {
    "train": ("train", "training"),
    "calibration": ("calibration", "val", "validation", "valid"),
    "test": ("test", "testing"),
}
"""What a pattern's {split} stands for, in any case; of several folders the first counts."""

_TOKEN = re.compile(r"(\*\*/|\*|\{[^{}]*\})")
_NAME = re.compile(r"\{[a-z][a-z0-9_]*\}")


class Found(NamedTuple):
    """The files of a split: image and mask by id, and images beside those that no pattern names."""

    files: dict[str, tuple[Path, Path]]
    others: tuple[Path, ...]


@dataclass(frozen=True)
class _Pattern:
    """A path below the root, its parts divided by slashes.

    `{split}` is the split, `{id}` the id of the image, which may span folders, and any other
    `{name}` a part of one folder's or file's name that belongs to the id. `*` is any part of a
    name, `**/` any folders.
    """

    key: str
    text: str

    @property
    def names(self) -> tuple[str, ...]:
        """Those that make up the id."""
        return tuple(n[1:-1] for n in _NAME.findall(self.text) if n != "{split}")

    def require_sound(self) -> None:
        """Raise ConfigError where it can name no images of a split."""
        here = f"data.pairs.{self.key} = {self.text!r}"
        faulty = [token for token in _TOKEN.findall(self.text) if not self._is_known(token)]
        if faulty or "{" in _NAME.sub("", self.text):
            raise ConfigError(f"{here} has {(faulty or ['{'])[0]!r}; a name is like {{id}}.")
        for name in ("{split}", "{id}"):
            if self.text.count(name) != 1:
                raise ConfigError(
                    f"{here} has {name} {self.text.count(name)} times; it needs it once, as in "
                    f"'{self.key}/{{split}}/**/{{id}}.png'."
                )
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"{here} repeats a name in braces; each stands there once.")
        if self.text.startswith("/") or ".." in self.text.split("/"):
            raise ConfigError(f"{here} leaves data.root; it is a path below it.")

    def _is_known(self, token: str) -> bool:
        return not token.startswith("{") or bool(_NAME.fullmatch(token))

    def of_split(self, split: str) -> re.Pattern[str]:
        """What the paths of a split match, whole."""
        return re.compile("".join(self._as_regex(part, split) for part in _TOKEN.split(self.text)))

    def _as_regex(self, part: str, split: str) -> str:
        if part == "**/":
            return "(?:[^/]+/)*"
        if part == "*":
            return "[^/]*"
        if part == "{split}":
            return f"(?i:{split})"
        if part == "{id}":
            return "(?P<id>.+)"
        if _NAME.fullmatch(part):
            return f"(?P<{part[1:-1]}>[^/]+)"
        return re.escape(part)

    @property
    def start(self) -> str:
        """The folder that all of its files are in, as far as it is told."""
        told = _TOKEN.split(self.text)[0]
        return told.rpartition("/")[0]


def find_pairs(
    root: Path, pairs: Mapping[Literal["images", "masks"], str], split: str, where: str
) -> Found:
    """Image and mask of every id of a split, sorted, by `data.pairs`.

    Raises ConfigError for patterns that cannot be meant, DataError where none or not all match.
    """
    if len(pairs) < 2:
        raise ConfigError(
            f"data.pairs has {', '.join(pairs) or 'nothing'} alone; it needs images and masks, a "
            "pattern of paths each."
        )
    images, masks = _Pattern("images", pairs["images"]), _Pattern("masks", pairs["masks"])
    images.require_sound()
    masks.require_sound()
    if set(images.names) != set(masks.names):
        raise ConfigError(
            f"data.pairs: images has {_braces(images.names)} and masks {_braces(masks.names)}; an "
            "image finds its mask by the same names in both."
        )
    paths = {pattern: list(_walk(root, pattern.start)) for pattern in (images, masks)}
    for name in _SPLITS[split]:
        found = _matched(images, images.names, name, paths[images], where)
        if not found:
            continue
        matched = _matched(masks, images.names, name, paths[masks], where)
        _require_pairs(found, matched, masks, where)
        ids = sorted(found)
        files = {image_id: (root / found[image_id], root / matched[image_id]) for image_id in ids}
        return Found(
            files, tuple(root / path for path in _beside(found, paths[images], (images, masks)))
        )
    raise DataError(
        f"{where}: no file of {root} is like {images.text!r} with {{split}} as "
        f"{' or '.join(_SPLITS[split])}. {_there(paths[images])}"
    )


def _matched(
    pattern: _Pattern, names: Iterable[str], split: str, paths: Iterable[str], where: str
) -> dict[str, str]:
    """Paths that the pattern matches, by id."""
    expression, found = pattern.of_split(split), dict[str, str]()
    for path in paths:
        if not (match := expression.fullmatch(path)):
            continue
        image_id = "/".join(match[name] for name in names)
        if image_id in found:
            raise DataError(
                f"{where}: {found[image_id]} and {path} share the id {image_id!r}; let "
                f"data.pairs.{pattern.key} have more of the path in braces, such as "
                "{folder}/{id}, in images and masks."
            )
        found[image_id] = path
    return found


def _require_pairs(
    images: dict[str, str], masks: dict[str, str], pattern: _Pattern, where: str
) -> None:
    for kind, other, alone, files in (
        ("image", "mask", sorted(images.keys() - masks.keys()), images),
        ("mask", "image", sorted(masks.keys() - images.keys()), masks),
    ):
        if alone:
            raise DataError(
                f"{where}: {kind} {files[alone[0]]} (id {alone[0]!r}) has no {other} "
                f"({len(alone)} of {len(files)} {kind}s have none; data.pairs.masks is "
                f"{pattern.text!r}). Correct the pattern, add the {other} or move the {kind} away."
            )


def _beside(
    found: dict[str, str], paths: Iterable[str], patterns: Iterable[_Pattern]
) -> Iterator[str]:
    """Images in the folders of those that were found, which are image or mask of no split."""
    folders = {os.path.dirname(path) for path in found.values()}
    every = [
        pattern.of_split(name)
        for pattern in patterns
        for names in _SPLITS.values()
        for name in names
    ]
    for path in paths:
        near = os.path.dirname(path) in folders and path.lower().endswith(IMAGE_SUFFIXES)
        if near and not any(expression.fullmatch(path) for expression in every):
            yield path


def _walk(root: Path, start: str) -> Iterator[str]:
    """Paths below `root` of all files in its folder `start`, in order; hidden ones are left out."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root / start, followlinks=True):
        # A link may lead back to a folder that it lies in.
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root)
        yield from ((inside / n).as_posix() for n in sorted(names) if not n.startswith("."))


def _there(paths: list[str]) -> str:
    return f"There is, for example, {paths[len(paths) // 2]}." if paths else "There is no file."


def _braces(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
