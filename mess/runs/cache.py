"""A cache of a run, opened: what it holds, and the tables that a search reads. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mess.cache.predictions.store import CacheManifest, PredictionStore, Snapshot
from mess.config import MemoiseConfig
from mess.search.problem.tables import Tables
from mess.signals.registry import expected_signals


class RunCache(Snapshot):
    """A cache of a run that is complete and was made for its weights, exits and signals.

    `expected` are the items its manifest has to have beside the signals of `memoise`, `points`
    gives the point of every exit. Nothing that a configuration names is imported to read one.
    """

    def __init__(
        self,
        directory: Path,
        expected: Mapping[str, Any],
        memoise: MemoiseConfig,
        points: Mapping[str, int],
    ) -> None:
        super().__init__(PredictionStore(directory), expected)
        self.points = points
        self._memoise = memoise

    @property
    def name(self) -> str:
        return self.store.directory.name

    @cached_property
    def manifest(self) -> CacheManifest:
        found = self.store.manifest()
        signals = expected_signals(self._memoise, found["signals"])
        return self.store.checked_manifest({**(self._expected or {}), "signals": signals}, found)

    @cached_property
    def tables(self) -> Tables:
        """All counts, and the signals of the exits themselves."""
        found = self.predictions
        return Tables(
            exit_ids=found.exit_ids,
            point=np.array([self.points[exit_id] for exit_id in found.exit_ids]),
            label=found.label,
            intersection=found.intersection,
            predicted=found.predicted,
            signals=found.signals,
            signal_names=tuple(signal["name"] for signal in self.manifest["signals"]),
            lost=found.lost,
        )
