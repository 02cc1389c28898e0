"""The signals that decide whether an image leaves at an exit (MESS paper §5.2, 2025 paper §III-IV).

A signal is one class: its settings, its name, and how it follows from the maps of an exit's logits.
It is memoised, searched, measured and exported from that. Built-in ones are in `SIGNALS` and
`PAIR_SIGNALS`; `memoise.signals` takes `package.module:Class` besides. No torch: the maps are
`mess.signals.maps.PixelMaps`, and a signal calls their methods alone.

Signals are oriented so that larger means leave.
"""

from __future__ import annotations

import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from mess.common.plugins import imported
from mess.config import MemoiseConfig
from mess.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from mess.signals.maps import PixelMaps

NATIVE, FULL = "native", "full"
"""Whether a signal sees the logits as they are, or upsampled to the size of the input."""


@dataclass(frozen=True)
class Signal(ABC):
    """One number for an image, from the logits of one exit.

    A subclass sets `kind`, its name in `memoise.signals`, and defines `of`.
    """

    kind: ClassVar[str]

    compares: ClassVar[bool] = False
    """Whether it needs the label map of the selected exit before as well."""

    resolution: str = field(default=NATIVE, kw_only=True)

    @abstractmethod
    def of(self, maps: PixelMaps) -> Tensor:
        """The signal of each image, shape (B,)."""

    @property
    def is_own(self) -> bool:
        """Whether it is a user's, imported from where its kind says."""
        return ":" in self.kind

    @property
    def name(self) -> str:
        """Unique among all settings of all signals."""
        return self._at_resolution(self.kind)

    @property
    def policies(self) -> tuple[str, ...]:
        """What `--policy` calls the groups of signals it belongs to, the widest first."""
        return (self.kind, f"{self.kind}-{self.resolution}")

    @classmethod
    def configured(cls, config: MemoiseConfig) -> list[Signal]:
        """One for each combination of the settings that a configuration asks for."""
        return [cls(resolution=resolution) for resolution in config.resolutions]

    def to_json(self) -> dict[str, Any]:
        """As the manifests of caches and bundles hold it."""
        return {"name": self.name, "kind": self.kind, **asdict(self)}

    def _at_resolution(self, name: str) -> str:
        return name if self.resolution == NATIVE else f"{name}-{self.resolution}"


@dataclass(frozen=True)
class ConfidentShare(Signal):
    """Share of the pixels that are confident (MESS paper, Eq. 7), in [0, 1].

    `confidence` of a pixel is "top1" (the largest probability) or "entropy" (1 - normalised
    entropy); `pixel_threshold` is the th_pix it must reach; `edge_enhanced` says whether pixels at
    semantic edges take the median confidence around them (Eqs. 8-9).
    """

    kind: ClassVar[str] = "share"

    confidence: str
    pixel_threshold: float
    edge_enhanced: bool

    def of(self, maps: PixelMaps) -> Tensor:
        confident_Bhw = maps.reaches(self.confidence, self.pixel_threshold)
        if self.edge_enhanced:
            confident_Bhw = maps.enhanced(confident_Bhw)
        return maps.mean(confident_Bhw)

    @property
    def name(self) -> str:
        """Such as `share-top1-0.9-edges`."""
        threshold = f"{self.pixel_threshold:g}"
        if float(threshold) != self.pixel_threshold:
            threshold = repr(self.pixel_threshold)
        edges = "-edges" if self.edge_enhanced else ""
        return self._at_resolution(f"share-{self.confidence}-{threshold}{edges}")

    @property
    def policies(self) -> tuple[str, ...]:
        """Such as `share`, `share-native`, `share-top1`, `share-top1-edges`."""
        own = f"share-{self.confidence}"
        edges = "edges" if self.edge_enhanced else "plain"
        return ("share", f"share-{self.resolution}", own, f"{own}-{edges}")

    @classmethod
    def configured(cls, config: MemoiseConfig) -> list[Signal]:
        return [
            cls(confidence, threshold, edges, resolution=resolution)
            for resolution, confidence, edges, threshold in itertools.product(
                config.resolutions, config.confidences, config.edges, config.pixel_thresholds
            )
        ]


