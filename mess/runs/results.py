"""What a search found, as result.json holds it. No torch."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from mess.cache.predictions.store import CacheManifest
from mess.common.records import Figures
from mess.runtime.format import InstanceSource

CALIBRATION = "calibration"
"""The split that is searched, and the name of its cache."""


class Adoption(TypedDict):
    """The content of adopted.json: the network that a run was begun with, on calibration."""

    file: str
    sha256: str
    images: int
    miou: float
    chance: float
    """mIoU of an answer that knows nothing of the images."""
    classes: list[dict[str, Any]]
    """`class` and `iou`, which is null where a class is neither there nor predicted."""


class ChosenExit(TypedDict):
    """One exit of an instance; the last has neither signal nor threshold."""

    exit_id: str
    signal: str | None
    threshold: float | None
    exit_rate: float | None
    delivered: NotRequired[dict[str, float]]
    """Cost by metric when this exit has answered; anytime only, as `miou`."""
    miou: NotRequired[float]


class SearchFacts(TypedDict):
    """How the answer was found."""

    algorithm: str
    space: dict[str, Any]
    configurations: int
    evaluated: int
    optimal: bool
    gap: float | None
    seconds: float
    pruned: NotRequired[dict[str, int]]
    source: NotRequired[str | None]
    """The earlier search whose front proved the answer."""


class SearchedCache(TypedDict):
    """The predictions that were searched."""

    name: NotRequired[str]
    weights: str
    data: str
    labels: NotRequired[str]
    """What they were counted against: `masks`, or `final` for the final exit's label maps."""


class SearchResult(TypedDict):
    """The content of result.json; what earlier versions did not write is not required."""

    setting: str
    target: str
    constraints: dict[str, Any]
    exits: list[ChosenExit]
    predicted: Figures
    baseline: Figures
    error: float
    search: SearchFacts
    cache: SearchedCache
    explanation: NotRequired[dict[str, Any]]
    checkpoints: NotRequired[list[dict[str, Any]]]
    policy: NotRequired[str | None]
    costs: NotRequired[str]
    profile: NotRequired[str | None]
    certificate: NotRequired[dict[str, Any]]
    """What is promised of new images (docs/guarantees.md), where it was asked for."""
    expected: NotRequired[dict[str, Any]]
    """What to expect on new images, where nothing is promised."""
    intervals: NotRequired[dict[str, Any]]
    """Of the figures on the images that were searched; that these chose it is not corrected."""
    front_sha256: NotRequired[str]
    """Of front.parquet beside it."""
    digest: NotRequired[str]
    """Of all the rest, by which a change is noticed (`mess.common.records`)."""


class Comparison(TypedDict):
    """What is read of comparison.json: which searches were compared, and which is the best."""

    best: str
    policies: list[dict[str, Any]]
    """Each with its `search`, where it found anything."""


class FoundResult(SearchResult):
    """As `mess.workflow.search` gives it: with the search's identifier and folder."""

    id: str
    path: str


def cache_of(result: SearchResult) -> str:
    """Name of the cache that a search ran on."""
    return result["cache"].get("name", CALIBRATION)


def is_of_cache(searched: SearchedCache | InstanceSource, manifest: CacheManifest) -> bool:
    """Whether what a result or a bundle says of its predictions is true of a cache."""
    return (searched["weights"], searched["data"]) == (manifest["weights"], manifest["data"])
