"""The figures of a training: a log of JSON lines and, where asked for, TensorBoard's event files.

A row is a stage, an iteration and figures by name. A resumed run does iterations again, so every
form of the log can be rewound to where the checkpoint was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mess.common.files import room_for, write_text
from mess.common.records import read_log
from mess.errors import ConfigError

HOLDOUT = "-holdout"
"""Behind a stage's name: mIoU on held-out images."""


class MetricsLog:
    """JSON lines, each `stage`, `iteration` and the figures."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, stage: str, iteration: int, **figures: float) -> None:
        """Add one row; floats that are not finite are refused."""
        row = {"stage": stage, "iteration": iteration, **figures}
        with room_for(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def rewind(self, stage: str, iteration: int) -> None:
        """Drop the rows of `stage` beyond `iteration`, and lines that are no rows."""
        if not self._path.exists():
            return
        kept = [
            _line(row)
            for row in read_log(self._path)
            if row["stage"] != stage or row["iteration"] <= iteration
        ]
        write_text(self._path, "".join(kept))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


class TensorBoardLog(MetricsLog):
    """The same rows as event files besides: a folder, TensorBoard's run, for each stage.

    Tags are `loss/EXIT` and `learning_rate` of a stage, `miou/EXIT` of its held-out images. Each
    rewinding begins a file in which TensorBoard reads that what it drops no longer counts. Raises
    ConfigError where TensorBoard is not installed.
    """

    # Not torch's SummaryWriter, tried with torch 2.14 and TensorBoard 2.21. It names files by the
    # second and the process: of two within one second 100001 sorts before 99999, and readers take
    # files in that order, so a resumed run shows steps twice. And its thread answers a full disk
    # with a traceback, before our error can say what to do. Neither can be set.

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        self._folder = folder
        self._files: dict[str, Path] = {}
        """The file that is written, by stage."""
        try:
            self._events: Any = import_module("tensorboard.compat.proto.event_pb2")
            self._summaries: Any = import_module("tensorboard.compat.proto.summary_pb2")
            self._records: Any = import_module("tensorboard.summary.writer.record_writer")
        except ImportError:
            raise ConfigError(
                "training.tensorboard = true needs TensorBoard, which is not installed; run: "
                'pip install "mess[tensorboard]", or set training.tensorboard = false.'
            ) from None

    def append(self, stage: str, iteration: int, **figures: float) -> None:
        super().append(stage, iteration, **figures)
        value = self._summaries.Summary.Value
        values = [value(tag=_tag(stage, name), simple_value=x) for name, x in figures.items()]
        self._write(stage, step=iteration, summary=self._summaries.Summary(value=values))

    def rewind(self, stage: str, iteration: int) -> None:
        super().rewind(stage, iteration)
        folder = self._folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        # Numbered, so that names sort as the files were begun.
        number = len(list(folder.glob("events.out.tfevents.*")))
        self._files[stage] = folder / f"events.out.tfevents.{number:010d}"
        self._write(stage, file_version="brain.Event:2")
        begun = self._events.SessionLog(status=self._events.SessionLog.START)
        # Readers drop what they have of this step and later ones.
        self._write(stage, step=iteration + 1, session_log=begun)

    def _write(self, stage: str, **content: Any) -> None:
        """Append an event and close the file: a kill loses no event that was told."""
        event = self._events.Event(wall_time=time.time(), **content)
        path = self._files[stage]
        with room_for(path), path.open("ab") as file:
            self._records.RecordWriter(file).write(event.SerializeToString())


def _tag(stage: str, name: str) -> str:
    """TensorBoard groups charts by what is before the first slash."""
    if stage.endswith(HOLDOUT):
        return f"miou/{name}"
    return name if name == "learning_rate" else f"loss/{name}"
