"""Names and meanings of the confidence signals; their computation is in `mess.signals`."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from mess.config import MemoiseConfig


@dataclass(frozen=True)
class SignalSpec:
    """An image confidence in the sense of Eq. 7 of the MESS paper.

    `kind` is the pixel confidence ("top1" or "entropy", the latter 1 - normalised entropy),
    `pixel_threshold` the th_pix it must reach to count, `edge_enhanced` whether Eqs. 8-9 apply.
    """

    kind: str
    pixel_threshold: float
    edge_enhanced: bool

    @property
    def name(self) -> str:
        """Unique name, such as `share-top1-0.9-edges`."""
        edges = "-edges" if self.edge_enhanced else ""
        threshold = f"{self.pixel_threshold:g}"
        if float(threshold) != self.pixel_threshold:
            threshold = repr(self.pixel_threshold)
        return f"share-{self.kind}-{threshold}{edges}"

    def to_json(self) -> dict[str, Any]:
        """As the manifests of caches and bundles hold it."""
        return {"name": self.name, **asdict(self)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> SignalSpec:
        """The inverse of `to_json`."""
        return SignalSpec(value["kind"], value["pixel_threshold"], value["edge_enhanced"])


def configured_signals(config: MemoiseConfig) -> list[SignalSpec]:
    """The signals a configuration asks for, in the order of the cache's columns."""
    return [
        SignalSpec(kind, threshold, edges)
        for kind, edges, threshold in itertools.product(
            config.confidences, config.edges, config.pixel_thresholds
        )
    ]
