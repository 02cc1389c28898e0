"""Running torch.export programs behind the interface of `mess.runtime.bundle`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class TorchProgram:
    """A program written by torch.export, on the CPU."""

    def __init__(self, content: bytes, threads: int) -> None:
        # torch has one setting for the whole process.
        torch.set_num_threads(threads)
        program = torch.export.load(io.BytesIO(content))
        signature = program.graph_signature
        self.inputs, self.outputs = len(signature.user_inputs), len(signature.user_outputs)
        self._module = program.module()

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
