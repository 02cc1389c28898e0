"""What a runtime's programs promise (`mess.runtime.program.Program`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mess.export.programs import write_program
from mess.runtime.program import Program
from mess.runtime.registry import DEFAULT_RUNTIME, Runtime


class ProgramContract:
    """Subclass as `TestMine` and set `runtime`."""

    runtime: Runtime = DEFAULT_RUNTIME

    def test_it_computes_what_torch_does(self) -> None:
        module, image = TwoOutputs().eval(), torch.randn(1, 3, 16, 24)
        with torch.inference_mode():
            expected = [each.numpy() for each in module(image)]
        for threads in (1, 2):
            program = self._written(module, image, threads)
            found = [program.to_array(v) for v in program(program.to_value(image.numpy()))]
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)

    def test_what_one_program_gives_another_takes(self) -> None:
        """Features go from segment to segment without being copied."""
        module, image = nn.ReLU(), torch.randn(1, 3, 16, 24)
        program = self._written(module, image, 1)
        (once,) = program(program.to_value(image.numpy()))
        (twice,) = program(once)
        np.testing.assert_array_equal(program.to_array(twice), image.relu().numpy())

    def test_an_array_survives_the_way_there_and_back(self) -> None:
        program = self._written(nn.ReLU(), torch.zeros(1, 3, 16, 24), 1)
        array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        np.testing.assert_array_equal(program.to_array(program.to_value(array)), array)

    def _written(self, module: nn.Module, image: Tensor, threads: int) -> Program:
        outputs = ["features", "signs"] if isinstance(module, TwoOutputs) else ["features"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"program{self.runtime.suffix}"
            write_program(module, {"image": image}, outputs, path, self.runtime.format)
            return self.runtime.load()(path.read_bytes(), threads)


class TwoOutputs(nn.Module):
    """Of different types, as segments have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        # uint8 beside float32, as label maps are passed on beside features.
        features = self.body(image).relu()
        return features, (image > 0).to(torch.uint8)
