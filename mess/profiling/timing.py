"""Measuring how long the parts of a network take on this machine.

Variants are interleaved: timing one after another was wrong by 2x on a busy machine. Loading of
images is left out; a latency runs from the normalised input tensor to the label map.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mess.common.progress import Reporter
from mess.export.programs import write_program
from mess.networks.network import OverprovisionedNetwork
from mess.profiling.parts import parts_of
from mess.runtime.registry import find_runtime
from mess.signals.signal import Signal

_WARM_UP = 3


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
    one measurement. Each round runs every part once.
    """
    chosen = find_runtime(runtime)
    program = chosen.load()
    parts = parts_of(network, size, signals)
    with tempfile.TemporaryDirectory() as folder:
        runs: list[Callable[[], Any]] = []
        with reporter.task("exporting parts", len(parts)) as task:
            for index, part in enumerate(parts):
                path = Path(folder) / f"{index}{chosen.suffix}"
                write_program(part.module, part.inputs, part.outputs, path, chosen.format)
                loaded = program(path, threads)
                values = [program.to_value(value.numpy()) for value in part.inputs.values()]
                # Bound as defaults: a plain closure would run the last part every time.
                runs.append(lambda loaded=loaded, values=values: loaded(*values))
                task.advance()
        with reporter.task("measuring", rounds) as task:
            seconds = interleaved(runs, rounds, task.advance)
    return [
        _timing(kind, name, seconds[:, column])
        for column, part in enumerate(parts)
        for kind, name in part.names
    ]


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
