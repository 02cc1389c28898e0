"""Which images of a run depend on each other, as `data.groups` says. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mess.config import DataConfig
from mess.data.base import image_of
from mess.errors import ConfigError, DataError
from mess.search.guarantees.copies import copies_joined
from mess.search.guarantees.groups import Groups


def groups_of(data: DataConfig, ids: Sequence[str]) -> Groups:
    """The groups of images, by their ids; each is a group of its own where `data.groups` is None.

    `data.groups` is a CSV file with the columns image_id and group, which may name other images
    too; or a regular expression with one capture. Tiles are in the group of their image. Raises
    ConfigError for what is neither, and DataError where an image has no group.
    """
    spec, image_ids = data.groups, image_ids_of(data, ids)
    if spec is None:
        return Groups.of(image_ids) if data.framing.tiles else Groups.alone(len(ids))
    if data.groups_file is not None:
        named = _read(data.groups_file)
        names = [named.get(image_id, "") for image_id in image_ids]
    else:
        names = group_names(_pattern(spec), image_ids)
    # An empty cell or capture names no group: all of them would be taken for one.
    missing = [
        image_id for image_id, name in dict(zip(image_ids, names, strict=True)).items() if not name
    ]
    if missing:
        raise DataError(
            f"data.groups {spec!r} gives {len(missing)} of {len(set(image_ids))} images no "
            f"group, such as {missing[0]!r}. Every image needs one; an image that "
            "depends on no other is a group of its own."
        )
    return Groups.of(names)


def image_ids_of(data: DataConfig, ids: Sequence[str]) -> list[str]:
    """The id of the image that each item is, or is a tile of."""
    return [image_of(item) for item in ids] if data.framing.tiles else list(ids)


def distinct_groups(data: DataConfig, images: Mapping[str, str]) -> Groups:
    """As `groups_of`, those joined that hold copies of an image: what says of others counts these.

    images: the fingerprint of each, by id. Copies are files that are equal byte for byte, masks
    too. Raises DataError where joining leaves too few groups.

    Four things guard against images that are not as many as they seem. This one needs no network,
    and counts copies once. `mess.search.guarantees.copies.without_copies` counts once what every
    exit answers alike, so also one picture in two files; it cannot stand for this one, since copies
    in batches of different sizes may differ in a signal's last digit. `Unlabelled.require_distinct`
    refuses copies among pictures without masks, where nobody meant them. And
    `mess.runs.near_identical` warns of images that are almost copies and joins none of them: that
    is for `data.groups` to say.
    """
    return copies_joined(groups_of(data, list(images)), list(images.values()))


def shared_groups(spec: str | None, fresh: Groups, searched: Groups) -> str | None:
    """Why a certificate from fresh images is weak, where groups of theirs were searched, too."""
    both = [name for name in fresh.names if name in set(searched.names)]
    # Without a specification names are numbers of the images.
    if spec is None or not both:
        return None
    return (
        f"{len(both)} of the {len(fresh)} groups, such as {both[0]!r}, have images that were "
        "searched, and tell less about other groups: the certificate is marked weak."
    )


def group_names(pattern: re.Pattern[str], image_ids: Sequence[str]) -> list[str]:
    """What the one capture of a pattern finds in each id; "" where it finds nothing."""
    found = [pattern.search(image_id) for image_id in image_ids]
    return [match.group(1) or "" if match else "" for match in found]


def _read(path: Path) -> dict[str, str]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise ConfigError(
            f"data.groups names {path}, which does not exist. Give a CSV file with the columns "
            "image_id and group, or a regular expression with one capture."
        ) from None
    except OSError as error:
        raise ConfigError(f"data.groups: {path} cannot be read: {error}") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.groups: {path} is no CSV file: {error}") from error
    if not {"image_id", "group"} <= set(table.columns):
        raise ConfigError(
            f"data.groups: {path} needs the columns image_id and group, got "
            f"{', '.join(map(str, table.columns))}."
        )
    named: dict[str, str] = {}
    for image_id, group in zip(table["image_id"], table["group"], strict=True):
        if named.setdefault(image_id, group) != group:
            raise ConfigError(f"data.groups: {path} gives image {image_id!r} more than one group.")
    return named


def _pattern(spec: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(spec)
    except re.error as error:
        raise ConfigError(f"data.groups {spec!r} is no regular expression: {error}.") from error
    if pattern.groups != 1:
        raise ConfigError(
            f"data.groups {spec!r} has {pattern.groups} captures and needs one, the group's name, "
            "such as '^(.*)_[0-9]+$' for frames of a video."
        )
    return pattern
