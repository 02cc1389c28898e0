"""What every runtime must do; a new one is held to it by its line in the registry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mess.errors import ConfigError, MessError
from mess.export.programs import WRITERS, write_program
from mess.runtime.registry import DEFAULT_RUNTIME, FORMATS, RUNTIMES, find_runtime, runtime_of


class Two(nn.Module):
    """Two outputs of different types, as segments have."""

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * features + labels, features.argmax(1).to(torch.uint8)


def test_every_format_is_written_and_run() -> None:
    assert set(FORMATS) == set(WRITERS)
    assert DEFAULT_RUNTIME.name == "onnxruntime"
    assert len({runtime.suffix for runtime in FORMATS.values()}) == len(FORMATS)
    assert [name for name, runtime in RUNTIMES.items() if name != runtime.name] == []


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_program_gives_what_the_module_gives(name: str, tmp_path: Path) -> None:
    runtime = find_runtime(name)
    features = torch.arange(12.0).reshape(1, 3, 2, 2) % 5
    inputs = {"features": features, "labels": torch.ones(1, 1, 2, 2, dtype=torch.uint8)}
    path = tmp_path / f"two{runtime.suffix}"
    write_program(Two(), inputs, ["sums", "classes"], path, runtime.format)
    kind = runtime.load()
    program = kind(path, 1)
    found = program(*(kind.to_value(value.numpy()) for value in inputs.values()))
    for ours, expected in zip(found, Two()(*inputs.values()), strict=True):
        array = kind.to_array(ours)
        assert array.dtype == expected.numpy().dtype
        np.testing.assert_array_equal(array, expected.numpy())


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no runtime is named 'onnxrntime'; .*'onnxruntime'"):
        find_runtime("onnxrntime")
    with pytest.raises(ConfigError, match="no format is named 'onx'; .*did you mean 'onnx'"):
        runtime_of("onx")


def test_a_library_that_is_missing_is_named() -> None:
    absent = replace(DEFAULT_RUNTIME, name="absent", program="mess_absent:Program")
    with pytest.raises(MessError, match="run by absent, which is not installed"):
        absent.load()
