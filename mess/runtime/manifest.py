"""The manifest of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

from mess.common.files import sha256
from mess.common.framing import OVERLAP, Framing, as_fit
from mess.common.normalisation import IMAGENET, Normalisation, as_channels
from mess.common.records import Figures, as_record, require_unaltered
from mess.errors import BundleError

MANIFEST = "manifest.json"
BUNDLE_VERSION = 2

_READ_VERSIONS = (1, BUNDLE_VERSION)
"""Of 1 the network takes stretched images, RGB in [0, 1]; its `input` says no more."""

_AGAIN = "Export the bundle again."


class Input(TypedDict):
    """How an image is prepared: the fields of a `Framing`, and those of a `Normalisation`."""

    size: list[int]
    mean: list[float]
    std: list[float]
    channels: NotRequired[str]
    range: NotRequired[float]
    fit: NotRequired[str]
    overlap: NotRequired[float]


class BundleExit(TypedDict):
    """One exit of an instance, in order of depth."""

    exit_id: str
    segment: str
    """File of the program that ends with this exit."""
    inputs: NotRequired[list[str]]
    """What it takes, in order: `previous_labels`, or what programs before it gave as `next_NAME`.

    Bundles of version 1 lack it: of a chain, each takes the features of the one before.
    """
    outputs: list[str]
    answer: str
    """File of the program that turns its logits into the label map."""
    signal: dict[str, Any] | None
    threshold: float | None
    exit_rate: float | None
    macs: float
    """Of an image this exit answers."""


class InstanceSource(TypedDict):
    """Where an instance comes from; `search` is None for the network run to its end."""

    search: str | None
    weights: str
    data: str
    name: NotRequired[str]
    """Of the cache that was searched."""
    labels: NotRequired[str]
    """What `predicted` is measured against: `masks`, or `final` for the final exit's label maps."""


class Manifest(TypedDict):
    """What every bundle says."""

    bundle_version: int
    format: str
    input: Input
    exits: list[BundleExit]
    histograms: dict[str, dict[str, list[float]]]
    """Of the signals of the calibration images, by exit."""
    files: dict[str, str]
    """sha256 of every other file."""
    digest: NotRequired[str]
    """Of all the rest of the manifest, by which a change is noticed (`mess.common.records`)."""


class RunManifest(Manifest):
    """What `mess export` writes besides."""

    setting: str
    policy: NotRequired[str | None]
    predicted: Figures
    baseline: Figures
    source: InstanceSource
    classes: list[str]
    palette: list[list[int]]
    ignore_index: int
    certificate: NotRequired[dict[str, Any]]
    """What was last certified, or not, of new images: by its search, or by running it."""


_Kind = TypeVar("_Kind", Manifest, RunManifest)


def read_manifest(path: Path, kind: type[_Kind]) -> _Kind:
    """The manifest of the bundle at `path`; raises BundleError, which names what is wrong."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}.") from None
    except ValueError as error:
        raise BundleError(f"{file} is damaged: {error}. {_AGAIN}") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{file} is damaged: it is no JSON object. {_AGAIN}")
    # Before the keys: another version may have others.
    version = manifest.get("bundle_version")
    if version not in _READ_VERSIONS:
        raise BundleError(
            f"{file} has bundle version {version}, this version of mess reads "
            f"{' and '.join(map(str, _READ_VERSIONS))}. Export it again with this version."
        )
    found = checked_manifest(manifest, path, kind)
    require_unaltered(found, file, _AGAIN, BundleError)
    return found


def require_files(manifest: Manifest, path: Path) -> None:
    """Raise BundleError for the first file of the bundle at `path` that is gone or was altered."""
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"bundle {path} lacks {name}. {_AGAIN}")
        if sha256(file) != digest:
            raise BundleError(f"bundle file {file} was altered after its export. {_AGAIN}")


def input_of(manifest: Manifest, path: Path) -> tuple[Framing, Normalisation]:
    """What the network of the bundle at `path` takes; raises BundleError, which names a fault."""
    given = manifest["input"]
    try:
        height, width = given["size"]
        framing = Framing(
            size=(height, width),
            fit=as_fit(given.get("fit", "stretch")),
            overlap=given.get("overlap", OVERLAP),
        )
        normalisation = Normalisation(
            mean=tuple(given["mean"]),
            std=tuple(given["std"]),
            channels=as_channels(given.get("channels", IMAGENET.channels)),
            range=given.get("range", IMAGENET.range),
        )
        return framing, normalisation
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST} has input = {given}: {error}. {_AGAIN}") from error


def checked_manifest(manifest: object, path: Path, kind: type[_Kind]) -> _Kind:
    """A manifest that has what `kind` names; raises BundleError that names what is missing."""
    return as_record(manifest, kind, path / MANIFEST, _AGAIN, BundleError)
