"""What every signal of an exit promises."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mess.export.programs import write_program
from mess.runtime.onnx_program import OnnxProgram
from mess.signals.maps import PixelMaps
from mess.signals.measure import SignalModule, measure
from mess.signals.registry import signal_from_json
from mess.signals.signal import Signal

CLASSES, SIZE = 5, (64, 80)
"""Of the images; logits are an eighth as large."""


class SignalContract:
    """Subclass as `TestMine` and define `signal`; signals that compare two exits are not meant."""

    def signal(self) -> Signal:
        """The signal; a file of its own, where `kind` says, must define its class."""
        raise NotImplementedError

    def test_it_is_one_finite_number_an_image(self) -> None:
        found = self._measured(logits(6))
        assert found.shape == (6,)
        assert found.isfinite().all()

    def test_images_of_one_class_and_of_equal_logits_have_one_too(self) -> None:
        level = torch.zeros(1, CLASSES, 8, 10)
        certain = level.clone()
        # Probabilities of exactly 0 and 1 in float32, where 0 · log 0 would be no number.
        certain[:, 2] = 100.0
        assert self._measured(torch.cat([level, certain])).isfinite().all()

    def test_it_does_not_depend_on_the_images_beside(self) -> None:
        """Or a bundle, which sees one image, would decide otherwise than the search."""
        some = logits(6)
        apart = torch.cat([self._measured(each[None]) for each in some])
        torch.testing.assert_close(self._measured(some), apart, rtol=0, atol=1e-5)

    def test_it_round_trips_through_json(self) -> None:
        signal = self.signal()
        assert signal_from_json(json.loads(json.dumps(signal.to_json()))) == signal

    def test_its_policies_are_named(self) -> None:
        """`mess search --policy` asks for one of them."""
        assert self.signal().policies
        assert all(isinstance(name, str) and name for name in self.signal().policies)

    def test_the_exported_program_gives_the_same(self) -> None:
        some, module = logits(6), SignalModule(self.signal(), SIZE)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "signal.onnx"
            write_program(module, {"logits": some[:1]}, ["signal"], path, "onnx")
            # One image at a time: programs are written for batch 1.
            program = OnnxProgram(path.read_bytes(), 1)
            found = [
                program.to_array(program(program.to_value(each[None].numpy()))[0]) for each in some
            ]
        expected = self._measured(some)
        torch.testing.assert_close(
            torch.cat([torch.from_numpy(each) for each in found]), expected, rtol=0, atol=1e-5
        )

    def _measured(self, logits_BChw: Tensor) -> Tensor:
        return measure(PixelMaps(logits_BChw), [self.signal()], SIZE)[:, 0]


def logits(images: int) -> Tensor:
    """From hardly to very confident regions of classes, (images, CLASSES, 8, 10)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(images, CLASSES, 3, 4, generator=generator)
    sharpness = torch.linspace(0.5, 8.0, images)[:, None, None, None]
    return sharpness * F.interpolate(coarse, size=(8, 10), mode="bicubic")
