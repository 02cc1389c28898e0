"""Multi-exit semantic segmentation: train one network, search it, ship the instance you need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mess.runtime.bundle import load_bundle as load_bundle

__version__ = "0.1.0"
__all__ = ["__version__", "load_bundle"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: onnxruntime has no place in the start of `mess --help`.
    if name == "load_bundle":
        from mess.runtime.bundle import load_bundle

        return load_bundle
    raise AttributeError(f"module 'mess' has no attribute {name!r}")
