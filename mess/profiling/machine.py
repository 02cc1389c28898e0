"""The machine that latencies are measured on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mess.runtime.registry import RUNTIMES


def machine_facts(runtime: str, threads: int) -> dict[str, Any]:
    """What a latency depends on, for the record."""
    return {
        "runtime": runtime,
        "threads": threads,
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in RUNTIMES},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        # Python's own answer is often empty on Linux.
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
