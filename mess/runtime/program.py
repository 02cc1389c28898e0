"""What a runtime must offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from mess.errors import MessError

MOST_THREADS = 256
"""Within an operator. Runtimes start as many as they are told, until the machine has no more."""


def require_threads(threads: int) -> None:
    """Raise MessError for a number of threads that no program is run with."""
    if not 1 <= threads <= MOST_THREADS:
        raise MessError(f"--threads is from 1 to {MOST_THREADS}, got {threads}.")


class Program(Protocol):
    """A loaded program; values are the runtime's own, so features are not copied between two."""

    inputs: int
    """How many values it takes."""
    outputs: int
    """How many it gives."""

    def __init__(self, content: bytes, threads: int) -> None:
        """From the content of its file, which was checked: the file could change meanwhile.

        Raises whatever its library does where it is none.
        """
        ...

    def __call__(self, *values: Any) -> Sequence[Any]: ...

    @staticmethod
    def to_value(array: NDArray[Any]) -> Any: ...

    @staticmethod
    def to_array(value: Any) -> NDArray[Any]: ...
