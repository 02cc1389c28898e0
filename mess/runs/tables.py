"""What a search reads, put together from a run directory: tables and costs. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from mess.cache.predictions.store import PredictionStore
from mess.runs.identity import CALIBRATION, exit_rows, expected_identity
from mess.runs.run import Run
from mess.search.problem.tables import Tables


def load_tables(run: Run, cache: str = CALIBRATION) -> tuple[Tables, dict[str, Any]]:
    """The tables of a cache by name, and its manifest.

    Raises CacheError when the cache was made for other weights, exits or signals.
    """
    rows = exit_rows(run)
    store = PredictionStore(run.cache(cache))
    expected = expected_identity(run, run.config(), rows)
    predictions, manifest = store.read(expected)
    point = {row["exit_id"]: row["point"] for row in rows}
    tables = Tables(
        exit_ids=predictions.exit_ids,
        point=np.array([point[exit_id] for exit_id in predictions.exit_ids]),
        label=predictions.label,
        intersection=predictions.intersection,
        predicted=predictions.predicted,
        signals=predictions.signals,
        signal_names=tuple(signal["name"] for signal in manifest["signals"]),
    )
    return tables, manifest
