"""The machine that latencies are measured on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def machine_facts(runtime: str, threads: int) -> dict[str, Any]:
    """What a latency depends on, for the record."""
    import onnxruntime

    return {
        "runtime": runtime,
        "threads": threads,
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
