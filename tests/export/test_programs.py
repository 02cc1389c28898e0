"""Programs as the exporter writes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mess.export import programs
from tests.seeds import seeded

REGISTRATION = "torch.onnx._internal.exporter._registration"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What earlier tests have read."""
    programs._operators.cache_clear()
    yield
    programs._operators.cache_clear()


def assert_written(folder: Path, channels: int) -> None:
    """A convolution that answers in onnxruntime as in torch."""
    torch.manual_seed(seeded(channels))
    layer, image = nn.Conv2d(3, channels, 3), torch.randn(1, 3, 8, 8)
    path = folder / f"{channels}.onnx"
    programs._write_onnx(layer.eval(), {"image": image}, ["features"], path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image.numpy()})
    expected = layer(image).detach().numpy()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-5)


def test_operators_are_read_once_for_all_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip(REGISTRATION)
    registry, times = module.ONNXRegistry, []
    read = registry.from_torchlib

    def counted(*arguments: object, **named: object) -> object:
        times.append(arguments)
        return read(*arguments, **named)

    monkeypatch.setattr(registry, "from_torchlib", staticmethod(counted))
    own = vars(registry)["from_torchlib"]
    assert_written(tmp_path, 2)
    once = len(times)
    assert once
    assert_written(tmp_path, 4)
    assert len(times) == once
    # What torch itself would call is as it was.
    assert vars(registry)["from_torchlib"] is own


def test_programs_are_written_where_torch_hides_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_written(tmp_path, 1)  # torch has imported what it needs
    programs._operators.cache_clear()
    monkeypatch.setitem(sys.modules, REGISTRATION, None)
    assert_written(tmp_path, 3)
    assert programs._operators() is None


def test_programs_do_not_tell_where_the_code_lies(tmp_path: Path) -> None:
    """So that an instance has the same digest wherever it is exported."""
    assert_written(tmp_path, 3)
    content = (tmp_path / "3.onnx").read_bytes()
    for place in (Path(nn.__file__).parent, Path(programs.__file__).parent, Path(__file__).parent):
        assert str(place).encode() not in content
    assert b"stack_trace" not in content
    assert not any(node.metadata_props for node in onnx.load_from_string(content).graph.node)
