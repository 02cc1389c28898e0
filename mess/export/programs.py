"""Writing modules as programs: ONNX graphs, or torch.export programs."""

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

from mess.errors import ConfigError
from mess.networks.network import export_copy
from mess.signals.maps import PixelMaps
from mess.signals.measure import SignalModule, measure
from mess.signals.signal import Signal

Format = Literal["onnx", "torch"]


SUFFIX: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}


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
