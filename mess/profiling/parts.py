"""The parts of a network whose latency is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from mess.exits import FINAL
from mess.export.segments import LabelMap, Labels, Segment, native_shape, tensor_shapes
from mess.networks.macs import Shape
from mess.networks.network import OverprovisionedNetwork
from mess.signals.measure import SignalModule
from mess.signals.signal import Signal

_ACTIVATIONS = 4
"""What a program holds while it runs, in sizes of its largest tensor."""

_OF_ITSELF = 2**21
"""Bytes that a program of nothing takes."""


@dataclass(frozen=True)
class Part:
    names: list[tuple[str, str]]
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    largest: int
    """Elements of the largest tensor within."""

    @property
    def bytes(self) -> int:
        """About what its program takes: weights, twice where it reorders them, and activations."""
        weights = sum(weight.nbytes for weight in self.module.parameters())
        return 2 * weights + 4 * _ACTIVATIONS * self.largest + _OF_ITSELF


def parts_of(
    network: OverprovisionedNetwork, size: tuple[int, int], signals: Sequence[Signal]
) -> list[Part]:
    shapes = tensor_shapes(network, size)
    last = len(network.points)
    # What costs are put together from: ways from the input, and what going on costs more than
    # running through. Other spans are differences of the first.
    spans = [(0, point) for point in range(1, last + 1)] + [(p, last) for p in range(1, last)]
    parts = []
    for start, end in spans:
        # All that is alive there, as if every exit behind were still to come.
        hands_on = network.alive(end, last, [FINAL])
        segment = Segment(network, start, end, hands_on=hands_on)
        parts.append(_part([("segment", f"{start}-{end}")], segment, shapes))
    exits: dict[tuple[Any, ...], Part] = {}
    natives: dict[Shape, None] = {}
    for exit_id in [*network.exits, FINAL]:
        point = network.point(exit_id)
        natives[native_shape(network, exit_id, shapes)] = None
        # Without the point; `final` has none in its name.
        architecture = exit_id.partition("-")[2] or exit_id
        part = _part([], Segment(network, point, point, exit_id), shapes)
        read = tuple(shapes[name] for name in network.reads(exit_id))
        exits.setdefault((architecture, *read), part).names.append(("exit", exit_id))
    return [*parts, *exits.values(), *(p for n in natives for p in _on_logits(n, size, signals))]


def _part(names: list[tuple[str, str]], segment: Segment, shapes: Mapping[str, Shape]) -> Part:
    """A segment with values for all that it reads."""
    read = (_noise(shapes[name]) for name in segment.reads)
    inputs = dict(zip(segment.inputs, read, strict=True))
    within = {*segment.reads, *segment.blocks.given}
    largest = max(math.prod(shapes[name]) for name in within)
    return Part(names, segment, inputs, segment.outputs, largest)


def _on_logits(native: Shape, size: tuple[int, int], signals: Sequence[Signal]) -> Iterator[Part]:
    """What is computed from the logits of an exit, of shape `native`."""
    where, largest = f"{native[2]}x{native[3]}", native[1] * math.prod(size)
    logits = {"logits": _noise(native)}
    for signal in signals:
        inputs = dict(logits)
        if signal.compares:
            # As large as this exit's own: exits differ little in size, and signals less in time.
            inputs["previous_labels"] = _class_map(native)
        names = [("signal", f"{signal.name}@{where}")]
        yield Part(names, SignalModule(signal, size), inputs, ["signal"], largest)
    yield Part([("labels", where)], Labels(), logits, ["labels"], math.prod(native))
    yield Part([("answer", where)], LabelMap(size), logits, ["label_map"], largest)


# Equal shapes are one tensor: of hundreds of exits most read one of few.
@lru_cache(maxsize=64)
def _noise(shape: Shape) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _class_map(native: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, *native[2:])
    return torch.randint(0, native[1], shape, generator=generator, dtype=torch.uint8)
