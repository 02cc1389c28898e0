"""What a runtime must offer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


class Program(Protocol):
    """A loaded program; values are the runtime's own, so features are not copied between two."""

    def __init__(self, path: Path, threads: int) -> None: ...

    def __call__(self, *values: Any) -> Sequence[Any]: ...

    @staticmethod
    def to_value(array: NDArray[Any]) -> Any: ...

    @staticmethod
    def to_array(value: Any) -> NDArray[Any]: ...