@dataclass(frozen=True)
class MeanConfidence(Signal):
    """Mean over the pixels of the largest probability, in [1/C, 1] (MESS paper, Fig. 4)."""

    kind: ClassVar[str] = "mean-top1"

    def of(self, maps: PixelMaps) -> Tensor:
        return maps.mean(maps.confidence("top1"))


@dataclass(frozen=True)
class NormalisedEntropy(Signal):
    """1 - NE: NE is the mean over the pixels of entropy / log(C), in [0, 1] (2025 paper, Eq. 1)."""

    kind: ClassVar[str] = "ne"

    def of(self, maps: PixelMaps) -> Tensor:
        return maps.mean(maps.confidence("entropy"))


@dataclass(frozen=True)
class VariationOfInformation(Signal):
    """- VI between the label maps of the selected exit before and this one (2025 paper, Eq. 2).

    In bits, 0 where the maps divide the image alike.
    """

    kind: ClassVar[str] = "vi"
    compares: ClassVar[bool] = True

    def of(self, maps: PixelMaps) -> Tensor:
        return -maps.variation_of_information()


SIGNALS: dict[str, type[Signal]] = {
    signal.kind: signal for signal in (ConfidentShare, MeanConfidence, NormalisedEntropy)
}
"""What `memoise.signals` names; a new signal is one class and its name here."""

PAIR_SIGNALS: dict[str, Signal] = {signal.name: signal for signal in (VariationOfInformation(),)}
"""Signals that compare two exits, by name; from stored label maps: `mess.signals.variation`."""


def configured_signals(config: MemoiseConfig) -> list[Signal]:
    """The signals of an exit that a configuration asks for, in the order of the cache's columns."""
    found = [signal for kind in config.signals for signal in _class(kind).configured(config)]
    for name in (names := [signal.name for signal in found]):
        if names.count(name) > 1:
            raise ConfigError(
                f"memoise.signals gives two signals the name {name!r}; names must be unique."
            )
    return found


def signal_from_json(value: Mapping[str, Any]) -> Signal:
    """The inverse of `Signal.to_json`."""
    settings = {key: setting for key, setting in value.items() if key not in ("name", "kind")}
    if value["kind"] in PAIR_SIGNALS:
        return PAIR_SIGNALS[value["kind"]]
    return _class(value["kind"])(**settings)


def policies(signals: Iterable[Signal]) -> dict[str, tuple[str, ...]]:
    """Names of the signals that make up each policy, by the policy's name."""
    members: dict[str, list[str]] = {}
    for signal in signals:
        for policy in signal.policies:
            members.setdefault(policy, []).append(signal.name)
    return {policy: tuple(names) for policy, names in members.items()}


def distinct(members: Mapping[str, Sequence[str]]) -> list[str]:
    """The policies without those that have the same signals as one before."""
    first: dict[tuple[str, ...], str] = {}
    for policy, names in members.items():
        first.setdefault(tuple(names), policy)
    return list(first.values())


def _class(kind: str) -> type[Signal]:
    if kind in SIGNALS:
        return SIGNALS[kind]
    if kind in PAIR_SIGNALS:
        raise ConfigError(
            f"memoise.signals: {kind!r} compares two exits and needs no memoising, only "
            f"memoise.label_maps = true. Leave it out; `mess search --policy {kind}` computes it."
        )
    found = imported(kind, "signal", "package.module:Class", SIGNALS)
    if not (
        isinstance(found, type)
        and issubclass(found, Signal)
        and getattr(found, "kind", None) == kind
    ):
        raise ConfigError(
            f"memoise.signals: {kind!r} must be a subclass of mess.signals.Signal whose `kind` is "
            "that very text, so that manifests tell where it comes from."
        )
    if inspect.isabstract(found):
        raise ConfigError(
            f"memoise.signals: {kind!r} does not define `of(self, maps)`, which gives the signal "
            "of each image, shape (B,)."
        )
    if found.compares:
        raise ConfigError(
            f"memoise.signals: {kind!r} compares two exits, and signals are memoised of one. "
            f"Those that compare are built in: {', '.join(PAIR_SIGNALS)}."
        )
    return found
