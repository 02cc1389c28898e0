"""Writing modules as programs: ONNX graphs, or torch.export programs."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mess.config import Config
from mess.errors import ConfigError
from mess.networks.backbones import BACKBONES, build_backbone
from mess.networks.backbones.base import IMAGE
from mess.networks.backbones.libraries import first_line
from mess.networks.network import export_copy
from mess.signals.maps import PixelMaps
from mess.signals.measure import SignalModule, measure
from mess.signals.signal import Signal

Writer = Callable[[nn.Module, Mapping[str, Tensor], Sequence[str], Path], None]
"""Writes a module, with its inputs by name as examples and the names of its outputs, to a path."""


def write_program(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    format_: str,
) -> None:
    """Write `module` to `path`: `inputs` by name as examples, and what its outputs are called."""
    WRITERS[format_](export_copy(module), inputs, outputs, path)


def _write_torch(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path
) -> None:
    torch.export.save(torch.export.export(module, tuple(inputs.values())), path)


def _write_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path
) -> None:
    with _quiet(), _operators_read_once():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")
        _forget_the_code(program.model)
        # Weights within: the manifest has one file a program, with one hash.
        program.save(path, external_data=False)


def _forget_the_code(model: Any) -> None:
    """Remove what the exporter notes of the code it traced: where it lies, line by line.

    That is the business of nobody who gets the program, and else the same instance has another
    digest wherever it is exported.
    """
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        nodes = list(graph.all_nodes())
        values = [*graph.inputs, *graph.initializers.values()] if graph is model.graph else []
        for noted in (*nodes, *values, *(value for node in nodes for value in node.outputs)):
            noted.metadata_props.clear()
            noted.doc_string = None


WRITERS: dict[str, Writer] = {"onnx": _write_onnx, "torch": _write_torch}
"""By format; `mess.runtime.registry` says what runs them. A new format is a function and a line."""


def require_exportable(signals: Iterable[Signal], size: tuple[int, int], classes: int) -> None:
    """Try signals of the user's own on made-up logits, before they cost a pass over the images.

    Raises ConfigError for one that fails, or that cannot be written as a program.
    """
    # About the native resolution of an exit.
    side = max(1, size[0] // 8), max(1, size[1] // 8)
    logits = torch.randn(2, classes, *side, generator=torch.Generator().manual_seed(0))
    for signal in signals:
        # Tests hold the built-in ones to it.
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


def require_exportable_backbone(config: Config, num_classes: int) -> None:
    """Try the blocks and the head of a backbone of the user's own, before they are trained.

    By torch.export, from which every program is written, newly initialised. Raises ConfigError
    that names the block. Tests hold the built-in ones to it.
    """
    name = config.backbone.name
    if name in BACKBONES:
        return
    bare = config.backbone.model_copy(update={"weights": "none"})
    # Not on the meta device, where candidates have run: branches on values show on real ones, and
    # buffers may be indices.
    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(bare, num_classes).eval()
    tensors = {IMAGE: torch.zeros(1, 3, *config.data.size)}
    parts = [*zip(backbone.names, backbone.blocks, backbone.reads, backbone.gives, strict=True)]
    for block, module, reads, gives in [
        *parts, ("the final head", backbone.final, backbone.head_reads, ("logits",)),
    ]:  # fmt: skip
        inputs = tuple(tensors[each] for each in reads)
        try:
            with _quiet(), redirect_stderr(StringIO()), torch.no_grad():
                torch.export.export(module, inputs)
                found = module(*inputs)
        except Exception as error:
            raise ConfigError(
                f"{block!r} of the backbone {name!r} cannot be exported, so no device could run "
                f"it: {first_line(error)}. Its forward may use torch operations alone, without "
                "numpy, .item() or branches that depend on values."
            ) from error
        tensors |= dict(zip(gives, found if len(gives) > 1 else (found,), strict=True))


@contextmanager
def _operators_read_once() -> Iterator[None]:
    """Else the exporter reads all that it can translate anew for every program."""
    if (found := _operators()) is None:
        yield
        return
    registry, read = found
    original = vars(registry)["from_torchlib"]
    registry.from_torchlib = staticmethod(read)
    try:
        yield
    finally:
        # Others may add operators of their own to what they read.
        registry.from_torchlib = original


@cache
def _operators() -> tuple[Any, Callable[..., Any]] | None:
    """The class that reads them, and its `from_torchlib`, which gives the same each time."""
    # Not torch's public interface: where it is gone, programs only take longer.
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        return ONNXRegistry, cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):
        return None


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
