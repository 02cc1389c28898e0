"""Measuring the parts of a run's network on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from mess.common.progress import Reporter
from mess.errors import MessError
from mess.profiling.machine import machine_facts
from mess.profiling.timing import profile
from mess.runs.network import trained_network
from mess.runs.part_costs import profile_name
from mess.runs.profiles import write_profile
from mess.runs.run import Run
from mess.runtime.program import require_threads
from mess.runtime.registry import DEFAULT_RUNTIME
from mess.signals.registry import PAIR_SIGNALS, configured_signals

MOST_ROUNDS = 10_000
"""Hours for most networks, and medians of a hundred tell as much."""

_UNSTEADY = 2.0
"""A machine without other work stays below 1.3."""


def measure_run(
    place: Run,
    runtime: str = DEFAULT_RUNTIME.name,
    threads: int = 1,
    rounds: int = 30,
    name: str | None = None,
    *,
    reporter: Reporter,
) -> Path:
    """Measure and write RUN/latency/NAME.parquet; its facts say what it was measured for.

    Raises MessError, before anything is measured, for a name, threads or rounds that cannot be.
    """
    config = place.config
    # All that is refused is refused before minutes of measuring.
    require_threads(threads)
    path = place.latency(name or profile_name(runtime, threads))
    if not 1 <= rounds <= MOST_ROUNDS:
        raise MessError(f"--rounds is from 1 to {MOST_ROUNDS:,}, got {rounds}.")
    signals = [*configured_signals(config.memoise), *PAIR_SIGNALS.values()]
    timings = profile(
        trained_network(place, torch.device("cpu")),
        config.data.size,
        signals,
        runtime=runtime,
        threads=threads,
        rounds=rounds,
        reporter=reporter,
    )
    facts = machine_facts(runtime, threads) | {
        "weights": place.weights_sha256,
        "signals": [signal.name for signal in signals],
        "size": list(config.data.size),
    }
    write_profile(path, map(vars, timings), facts)
    reporter.message(f"Measured {len(timings)} parts, written to {path}.")
    parts = [timing for timing in timings if timing.kind in ("segment", "exit")]
    unsteady = [timing for timing in parts if timing.p90_ms > _UNSTEADY * timing.median_ms]
    if unsteady:
        worst = max(unsteady, key=lambda timing: timing.p90_ms / timing.median_ms)
        reporter.message(
            f"{len(unsteady)} of {len(parts)} segments and exits took {_UNSTEADY:g} times their "
            f"median or longer in a tenth of the rounds ({worst.kind} {worst.name}: "
            f"{worst.median_ms:.2f} ms, {worst.p90_ms:.2f} ms): the machine was busy. Where other "
            f"work has ended, {place.command('profile')} gives latencies to rely on."
        )
    return path
