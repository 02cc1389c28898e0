"""The runtimes that run a bundle's programs. Each is imported when it is first asked for.

How programs of their formats are written is in `mess.export.programs`, which needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from mess.errors import ConfigError, MessError, nearest
from mess.runtime.program import Program


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A library that runs programs on this machine."""

    name: str
    """Of the library; a profile is named after it."""
    format: str
    """Of its programs, as bundles name it. The first runtime of a format runs its bundles."""
    suffix: str
    """Of its programs' files."""
    program: str
    """The `Program` that runs one, as module:Class."""
    is_code: bool = False
    """Whether loading a program may run whatever who wrote it wants, instead of a graph alone."""

    def load(self) -> type[Program]:
        """The class of its programs; raises MessError where the library is not installed."""
        module, _, name = self.program.partition(":")
        try:
            return getattr(import_module(module), name)
        except ImportError as error:
            raise MessError(
                f"{self.format} programs are run by {self.name}, which is not installed: {error}. "
                "Install it, or choose another --format."
            ) from error


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="onnxruntime",
            format="onnx",
            suffix=".onnx",
            program="mess.runtime.onnx_program:OnnxProgram",
        ),
        Runtime(
            name="torch",
            format="torch",
            suffix=".pt2",
            program="mess.runtime.torch_program:TorchProgram",
            is_code=True,  # torch.export.load unpickles
        ),
    )
}
"""By name, the default first; a new runtime is one class and one line here."""

FORMATS: dict[str, Runtime] = {}
"""By format, the runtime of its bundles: the first that runs it."""

for _runtime in RUNTIMES.values():
    # `setdefault`, so that a second runtime of a format does not take its bundles over.
    FORMATS.setdefault(_runtime.format, _runtime)

DEFAULT_RUNTIME = next(iter(RUNTIMES.values()))


def find_runtime(name: str) -> Runtime:
    """The runtime of this name; raises ConfigError that names those there are."""
    return _found(name, RUNTIMES, "runtime")


def runtime_of(format_: str) -> Runtime:
    """The runtime of bundles in this format; raises ConfigError that names those there are."""
    return _found(format_, FORMATS, "format")


def _found(name: str, known: Mapping[str, Runtime], what: str) -> Runtime:
    if name not in known:
        raise ConfigError(f"no {what} is named {name!r}; {nearest(name, known)}")
    return known[name]
