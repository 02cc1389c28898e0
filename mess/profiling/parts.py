"""The parts of a network whose latency is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mess.exits import FINAL
from mess.export.segments import LabelMap, Labels, Segment, native_shape, point_shapes
from mess.networks.network import OverprovisionedNetwork
from mess.signals.measure import SignalModule
from mess.signals.signal import Signal


@dataclass(frozen=True)
class Part:
    names: list[tuple[str, str]]
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]


def parts_of(
    network: OverprovisionedNetwork, size: tuple[int, int], signals: Sequence[Signal]
) -> list[Part]:
    shapes = point_shapes(network, size)
    last = len(shapes) - 1
    # What costs are put together from: ways from the input, and what going on costs more than
    # running through. Other spans are differences of the first.
    spans = [(0, point) for point in range(1, last + 1)] + [(p, last) for p in range(1, last)]
    parts = []
    for start, end in spans:
        segment = Segment(network.segment(start, end), continues=True)
        names = [("segment", f"{start}-{end}")]
        parts.append(Part(names, segment, _features(shapes[start]), segment.outputs))
    exits: dict[tuple[Any, ...], Part] = {}
    natives: dict[tuple[int, ...], None] = {}
    for exit_id in [*network.exits, FINAL]:
        shape = shapes[network.point(exit_id)]
        module = network.exit_module(exit_id)
        natives[native_shape(module, shape)] = None
        # Without the point; `final` has none in its name.
        architecture = exit_id.partition("-")[2] or exit_id
        segment = Segment(nn.Identity(), module, continues=False)
        part = Part([], segment, _features(shape), segment.outputs)
        exits.setdefault((architecture, shape), part).names.append(("exit", exit_id))
    return [*parts, *exits.values(), *(p for n in natives for p in _on_logits(n, size, signals))]


def _on_logits(
    native: tuple[int, ...], size: tuple[int, int], signals: Sequence[Signal]
) -> Iterator[Part]:
    """What is computed from the logits of an exit, of shape `native`."""
    where = f"{native[2]}x{native[3]}"
    logits = _features(native, "logits")
    for signal in signals:
        inputs = dict(logits)
        if signal.compares:
            # As large as this exit's own: exits differ little in size, and signals less in time.
            inputs["previous_labels"] = _class_map(native)
        names = [("signal", f"{signal.name}@{where}")]
        yield Part(names, SignalModule(signal, size), inputs, ["signal"])
    yield Part([("labels", where)], Labels(), logits, ["labels"])
    yield Part([("answer", where)], LabelMap(size), logits, ["label_map"])


def _features(shape: tuple[int, ...], name: str = "features") -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def _class_map(native: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, *native[2:])
    return torch.randint(0, native[1], shape, generator=generator, dtype=torch.uint8)
