"""Measuring how long the parts of a network take on this machine.

Variants are interleaved: timing one after another was wrong by 2x on a busy machine. Where memory
does not hold all programs they are measured in groups, each with the network to its last point,
which tells how fast the machine was meanwhile. Loading of images is left out; a latency runs from
the normalised input tensor to the label map.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mess.common.progress import Reporter
from mess.export.programs import write_program
from mess.networks.network import OverprovisionedNetwork
from mess.profiling.parts import Part, parts_of
from mess.runtime.registry import Runtime, find_runtime
from mess.signals.signal import Signal

_WARM_UP = 3

GROUP_BYTES = 2**30
"""About what the programs of a group may take; a single one may take more."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One measured part; a row of latency/NAME.parquet.

    `kind` and `name`: "segment" with "0-2" (input to point 2) or "2-6" (point 2 to the end), "exit"
    with an exit id, "signal" with "NAME@hxw", "answer" (upsampling and argmax) and "labels" (the
    label map that the next exit is compared with) with "hxw".
    """

    kind: str
    name: str
    median_ms: float
    p90_ms: float
    min_ms: float
    rounds: int


def profile(
    network: OverprovisionedNetwork,
    size: tuple[int, int],
    signals: Sequence[Signal],
    *,
    runtime: str,
    threads: int,
    rounds: int,
    reporter: Reporter,
) -> list[Timing]:
    """Measure every segment, exit, signal and the answer in `runtime` with `threads` threads.

    `runtime` is one of `mess.runtime.registry.RUNTIMES`. Parts of equal architecture and shape are
    one measurement. Each round runs every part of a group once, and a group takes about
    `GROUP_BYTES`.
    """
    chosen = find_runtime(runtime)
    parts, reference = parts_of(network, size, signals), len(network.points) - 1
    groups = grouped([part.bytes for part in parts], reference, GROUP_BYTES)
    measured = []
    for number, group in enumerate(groups, start=1):
        which = "" if len(groups) == 1 else f", group {number} of {len(groups)}"
        with reporter.task(f"exporting parts{which}", len(group)) as task:
            runs = _loaded([parts[index] for index in group], chosen, threads, task.advance)
        with reporter.task(f"measuring{which}", rounds) as task:
            measured.append(interleaved(runs, rounds, task.advance))
        del runs
        # The exporter leaves cycles behind, which hold weights.
        gc.collect()
    seconds = comparable(groups, measured, reference)
    return [
        _timing(kind, name, seconds[index])
        for index, part in enumerate(parts)
        for kind, name in part.names
    ]


def grouped(sizes: Sequence[int], reference: int, limit: int) -> list[list[int]]:
    """Positions of what is measured together, in order; `reference` is in every group.

    With it a group takes no more than `limit`, but for one that has a single other member.
    """
    groups: list[list[int]] = []
    taken = limit + 1
    for index, size in enumerate(sizes):
        if index == reference:
            continue
        if taken + size > limit:
            groups.append([reference])
            taken = sizes[reference]
        groups[-1].append(index)
        taken += size
    return [sorted(group) for group in groups or [[reference]]]


def comparable(
    groups: Sequence[Sequence[int]], measured: Sequence[np.ndarray], reference: int
) -> dict[int, np.ndarray]:
    """Seconds by position, (rounds,), as if the machine had been as fast for every group.

    measured: of each group, (rounds, members). How fast it was, the median of `reference` tells.
    """
    paces = [
        float(np.median(seconds[:, group.index(reference)]))
        for group, seconds in zip(groups, measured, strict=True)
    ]
    usual, columns = float(np.median(paces)), {}
    for group, seconds, pace in zip(groups, measured, paces, strict=True):
        for column, index in enumerate(group):
            columns.setdefault(index, seconds[:, column] * (usual / pace))
    return columns


def _loaded(
    parts: Iterable[Part], runtime: Runtime, threads: int, after_each: Callable[[], None]
) -> list[Callable[[], Any]]:
    """What runs each part, from programs whose files are gone again."""
    program, runs = runtime.load(), []
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"part{runtime.suffix}"
            write_program(part.module, part.inputs, part.outputs, path, runtime.format)
            loaded = program(path.read_bytes(), threads)
        # Copies, since parts share them: each reads memory of its own, as in an instance.
        values = [program.to_value(value.numpy().copy()) for value in part.inputs.values()]
        # Bound as defaults: a plain closure would run the last part every time.
        runs.append(lambda loaded=loaded, values=values: loaded(*values))
        after_each()
    return runs


def interleaved(
    runs: Sequence[Callable[[], Any]], rounds: int, after_round: Callable[[], None]
) -> np.ndarray:
    """Seconds of every run in every round, (rounds, runs), after a few rounds of warm-up."""
    for _ in range(_WARM_UP):
        for run in runs:
            run()
    seconds = np.empty((rounds, len(runs)))
    for row in range(rounds):
        for column, run in enumerate(runs):
            # The run before may have been another part, whose data fills the processor's caches;
            # an instance runs its parts once each too.
            start = time.perf_counter()
            run()
            seconds[row, column] = time.perf_counter() - start
        after_round()
    return seconds


def _timing(kind: str, name: str, seconds: np.ndarray) -> Timing:
    milliseconds = 1000 * seconds
    return Timing(
        kind=kind,
        name=name,
        # Not the mean, which carries every pause of the machine.
        median_ms=float(np.median(milliseconds)),
        p90_ms=float(np.quantile(milliseconds, 0.9)),
        min_ms=float(milliseconds.min()),
        rounds=len(milliseconds),
    )
