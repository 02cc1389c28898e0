"""What every runtime must do; a new one is held to it by its line in the registry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mess.errors import ConfigError, MessError
from mess.export.programs import WRITERS
from mess.runtime.registry import DEFAULT_RUNTIME, FORMATS, RUNTIMES, find_runtime, runtime_of
from mess.testing import ProgramContract


class TestRuntimes(ProgramContract):
    @pytest.fixture(autouse=True, params=RUNTIMES.values(), ids=list(RUNTIMES))
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.runtime = request.param


def test_every_format_is_written_and_run() -> None:
    assert set(FORMATS) == set(WRITERS)
    assert DEFAULT_RUNTIME.name == "onnxruntime"
    assert len({runtime.suffix for runtime in FORMATS.values()}) == len(FORMATS)
    assert [name for name, runtime in RUNTIMES.items() if name != runtime.name] == []


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no runtime is named 'onnxrntime'; .*'onnxruntime'"):
        find_runtime("onnxrntime")
    with pytest.raises(ConfigError, match="no format is named 'onx'; .*did you mean 'onnx'"):
        runtime_of("onx")


def test_a_library_that_is_missing_is_named() -> None:
    absent = replace(DEFAULT_RUNTIME, name="absent", program="mess_absent:Program")
    with pytest.raises(MessError, match="run by absent, which is not installed"):
        absent.load()
