"""The run directory: where everything of one trained network lies."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from mess.config import Config, load_config
from mess.errors import ConfigError, MessError, nearest
from mess.files import write_text

RUNS = Path("runs")


class Run:
    """Paths within a run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        return self.path / "network.safetensors"

    @property
    def exits(self) -> Path:
        return self.path / "exits.parquet"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def cache(self, split: str) -> Path:
        return self.path / "cache" / split

    def latency(self, name: str) -> Path:
        return self.path / "latency" / f"{name}.parquet"

    def search(self, search_id: str) -> Path:
        return self.path / "searches" / search_id

    def bundle(self, name: str) -> Path:
        return self.path / "exports" / name

    def config(self) -> Config:
        """The resolved configuration the run was begun with."""
        return load_config(self.config_file)

    def searches(self) -> list[str]:
        """Identifiers of finished searches, oldest first."""
        folders = (self.path / "searches").glob("*/result.json")
        return [file.parent.name for file in sorted(folders, key=_written)]

    def require_weights(self) -> Path:
        """The trained weights; raises MessError where training has not finished."""
        if not self.weights.exists():
            raise MessError(
                f"{self.path} has no trained network yet. "
                f"Run `mess train-overprovisioned --run {self.path}` to go on."
            )
        return self.weights

    def require_search(self, search_id: str | None) -> str:
        """`search_id`, or the newest; raises MessError where it does not exist."""
        known = self.searches()
        if not known:
            raise MessError(f"{self.path} has no search yet. Run `mess search` first.")
        if search_id is None:
            return known[-1]
        if search_id not in known:
            raise MessError(f"{self.path} has no search {search_id!r}; {nearest(search_id, known)}")
        return search_id


def find_run(path: Path | None) -> Run:
    """The run at `path`, or the newest below ./runs; raises MessError where there is none."""
    if path is not None:
        if not (path / "config.toml").is_file():
            raise MessError(
                f"{path} is no run: it has no config.toml. Train one with "
                f"`mess train-overprovisioned --run {path}`."
            )
        return Run(path)
    runs = _runs()
    if not runs:
        raise MessError(
            f"there is no run below {RUNS.resolve()}. Train one with `mess train-overprovisioned`, "
            "or name its folder with --run."
        )
    return runs[-1]


def begin_run(path: Path | None, config: Config, name: str) -> Run:
    """The run to train in: `path`, else the newest of this configuration, else a new one.

    Raises ConfigError when `path` holds a run of another configuration.
    """
    if path is None:
        same = [run for run in _runs() if run.config() == config]
        if same:
            return same[-1]
        path = RUNS / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    run = Run(path)
    if not run.config_file.exists():
        write_text(run.config_file, config.to_toml())
    elif run.config() != config:
        raise ConfigError(
            f"{path} was begun with another configuration ({run.config_file}). Choose another "
            "folder with --run, or leave CONFIG and --set out to go on with that one."
        )
    return run


def new_id(parent: Path, stem: str) -> str:
    """A folder name below `parent` that is not taken: `stem`, or `stem-2`, `stem-3`, ..."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", stem).strip("-")
    number, name = 1, stem
    while (parent / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def _runs() -> list[Run]:
    folders = [file.parent for file in RUNS.glob("*/config.toml")]
    return [Run(folder) for folder in sorted(folders, key=lambda f: _written(f / "config.toml"))]


def _written(file: Path) -> tuple[int, str]:
    return os.stat(file).st_mtime_ns, str(file)
