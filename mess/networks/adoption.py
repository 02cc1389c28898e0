"""Adopting a trained network: its weights, by whatever names, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from mess.errors import WeightsError
from mess.networks.backbones import Backbone

_OPTIONAL = "num_batches_tracked"
"""Files from before torch counted batches have none, and in eval mode nothing reads them."""

_AUXILIARY = ("aux_classifier.", "auxiliary_head.", "classification_head.")
"""What libraries call parts of a model that have no say in its answer."""

_OTHERWISE = (
    "Set backbone.name and backbone.options to the network that the weights are of, see "
    "docs/adopt.md."
)


@dataclass(frozen=True)
class _Naming:
    """What the tensors of a network are called in a file.

    names: by our own name. dropped: prefixes of what the file has of parts that are left out.
    found: how many of the names the file has.
    """

    names: Mapping[str, str]
    dropped: tuple[str, ...]
    found: int


def adopt_weights(backbone: Backbone, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy the weights of a trained network into `backbone`: all of blocks and head, unchanged.

    They have our own names, as a run's network.safetensors or a backbone's state dict has them, or
    those of the model that the backbone was made of, with any prefix before all of them. Exits and
    an auxiliary classifier are left out. Raises WeightsError, which calls the file `path`, for a
    tensor that is missing, has another shape, would be changed, or that the network has no use for.
    """
    own = backbone.state_dict()
    naming = max(_namings(backbone, own, weights), key=lambda naming: naming.found)
    if naming.found == 0:
        raise WeightsError(
            f"{path} is of another network: of {len(own)} names, such as {next(iter(own))!r}, it "
            f"has none, but {len(weights)} others, such as {next(iter(weights), None)!r}. "
            f"{_OTHERWISE}"
        )
    for key, tensor in own.items():
        name = naming.names[key]
        if name in weights:
            _require_fitting(key, tensor, name, weights[name], path)
        elif not name.endswith(_OPTIONAL):
            raise WeightsError(
                f"{path} lacks {name!r} of {_layer(key)}, of shape {list(tensor.shape)}; it has "
                f"{naming.found} of the network's {len(own)} tensors. {_OTHERWISE}"
            )
    known = {*naming.names.values()}
    further = [n for n in weights if n not in known and not n.startswith(naming.dropped)]
    if further:
        raise WeightsError(
            f"{path} holds {further[0]!r}, of shape {list(weights[further[0]].shape)}, which the "
            f"network has not ({len(further)} such tensors). {_OTHERWISE} Where the network gives "
            "its answers without them, leave them out of the file."
        )
    with torch.no_grad():
        for key, tensor in own.items():
            if naming.names[key] in weights:
                tensor.copy_(weights[naming.names[key]])


def _namings(backbone: Backbone, own: Iterable[str], weights: Iterable[str]) -> Iterable[_Naming]:
    """The ways in which the file may name the network's tensors, our own first."""
    prefix, names, found = _prefixed({name: name for name in own}, weights)
    run = prefix.removesuffix("backbone.")
    yield _Naming(names, (f"{run}exits.",) if run != prefix else (), found)
    if original := backbone.original_names:
        prefix, names, found = _prefixed({name: original.get(name, name) for name in own}, weights)
        yield _Naming(names, tuple(prefix + part for part in _AUXILIARY), found)


def _prefixed(names: Mapping[str, str], weights: Iterable[str]) -> tuple[str, dict[str, str], int]:
    """`names` with the prefix by which the file has most of them; the prefix, and how many."""
    # The file may lack a prefix that all of them share, such as "model.".
    levels = zip(*(name.split(".")[:-1] for name in names.values()), strict=False)
    shared = takewhile(lambda level: len({*level}) == 1, levels)
    stem = "".join(f"{level[0]}." for level in shared)
    short = {key: name.removeprefix(stem) for key, name in names.items()}
    wanted = {*short.values()}
    counts = Counter(
        name[:start]
        for name in weights
        for start in (0, *(at + 1 for at, letter in enumerate(name) if letter == "."))
        if name[start:] in wanted
    )
    # Of prefixes that fit as well the first; none, where none fits.
    prefix, found = counts.most_common(1)[0] if counts else ("", 0)
    return prefix, {key: prefix + name for key, name in short.items()}, found


def _require_fitting(key: str, own: Tensor, name: str, tensor: Tensor, path: Path) -> None:
    """Raise WeightsError for a tensor that `own` cannot take over as it is."""
    if not _is_plain(tensor):
        raise WeightsError(
            f"{path}: {name!r} of {_layer(key)} is meta, sparse, quantised or of 8-bit floats, "
            "which cannot be compared. Save the weights that the network was trained with: "
            'torch.save(model.state_dict(), "weights.pth").'
        )
    if own.shape != tensor.shape:
        channels = ""
        if key.startswith("head.") and own.shape[1:] == tensor.shape[1:]:
            channels = (
                "If these are its outputs, name all of them in order in backbone.outputs, those "
                "that are no class too. "
            )
        raise WeightsError(
            f"{path}: {name!r} of {_layer(key)} has shape {list(tensor.shape)}, the network needs "
            f"{list(own.shape)}. {channels}{_OTHERWISE}"
        )
    if not torch.isfinite(tensor).all():
        raise WeightsError(
            f"{path}: {name!r} of {_layer(key)} has numbers that are not finite. Adopt an earlier "
            "checkpoint of the network."
        )
    # Half precision goes into float32 unchanged; float64 does where it was made of float32.
    if not torch.equal(tensor.to(own.dtype).to(tensor.dtype), tensor):
        raise WeightsError(
            f"{path}: {name!r} of {_layer(key)} is {str(tensor.dtype).removeprefix('torch.')} and "
            "would be rounded. Evaluate the network in float32, model.float(), and save that."
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether torch can tell which numbers a tensor holds."""
    is_dense = tensor.layout is torch.strided and not tensor.is_meta
    is_8_bit_float = tensor.is_floating_point() and tensor.itemsize == 1
    return is_dense and not tensor.is_quantized and not is_8_bit_float


def _layer(key: str) -> str:
    """Which layer a tensor is of, by our own name."""
    return f"layer {key.rpartition('.')[0] or key}"
