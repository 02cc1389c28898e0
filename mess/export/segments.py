"""Parts of a network as programs: ONNX graphs, or torch.export programs.

Every program has inputs of fixed shapes, batch 1, and is written from a copy in eval mode.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork
from mess.signals.maps import interpolated
from mess.signals.measure import SignalModule


class Segment(nn.Module):
    """Blocks, then optionally an exit, then optionally its signal.

    Inputs, in the order of `inputs`: the features, and where the signal compares exits the label
    map of the one before. Outputs, in the order of `outputs`: the features after the blocks where
    later segments need them, the exit's logits, the signal, and the label map at native resolution
    where the next exit compares.
    """

    def __init__(
        self,
        blocks: nn.Module,
        exit_module: nn.Module | None = None,
        signal: SignalModule | None = None,
        *,
        continues: bool,
        gives_labels: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.exit = exit_module
        self.signal = signal
        self._continues, self._gives_labels = continues, gives_labels

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        compares = self.signal is not None and self.signal.signal.compares
        return ["features", "previous_labels"] if compares else ["features"]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        names = ["next_features"] if self._continues else []
        names += ["logits"] if self.exit is not None else []
        names += ["signal"] if self.signal is not None else []
        return names + (["labels"] if self._gives_labels else [])

    def forward(self, features: Tensor, *previous_labels: Tensor) -> tuple[Tensor, ...]:
        features = self.blocks(features)
        outputs = [features] if self._continues else []
        if self.exit is not None:
            logits = self.exit(features)
            outputs.append(logits)
            if self.signal is not None:
                outputs.append(self.signal(logits, *previous_labels))
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


def point_shapes(network: OverprovisionedNetwork, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Shapes at the input and at each exit point, batch 1; index p is point p, 0 the image."""
    with torch.inference_mode():
        device = next(network.parameters()).device
        maps = network.features(torch.zeros(1, 3, *size, device=device))
    return [(1, 3, *size), *(tuple(features.shape) for features in maps)]


def native_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of an exit's logits for features of `shape`."""
    # Run for its shape alone: a head may be any module.
    device = next(module.parameters()).device
    with torch.inference_mode():
        return tuple(module(torch.zeros(shape, device=device)).shape)


def native_shapes(
    network: OverprovisionedNetwork, size: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """Height and width of every exit's logits, `final` included."""
    shapes = point_shapes(network, size)
    native = {}
    for exit_id in [*network.exits, FINAL]:
        shape = native_shape(network.exit_module(exit_id), shapes[network.point(exit_id)])
        native[exit_id] = (shape[2], shape[3])
    return native
