"""Running torch.export programs behind the interface of `mess.runtime.bundle`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class TorchProgram:
    """A program written by torch.export, on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        # torch has one setting for the whole process.
        torch.set_num_threads(threads)
        self._module = torch.export.load(path).module()

    def __call__(self, *values: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode():
            outputs = self._module(*values)
        # A module that returns one tensor has no tuple around it; callers index outputs.
        return outputs if isinstance(outputs, tuple | list) else (outputs,)

    @staticmethod
    def to_value(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)

    @staticmethod
    def to_array(value: Tensor) -> NDArray[Any]:
        return value.numpy()
