"""Files of trained weights, as other programs write them: tensors by name, and no code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mess.errors import WeightsError

_NESTS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints have the tensors, beside an optimiser's and others."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file by name, on the CPU.

    Those of a checkpoint are looked for under its "state_dict", "model_state_dict" or "model". A
    file that holds other objects than tensors and plain values is not read, for that would run
    code. Raises WeightsError that says how to convert it.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"weights file {path} is not safetensors: {error}.") from error
    if path.suffix not in (".pth", ".pt"):
        raise WeightsError(
            f"weights file {path} is of no kind that is read: .safetensors, or .pth and .pt as "
            'torch.save(model.state_dict(), "weights.pth") writes them.'
        )
    return _tensors(_load(path), path)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an IndexError, an AssertionError or others, from byte to byte
        # Behind torch's advice to read it all the same.
        told = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if told or (isinstance(error, pickle.UnpicklingError) and is_zipfile(path)):
            such = f", such as a {told[1]}" if told else ""
            raise WeightsError(
                f"weights file {path} holds more than tensors{such}, and reading "
                "that could run code. If you trust it, save its tensors alone, in Python where its "
                f'classes can be imported: found = torch.load("{path}", weights_only=False), then '
                'torch.save(found["state_dict"], "weights.pth") of a checkpoint, or '
                'torch.save(found.state_dict(), "weights.pth") of a model.'
            ) from error
        # torch's reasons are of its own parts, such as KeyError 101.
        reason = f"{type(error).__name__} {str(error).partition('. ')[0]}".rstrip()
        raise WeightsError(
            f"weights file {path} is damaged, or not what torch.save writes ({reason}). Save it "
            'again with torch.save(model.state_dict(), "weights.pth").'
        ) from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    seen, opened = content, set[int]()
    # A pickle may hold itself.
    while isinstance(content, Mapping) and id(content) not in opened:
        opened.add(id(content))
        nested = (content.get(name) for name in _NESTS)
        inner = next((each for each in nested if isinstance(each, Mapping)), None)
        if inner is None:
            named = ((str(name), value) for name, value in content.items())
            tensors = {name: value for name, value in named if isinstance(value, Tensor)}
            if tensors:
                return tensors
            break
        content = inner
    held = f"the keys {', '.join(map(str, seen))}" if isinstance(seen, Mapping) else "no names"
    raise WeightsError(
        f"weights file {path} has {held}, and no tensors by name at its top or under "
        f"{' or '.join(map(repr, _NESTS))}. Save them alone: "
        'torch.save(model.state_dict(), "weights.pth").'
    )
