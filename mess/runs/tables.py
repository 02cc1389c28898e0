"""What a search reads, put together from a run directory: tables and costs. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mess.cache.parquet import read_facts, read_rows
from mess.cache.predictions.store import PredictionStore
from mess.cache.schema import EXITS, LATENCY
from mess.common.files import sha256
from mess.config import Config
from mess.errors import CacheError, nearest
from mess.runs.fingerprints import pipeline_fingerprint
from mess.runs.run import Run
from mess.search.problem.costs import Cost
from mess.search.problem.tables import Tables
from mess.signals.registry import configured_signals

CALIBRATION = "calibration"
DEFAULT_PROFILE = "onnxruntime-1thread"


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


def load_costs(
    run: Run,
    tables: Tables,
    manifest: Mapping[str, Any],
    profile: str | None,
    *,
    measured: bool = True,
) -> dict[str, Cost]:
    """Costs of every part in MACs, parameters and, where a profile was measured, milliseconds.

    `profile` names a file below RUN/latency; None takes the default and leaves latency out where
    there is none, as without `measured`. Raises CacheError for a profile of other weights or
    signals.
    """
    rows = {row["exit_id"]: row for row in exit_rows(run)}
    costs = {
        "macs": _counted(rows, tables, "exit_macs", "backbone_macs"),
        "params": _counted(rows, tables, "params", "backbone_params"),
    }
    if not measured:
        return costs
    known = sorted(file.stem for file in (run.path / "latency").glob("*.parquet"))
    name = profile or DEFAULT_PROFILE
    if name in known:
        costs["latency"] = _measured(run, name, tables, manifest)
    elif profile is not None:
        raise CacheError(
            f"{run.path} has no latency profile {name!r}; {nearest(name, known)} "
            f"Measure one with {run.command('profile')}."
        )
    return costs


def excluded_exits(run: Run) -> dict[str, Any]:
    """What no search of the run can find: candidates that were not trained, and the limits."""
    limits = run.config().exits
    return {
        "exits": sum(row["status"] != "trained" for row in read_rows(run.exits, EXITS)),
        "max_exit_cost": limits.max_exit_cost,
        "max_exit_share": limits.max_exit_share,
    }


def _counted(
    rows: Mapping[str, Mapping[str, Any]], tables: Tables, own: str, cumulative: str
) -> Cost:
    backbone = np.zeros(tables.points + 1)
    for row in rows.values():
        backbone[row["point"]] = row[cumulative]
    return Cost(
        backbone=np.maximum.accumulate(backbone),
        exit=np.array([rows[exit_id][own] for exit_id in tables.exit_ids], float),
        signal=np.zeros((tables.exits, len(tables.signal_names))),
        answer=np.zeros(tables.exits),
        resume=np.zeros(tables.exits),
        compared=np.zeros(tables.exits),
    )


class _Times(dict[tuple[str, str], float]):
    """Medians by kind and name; a missing part is an error that names the profile."""

    def __init__(self, path: Path, medians: Mapping[tuple[str, str], float], command: str) -> None:
        super().__init__(medians)
        self._path, self._command = path, command

    def __missing__(self, part: tuple[str, str]) -> float:
        raise CacheError(f"{self._path} lacks {' '.join(part)}. Run {self._command} again.")


def _measured(run: Run, name: str, tables: Tables, manifest: Mapping[str, Any]) -> Cost:
    path, command = run.latency(name), run.command("profile")
    facts = read_facts(path)
    if facts["weights"] != manifest["weights"]:
        raise CacheError(f"{path} was measured for other weights. Run {command} again.")
    medians = {(row["kind"], row["name"]): row["median_ms"] for row in read_rows(path, LATENCY)}
    times = _Times(path, medians, command)
    last = tables.points
    prefix = [0.0] + [times["segment", f"0-{point}"] for point in range(1, last + 1)]
    # Stopping at a point and going on costs more than running through: another program is called
    # and the features change their layout.
    resume = np.zeros(last + 1)
    for point in range(1, last):
        parts = prefix[point] + times["segment", f"{point}-{last}"]
        resume[point] = max(0.0, parts - prefix[last])
    compares = tables.pairs is not None
    where = ["x".join(map(str, manifest["native_shapes"][exit_id])) for exit_id in tables.exit_ids]
    return Cost(
        backbone=np.maximum.accumulate(np.array(prefix)),
        exit=np.array([times["exit", exit_id] for exit_id in tables.exit_ids]),
        signal=np.array(
            [[times["signal", f"{signal}@{at}"] for signal in tables.signal_names] for at in where]
        ),
        answer=np.array([times["answer", at] for at in where]),
        resume=resume[tables.point],
        compared=np.array([times["labels", at] if compares else 0.0 for at in where]),
    )
