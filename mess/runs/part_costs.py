"""Costs of every part of a run's network, counted and measured. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mess.errors import CacheError, nearest
from mess.runs.cache import RunCache
from mess.runs.profiles import read_profile
from mess.runs.run import Run
from mess.runtime.registry import DEFAULT_RUNTIME
from mess.search.problem.costs import Cost
from mess.search.problem.tables import Tables


def profile_name(runtime: str, threads: int) -> str:
    """What a profile is called where nobody says."""
    return f"{runtime}-{threads}thread"


DEFAULT_PROFILE = profile_name(DEFAULT_RUNTIME.name, 1)


def load_costs(
    run: Run,
    cache: RunCache,
    tables: Tables,
    profile: str | None,
    *,
    measured: bool = True,
) -> dict[str, Cost]:
    """Costs of every part in MACs, parameters and, where a profile was measured, milliseconds.

    `tables` are those of the `cache`, with the signals of a policy. `profile` names a file below
    RUN/latency; None takes the default and leaves latency out where there is none, as without
    `measured`. Raises CacheError for a profile of other weights or signals.
    """
    rows = {row["exit_id"]: row for row in run.exit_rows}
    costs = {
        "macs": _counted(rows, tables, "exit_macs", "backbone_macs"),
        "params": _counted(rows, tables, "params", "backbone_params"),
    }
    if not measured:
        return costs
    known = run.profiles()
    name = profile or DEFAULT_PROFILE
    if name in known:
        costs["latency"] = _measured(run, name, cache, tables)
    elif profile is not None:
        raise CacheError(
            f"{run.path} has no latency profile {name!r}; {nearest(name, known)} "
            f"Measure one with {run.command('profile')}."
        )
    return costs


def _counted(
    rows: Mapping[str, Mapping[str, Any]], tables: Tables, own: str, cumulative: str
) -> Cost:
    backbone = np.zeros(tables.points + 1)
    for row in rows.values():
        backbone[row["point"]] = row[cumulative]
    return Cost(
        # A point whose exits were all excluded has no row, and takes over what is before it.
        backbone=np.maximum.accumulate(backbone),
        exit=np.array([rows[exit_id][own] for exit_id in tables.exit_ids], float),
        # MACs and parameters are those of the network's layers; latency alone sees the rest.
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


def _measured(run: Run, name: str, cache: RunCache, tables: Tables) -> Cost:
    path, command = run.latency(name), run.command("profile")
    rows, facts = read_profile(path)
    if facts.get("weights") != run.weights_sha256:
        raise CacheError(f"{path} was measured for other weights. Run {command} again.")
    medians = {(row["kind"], row["name"]): row["median_ms"] for row in rows}
    times = _Times(path, medians, command)
    last = tables.points
    prefix = [0.0] + [times["segment", f"0-{point}"] for point in range(1, last + 1)]
    # Stopping at a point and going on costs more than running through: another program is called
    # and the features change their layout.
    resume = np.zeros(last + 1)
    for point in range(1, last):
        parts = prefix[point] + times["segment", f"{point}-{last}"]
        # A difference of medians, which noise can bring below 0; going on earns nothing.
        resume[point] = max(0.0, parts - prefix[last])
    compares = tables.pairs is not None
    shapes = cache.manifest["native_shapes"]
    where = ["x".join(map(str, shapes[exit_id])) for exit_id in tables.exit_ids]
    return Cost(
        # Two medians of nearly equal segments may come out in the wrong order.
        backbone=np.maximum.accumulate(np.array(prefix)),
        exit=np.array([times["exit", exit_id] for exit_id in tables.exit_ids]),
        signal=np.array(
            [[times["signal", f"{signal}@{at}"] for signal in tables.signal_names] for at in where]
        ),
        answer=np.array([times["answer", at] for at in where]),
        resume=resume[tables.point],
        compared=np.array([times["labels", at] if compares else 0.0 for at in where]),
    )
