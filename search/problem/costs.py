"""The additive cost model: what every path through the exits costs (MESS paper, Table 1).

Costs are added and compared as whole numbers: MACs, parameters and picoseconds. Sums of integers do
not depend on their order, so two ways to the same cost agree exactly and ties are real ties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mess.errors import ConfigError
from mess.search.problem.tables import Tables

MACS, LATENCY, PARAMS = "macs", "latency", "params"

TICKS = {MACS: 1, LATENCY: 10**9, PARAMS: 1}
"""Whole steps in one unit of a metric; latency is kept in picoseconds, its unit is ms."""

UNITS = {MACS: "MACs", LATENCY: "ms", PARAMS: "parameters"}

# Below `findings.NOTHING`, so that no total reaches what stands for "no limit".
_ROOM = 2**61


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Costs of the parts of a network in one metric (N points, E exits, K signals).

    backbone: shape (N + 1,), cumulative from the input to each point; index 0 is 0.
    exit: shape (E,), the exit alone.
    signal: shape (E, K), computing the signal; 0 for MACs and parameters.
    answer: shape (E,), upsampling and argmax of the answering exit; 0 for MACs and parameters.
    resume: shape (E,), going on past a selected exit, beyond what the backbone in one piece costs:
        another program is called; 0 for MACs and parameters.
    compared: shape (E,), giving the label map that the next exit is compared with, of an exit that
        has no signal itself; 0 for MACs and parameters.
    MACs and parameters are whole numbers, latencies are milliseconds.
    """

    backbone: NDArray[np.float64]
    exit: NDArray[np.float64]
    signal: NDArray[np.float64]
    answer: NDArray[np.float64]
    resume: NDArray[np.float64]
    compared: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """A `Cost` in whole steps; `backbone`, shape (E,), is read at the exits' points."""

    metric: str
    backbone: NDArray[np.int64]
    exit: NDArray[np.int64]
    signal: NDArray[np.int64]
    answer: NDArray[np.int64]
    resume: NDArray[np.int64]
    compared: NDArray[np.int64]

    def paths(self, exits: Sequence[int], signals: Sequence[int | None]) -> list[int]:
        """Cost of the path on which each of `exits` answers, in order of depth.

        `signals` holds one signal for each exit but the last, None for one that is only compared
        with. Parameters do not depend on the
        path: every answer needs the whole instance to be stored.
        """
        paths = self.deliveries(exits, signals)
        return paths[-1:] * len(paths) if self.metric == PARAMS else paths

    def deliveries(self, exits: Sequence[int], signals: Sequence[int | None] = ()) -> list[int]:
        """Cost from the input until each of `exits` has answered, in order of depth."""
        costs, delay = [], 0
        for depth, exit_ in enumerate(exits):
            delay += int(self.exit[exit_])
            if depth < len(signals):
                signal = signals[depth]
                delay += int(self.compared[exit_] if signal is None else self.signal[exit_, signal])
            costs.append(int(self.backbone[exit_]) + delay + int(self.answer[exit_]))
            # After the answer: going on delays the deeper exits alone.
            delay += int(self.resume[exit_])
        return costs

    def to_unit(self, ticks: float) -> float:
        """MACs, parameters or milliseconds."""
        return ticks / TICKS[self.metric]


def to_ticks(tables: Tables, costs: Mapping[str, Cost]) -> dict[str, Ticks]:
    """Check `costs` against the tables and convert them to whole steps.

    MACs and parameters are required, latency is not: a run without a profile has none.
    """
    for metric in costs:
        if metric not in TICKS:
            raise ConfigError(f"unknown cost metric {metric!r}; known: {', '.join(sorted(TICKS))}")
    for metric in (MACS, PARAMS):
        if metric not in costs:
            raise ConfigError(f"the costs lack {metric!r}; got {', '.join(sorted(costs))}")
    return {metric: _ticks(tables, metric, costs[metric]) for metric in TICKS if metric in costs}


def _ticks(tables: Tables, metric: str, cost: Cost) -> Ticks:
    signals = len(tables.signal_names)
    expected = {
        "backbone": (tables.points + 1,),
        "exit": (tables.exits,),
        "signal": (tables.exits, signals),
        "answer": (tables.exits,),
        "resume": (tables.exits,),
        "compared": (tables.exits,),
    }
    whole = {}
    for field in fields(cost):
        value = np.asarray(getattr(cost, field.name), dtype=np.float64)
        _check_part(metric, field.name, value, expected[field.name])
        whole[field.name] = np.rint(value * TICKS[metric]).astype(np.int64)
    backbone = whole.pop("backbone")
    if backbone[0] != 0 or (np.diff(backbone) < 0).any():
        raise ConfigError(
            f"the {metric} of the backbone must start at 0 and never fall, got "
            f"{np.asarray(cost.backbone).tolist()}"
        )
    parts = ("exit", "signal", "resume", "compared")
    # No path is longer than the whole backbone with every exit and signal on it.
    longest = int(backbone[-1] + sum(whole[part].sum() for part in parts))
    if (longest + int(whole["answer"].max())) * tables.images > _ROOM:
        raise ConfigError(
            f"the {metric} of {tables.images} images do not fit 64-bit integers; the longest path "
            f"takes {longest / TICKS[metric]:g} {UNITS[metric]}"
        )
    return Ticks(metric=metric, backbone=backbone[np.asarray(tables.point)], **whole)


def _check_part(metric: str, name: str, value: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ConfigError(f"the {metric} of {name} must have shape {shape}, got {value.shape}")
    wrong = value[~(np.isfinite(value) & (value >= 0))]
    if wrong.size:
        raise ConfigError(f"the {metric} of {name} must be finite and >= 0, got {wrong[0]}")
    if value.size and value.max() * TICKS[metric] > _ROOM:
        raise ConfigError(f"the {metric} of {name} must stay below 2^61 steps, got {value.max():g}")
    if metric == LATENCY:
        return
    if (value != np.rint(value)).any():
        fraction = value[value != np.rint(value)][0]
        raise ConfigError(f"the {metric} of {name} must be whole numbers, got {fraction}")
    if name in ("signal", "answer", "resume", "compared") and value.any():
        raise ConfigError(
            f"the {metric} of {name} must be 0, got {value.max():g}: signals, upsampling and "
            "argmax count in latency alone"
        )
