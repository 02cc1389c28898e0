"""Parts of a network as programs: ONNX graphs, or torch.export programs.

Every program has inputs of fixed shapes, batch 1, and is written from a copy in eval mode.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mess.errors import ConfigError
from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork, export_copy
from mess.signals.maps import PixelMaps, SignalModule, measure
from mess.signals.registry import Signal

Format = Literal["onnx", "torch"]
SUFFIX: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}


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
    return logits.argmax(1).to(torch.uint8)


class LabelMap(nn.Module):
    """Logits at native resolution to the label map at input resolution, uint8."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._size = size

    def forward(self, logits: Tensor) -> tuple[Tensor]:
        upsampled = F.interpolate(logits, size=self._size, mode="bilinear", align_corners=False)
        return (upsampled.argmax(1).to(torch.uint8),)


def point_shapes(network: OverprovisionedNetwork, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Shapes at the input and at each exit point, batch 1; index p is point p, 0 the image."""
    with torch.inference_mode():
        device = next(network.parameters()).device
        maps = network.features(torch.zeros(1, 3, *size, device=device))
    return [(1, 3, *size), *(tuple(features.shape) for features in maps)]


def native_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of an exit's logits for features of `shape`."""
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


def write_program(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    format_: Format,
) -> None:
    """Write `module` to `path`: `inputs` by name as examples, and what its outputs are called."""
    module = export_copy(module)
    examples = tuple(inputs.values())
    if format_ == "torch":
        torch.export.save(torch.export.export(module, examples), path)
        return
    with _quiet():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")
        program.save(path, external_data=False)


def require_exportable(signals: Iterable[Signal], size: tuple[int, int], classes: int) -> None:
    """Try signals of the user's own on made-up logits, before they cost a pass over the images.

    Raises ConfigError for one that fails, or that cannot be written as a program.
    """
    side = max(1, size[0] // 8), max(1, size[1] // 8)
    logits = torch.randn(2, classes, *side, generator=torch.Generator().manual_seed(0))
    for signal in signals:
        if not signal.is_own:
            continue
        measure(PixelMaps(logits), [signal], size)
        module, inputs = SignalModule(signal, size), {"logits": logits[:1]}
        with tempfile.TemporaryDirectory() as folder:
            try:
                with redirect_stderr(StringIO()):  # the exporter prints graphs it fails on
                    write_program(module, inputs, ["signal"], Path(folder) / "signal.onnx", "onnx")
            except Exception as error:
                cause = str(error.__cause__ or error).strip().partition("\n")[0]
                raise ConfigError(
                    f"the signal {signal.name!r} cannot be exported to ONNX, so no device could "
                    f"run it: {cause} Its `of` may use torch operations on `maps` alone, without "
                    "numpy, .item() or branches that depend on values."
                ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals and logs its steps; neither is the user's."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
