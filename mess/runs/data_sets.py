"""Data sets that a run's network is applied to. No torch."""

from __future__ import annotations

from pathlib import Path

from mess.config import Config
from mess.data import DATASETS, SegmentationData
from mess.errors import DataError, MessError
from mess.runs.run import Run


def at_root(config: Config, root: Path | None, option: str = "--root") -> Config:
    """The configuration with the data set at `root`, where one is given.

    option: what names the root on the command line. Raises MessError for data that is read from
    nowhere.
    """
    if root is None:
        return config
    if config.data.kind in DATASETS and not DATASETS[config.data.kind].reads_root:
        raise MessError(
            f"data.kind = {config.data.kind!r} reads no files, so {option} {root} means nothing."
        )
    data = config.data.model_copy(update={"root": root.resolve()})
    return config.model_copy(update={"data": data})


def require_trained_classes(place: Run, data: SegmentationData) -> None:
    """Raise DataError for a data set whose classes are not those the network was trained on."""
    trained_on = place.class_table.names
    if data.classes.names != trained_on:
        raise DataError(
            f"{data.where} has the classes {', '.join(data.classes.names)}; the network was "
            f"trained on {', '.join(trained_on)}. Bring masks and class list to those, in that "
            "order."
        )
