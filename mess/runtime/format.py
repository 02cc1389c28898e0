"""The format of a bundle: what its manifest holds.

docs/bundle.md describes it, docs/bundle.schema.json says it to machines.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from mess.common.records import Figures

MANIFEST = "manifest.json"
BUNDLE_VERSION = 3

SIGNATURES = "ed25519"
"""The algorithm of all signatures so far."""

NEXT = "next_"
"""Before the name, in its outputs, of what a program gives to later ones."""
LOGITS, SIGNAL, LABELS, PREVIOUS_LABELS = "logits", "signal", "labels", "previous_labels"


class Input(TypedDict):
    """How an image is prepared: the fields of a `Framing`, and those of a `Normalisation`."""

    size: list[int]
    mean: list[float]
    std: list[float]
    channels: str
    range: float
    fit: str
    overlap: float


class BundleExit(TypedDict):
    """One exit of an instance, in order of depth."""

    exit_id: str
    segment: str
    """File of the program that ends with this exit."""
    inputs: list[str]
    """What it takes, in order: `previous_labels`, or what programs before it gave as `next_NAME`;
    the first one the image, under a name of its own."""
    outputs: list[str]
    answer: str
    """File of the program that turns its logits into the label map."""
    signal: dict[str, Any] | None
    threshold: float | None
    exit_rate: float | None
    macs: float
    """Of an image this exit answers."""


class BundleFile(TypedDict):
    sha256: str
    bytes: int


class Histogram(TypedDict):
    edges: list[float]
    counts: list[int]


class InstanceSource(TypedDict):
    """Where an instance comes from; `search` is None for the network run to its end."""

    search: str | None
    weights: str
    data: str
    name: NotRequired[str]
    """Of the cache that was searched."""
    labels: NotRequired[str]
    """What `predicted` is measured against: `masks`, or `final` for the final exit's label maps."""


class Signature(TypedDict):
    algorithm: str
    """`SIGNATURES`."""
    value: str
    """In base64, of the digests of the manifest and of the certificate."""


class Manifest(TypedDict):
    """What every bundle says."""

    bundle_version: int
    format: str
    input: Input
    exits: list[BundleExit]
    histograms: dict[str, Histogram]
    """Of the signals of the calibration images, by exit."""
    files: dict[str, BundleFile]
    """Every other file of the bundle."""
    digest: str
    """sha256 of all the rest but certificate and signature: the bundle's identity."""
    certificate: NotRequired[dict[str, Any]]
    """What was last certified, or not, of new images: by its search, or by running it.

    With the `bundle` it is of and a `digest` of its own, since it is renewed without the bundle
    becoming another.
    """
    signature: NotRequired[Signature]


class RunManifest(Manifest):
    """What `mess export` writes besides."""

    setting: str
    policy: str | None
    predicted: Figures
    baseline: Figures
    source: InstanceSource
    classes: list[str]
    palette: list[list[int]]
    ignore_index: int
