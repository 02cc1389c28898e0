"""Parts of a network as programs: ONNX graphs, or torch.export programs.

Every program has inputs of fixed shapes, batch 1, and is written from a copy in eval mode.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from mess.exits import FINAL
from mess.networks.backbones.base import IMAGE
from mess.networks.macs import Shape
from mess.networks.network import OverprovisionedNetwork
from mess.signals.maps import interpolated
from mess.signals.measure import SignalModule


class Segment(nn.Module):
    """Blocks, then optionally an exit, then optionally its signal.

    Inputs, in the order of `inputs`: the tensors that blocks and exit read, and where the signal
    compares exits the label map of the one before. Outputs, in the order of `outputs`: those of the
    tensors that blocks give which later segments need (`hands_on`), the exit's logits, the signal,
    and the label map at native resolution where the next exit compares.
    """

    def __init__(
        self,
        network: OverprovisionedNetwork,
        start: int,
        end: int,
        exit_id: str | None = None,
        signal: SignalModule | None = None,
        *,
        hands_on: Collection[str] = (),
        gives_labels: bool = False,
    ) -> None:
        """The blocks after point `start` (0 is the input) up to `end`, which may be none."""
        super().__init__()
        self.blocks = network.span(start, end)
        self.exit = None if exit_id is None else network.exit_module(exit_id)
        self.signal = signal
        self._exit_reads = () if exit_id is None else network.reads(exit_id)
        self._hands_on = tuple(name for name in self.blocks.given if name in hands_on)
        self._gives_labels = gives_labels
        self._is_chain = network.is_chain

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that are read and not given here."""
        own = self.blocks.given
        further = (name for name in self._exit_reads if name not in own)
        return tuple(dict.fromkeys([*self.blocks.taken, *further]))

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        names = [self._port(name) for name in self.reads]
        compares = self.signal is not None and self.signal.signal.compares
        return [*names, "previous_labels"] if compares else names

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        names = [f"next_{self._port(name)}" for name in self._hands_on]
        names += ["logits"] if self.exit is not None else []
        names += ["signal"] if self.signal is not None else []
        return names + (["labels"] if self._gives_labels else [])

    def _port(self, name: str) -> str:
        """What a tensor is called outside: in a chain, which has one at a time, it has no name."""
        return "features" if self._is_chain else f"features.{name}"

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        reads = self.reads
        given = dict(zip(reads, values, strict=False))
        tensors = given | self.blocks(given, {*self._exit_reads, *self._hands_on})
        outputs = [tensors[name] for name in self._hands_on]
        if self.exit is not None:
            logits = self.exit(*(tensors[name] for name in self._exit_reads))
            outputs.append(logits)
            if self.signal is not None:
                outputs.append(self.signal(logits, *values[len(reads) :]))
            if self._gives_labels:
                outputs.append(native_labels(logits))
        return tuple(outputs)


class Labels(nn.Module):
    """Logits to the label map at native resolution, uint8."""

    def forward(self, logits: Tensor) -> Tensor:
        return native_labels(logits)


def native_labels(logits: Tensor) -> Tensor:
    """Predicted classes of (B, C, h, w), (B, h, w) uint8."""
    # uint8 is what label maps are everywhere: classes stay below 255, which is void.
    return logits.argmax(1).to(torch.uint8)


class LabelMap(nn.Module):
    """Logits at native resolution to the label map at input resolution, uint8."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._size = size

    def forward(self, logits: Tensor) -> tuple[Tensor]:
        return (native_labels(interpolated(logits, self._size)),)


def tensor_shapes(network: OverprovisionedNetwork, size: tuple[int, int]) -> dict[str, Shape]:
    """Shapes of the image and of all that blocks give, batch 1, by name."""
    device = next(network.parameters()).device
    whole = network.span(0, len(network.points))
    with torch.inference_mode():
        image = {IMAGE: torch.zeros(1, 3, *size, device=device)}
        found = whole(image, {IMAGE, *whole.given})
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


def native_shape(
    network: OverprovisionedNetwork, exit_id: str, shapes: Mapping[str, Shape]
) -> Shape:
    """Shape of an exit's logits, from those of the tensors that it reads."""
    # Run for its shape alone: a head may be any module.
    device = next(network.parameters()).device
    with torch.inference_mode():
        inputs = (torch.zeros(shapes[name], device=device) for name in network.reads(exit_id))
        return tuple(network.exit_module(exit_id)(*inputs).shape)


def native_shapes(
    network: OverprovisionedNetwork, size: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """Height and width of every exit's logits, `final` included."""
    shapes = tensor_shapes(network, size)
    native = {}
    for exit_id in [*network.exits, FINAL]:
        shape = native_shape(network, exit_id, shapes)
        native[exit_id] = (shape[2], shape[3])
    return native
