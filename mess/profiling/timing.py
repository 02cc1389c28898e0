"""Measuring how long the parts of a network take on this machine.

Variants are interleaved: timing one after another was wrong by 2x on a busy machine. Loading of
images is left out; a latency runs from the normalised input tensor to the label map.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mess.common.progress import Reporter
from mess.exits import FINAL
from mess.export.segments import (
    SUFFIX,
    Format,
    LabelMap,
    Labels,
    Segment,
    native_shape,
    point_shapes,
    write_program,
)
from mess.networks.network import OverprovisionedNetwork
from mess.runtime.bundle import OnnxProgram, Program
from mess.runtime.torch_program import TorchProgram
from mess.signals.maps import SignalModule
from mess.signals.registry import Signal

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


@dataclass(frozen=True)
class _Part:
    names: list[tuple[str, str]]
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]


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

    `runtime` is "onnxruntime" or "torch". Parts of equal architecture and shape are one
    measurement. Each round runs every part once.
    """
    format_: Format = "onnx" if runtime == "onnxruntime" else "torch"
    program = _program(runtime)
    parts = _parts(network, size, signals)
    with tempfile.TemporaryDirectory() as folder:
        runs: list[Callable[[], Any]] = []
        with reporter.task("exporting parts", len(parts)) as task:
            for index, part in enumerate(parts):
                path = Path(folder) / f"{index}{SUFFIX[format_]}"
                write_program(part.module, part.inputs, part.outputs, path, format_)
                loaded = program(path, threads)
                values = [program.to_value(value.numpy()) for value in part.inputs.values()]
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


def machine_facts(runtime: str, threads: int) -> dict[str, Any]:
    """What a latency depends on, for the record."""
    import onnxruntime

    return {
        "runtime": runtime,
        "threads": threads,
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _parts(
    network: OverprovisionedNetwork, size: tuple[int, int], signals: Sequence[Signal]
) -> list[_Part]:
    shapes = point_shapes(network, size)
    last = len(shapes) - 1
    spans = [(0, point) for point in range(1, last + 1)] + [(p, last) for p in range(1, last)]
    parts = []
    for start, end in spans:
        segment = Segment(network.segment(start, end), continues=True)
        names = [("segment", f"{start}-{end}")]
        parts.append(_Part(names, segment, _features(shapes[start]), segment.outputs))
    exits: dict[tuple[Any, ...], _Part] = {}
    natives: dict[tuple[int, ...], None] = {}
    for exit_id in [*network.exits, FINAL]:
        shape = shapes[network.point(exit_id)]
        module = network.exit_module(exit_id)
        natives[native_shape(module, shape)] = None
        architecture = exit_id.partition("-")[2] or exit_id
        segment = Segment(nn.Identity(), module, continues=False)
        part = _Part([], segment, _features(shape), segment.outputs)
        exits.setdefault((architecture, shape), part).names.append(("exit", exit_id))
    return [*parts, *exits.values(), *(p for n in natives for p in _on_logits(n, size, signals))]


def _on_logits(
    native: tuple[int, ...], size: tuple[int, int], signals: Sequence[Signal]
) -> Iterator[_Part]:
    """What is computed from the logits of an exit, of shape `native`."""
    where = f"{native[2]}x{native[3]}"
    logits = _features(native, "logits")
    for signal in signals:
        inputs = dict(logits)
        if signal.compares:
            # As large as this exit's own: exits differ little in size, and signals less in time.
            inputs["previous_labels"] = _class_map(native)
        names = [("signal", f"{signal.name}@{where}")]
        yield _Part(names, SignalModule(signal, size), inputs, ["signal"])
    yield _Part([("labels", where)], Labels(), logits, ["labels"])
    yield _Part([("answer", where)], LabelMap(size), logits, ["label_map"])


def _features(shape: tuple[int, ...], name: str = "features") -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def _class_map(native: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, *native[2:])
    return torch.randint(0, native[1], shape, generator=generator, dtype=torch.uint8)


def _program(runtime: str) -> type[Program]:
    return OnnxProgram if runtime == "onnxruntime" else TorchProgram


def _timing(kind: str, name: str, seconds: np.ndarray) -> Timing:
    milliseconds = 1000 * seconds
    return Timing(
        kind=kind,
        name=name,
        median_ms=float(np.median(milliseconds)),
        p90_ms=float(np.quantile(milliseconds, 0.9)),
        min_ms=float(milliseconds.min()),
        rounds=len(milliseconds),
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
