"""Figures of a benchmark, stored as JSON as they are measured, so that a killed run goes on."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mess.common.files import write_text

Row = dict[str, Any]


class Results:
    """Rows of `case` (what was measured) and `figures` (what came out), and the machine.

    Stops when `path` holds figures of another machine or of other versions.
    """

    def __init__(self, path: Path, machine: Row) -> None:
        self.path = path
        self.machine = machine
        self.rows: list[Row] = []
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["machine"] != machine:
                raise SystemExit(
                    f"{path} holds figures of {stored['machine']}, this is {machine}; "
                    "give another --output"
                )
            self.rows = stored["rows"]

    def measure(self, case: Row, measurement: Callable[[], Row]) -> Row:
        """Case and figures in one; what is not stored yet is measured, and stored."""
        for row in self.rows:
            if row["case"] == case:
                return {**case, **row["figures"]}
        print(", ".join(f"{name} {value}" for name, value in case.items()), file=sys.stderr)
        figures = measurement()
        self.rows.append({"case": case, "figures": figures})
        self._write()
        return {**case, **figures}

    def of(self, part: str) -> list[Row]:
        """Case and figures in one, of everything stored of a part."""
        rows = (row for row in self.rows if row["case"]["part"] == part)
        return [{**row["case"], **row["figures"]} for row in rows]

    def _write(self) -> None:
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in self.rows)
        machine = json.dumps(self.machine)
        write_text(self.path, f'{{"machine": {machine},\n"rows": [\n{rows}\n]}}\n')


def machine_facts(*packages: str) -> Row:
    """Processor, system and versions of `packages`, without torch."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
