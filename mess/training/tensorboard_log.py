"""The metrics log, for TensorBoard as well."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from mess.common.files import room_for
from mess.errors import ConfigError
from mess.training.metrics_log import HOLDOUT, MetricsLog


class TensorBoardLog(MetricsLog):
    """A metrics log that also writes event files: a folder, TensorBoard's run, for each stage.

    Tags are `loss/EXIT` and `learning_rate` of a stage, `miou/EXIT` of its held-out images. Each
    rewinding begins a file in which TensorBoard reads that what it drops no longer counts. Raises
    ConfigError where TensorBoard is not installed.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        self._folder = folder
        self._files: dict[str, Path] = {}
        try:
            # Not torch's SummaryWriter: it names files by the second, and readers take them in
            # the order of their names; its thread answers a full disk with a traceback.
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
        number = len(list(folder.glob("events.out.tfevents.*")))
        self._files[stage] = folder / f"events.out.tfevents.{number:010d}"
        self._write(stage, file_version="brain.Event:2")
        begun = self._events.SessionLog(status=self._events.SessionLog.START)
        # Readers drop what they have of this step and later ones.
        self._write(stage, step=iteration + 1, session_log=begun)

    def _write(self, stage: str, **content: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **content)
        path = self._files[stage]
        with room_for(path), path.open("ab") as file:
            self._records.RecordWriter(file).write(event.SerializeToString())


def _tag(stage: str, name: str) -> str:
    """TensorBoard groups charts by what is before the first slash."""
    if stage.endswith(HOLDOUT):
        return f"miou/{name}"
    return name if name == "learning_rate" else f"loss/{name}"
