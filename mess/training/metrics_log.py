"""The metrics log of a run: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

from mess.common.files import room_for, write_text

HOLDOUT = "-holdout"
"""Behind a stage's name: mIoU on held-out images."""


class MetricsLog:
    """Appends rows with `stage` and `iteration`; rewinding drops rows a resumed run repeats."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, stage: str, iteration: int, **figures: float) -> None:
        """Add one row; floats that are not finite are refused."""
        row = {"stage": stage, "iteration": iteration, **figures}
        with room_for(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def rewind(self, stage: str, iteration: int) -> None:
        """Drop the rows of `stage` beyond `iteration`, and a last line that a kill cut short."""
        if not self._path.exists():
            return
        kept = [
            line
            for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            if line.endswith("\n") and not _beyond(json.loads(line), stage, iteration)
        ]
        write_text(self._path, "".join(kept))


def _beyond(row: dict[str, object], stage: str, iteration: int) -> bool:
    reached = row["iteration"]
    return row["stage"] == stage and isinstance(reached, int) and reached > iteration
