"""What of a run its caches and searches hang on. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mess.cache.parquet import read_rows
from mess.cache.schema import EXITS
from mess.common.files import sha256
from mess.config import Config
from mess.runs.fingerprints import pipeline_fingerprint
from mess.runs.run import Run
from mess.signals.registry import configured_signals

CALIBRATION = "calibration"


def cache_of(result: Mapping[str, Any]) -> str:
    """Name of the cache that a search ran on."""
    return result["cache"].get("name", CALIBRATION)


def is_of_cache(result: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether a search ran on the weights and data of a cache."""
    return all(result["cache"][name] == manifest[name] for name in ("weights", "data"))


def expected_identity(
    run: Run, config: Config, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The part of a cache's identity that can be known without the data."""
    return {
        "weights": sha256(run.require_weights()),
        "pipeline": pipeline_fingerprint(config),
        "exits": [row["exit_id"] for row in rows],
        "signals": [signal.to_json() for signal in configured_signals(config.memoise)],
    }


def exit_rows(run: Run) -> list[dict[str, Any]]:
    """The trained exits of a run, `final` included, from shallow to deep."""
    run.require_weights()
    return [row for row in read_rows(run.exits, EXITS) if row["status"] == "trained"]


def excluded_exits(run: Run) -> dict[str, Any]:
    """What no search of the run can find: candidates that were not trained, and the limits."""
    limits = run.config().exits
    return {
        "exits": sum(row["status"] != "trained" for row in read_rows(run.exits, EXITS)),
        "max_exit_cost": limits.max_exit_cost,
        "max_exit_share": limits.max_exit_share,
    }
