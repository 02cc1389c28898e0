"""Both runtimes against the contract of programs."""

from __future__ import annotations

from pathlib import Path

from mess.runtime.onnx_program import OnnxProgram
from mess.runtime.program import Program
from mess.runtime.torch_program import TorchProgram
from mess.testing import ProgramContract


class TestOnnx(ProgramContract):
    def load(self, path: Path, threads: int) -> Program:
        return OnnxProgram(path, threads)


class TestTorch(ProgramContract):
    format = "torch"

    def load(self, path: Path, threads: int) -> Program:
        return TorchProgram(path, threads)
