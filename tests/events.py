"""TensorBoard's event files, as TensorBoard itself reads them, beside the metrics log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Scalars = dict[tuple[str, str], list[tuple[int, float]]]
"""Steps and values (float32) by stage and tag."""


def events_of(folder: Path) -> Scalars:
    """What TensorBoard shows of a run's event files."""
    found: Scalars = {}
    for stage in folder.iterdir():
        reader: Any = EventAccumulator(str(stage), size_guidance={"scalars": 0})
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            found[stage.name, tag] = [(each.step, each.value) for each in reader.Scalars(tag)]
    return found


def logged(metrics: Path) -> Scalars:
    """What it should show."""
    found: Scalars = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        stage, iteration = row.pop("stage"), row.pop("iteration")
        for name, value in row.items():
            if stage.endswith("-holdout"):
                tag = f"miou/{name}"
            else:
                tag = name if name == "learning_rate" else f"loss/{name}"
            found.setdefault((stage, tag), []).append((iteration, float(np.float32(value))))
    return found
