"""The run directory: where everything of one trained network lies, and what was read from it."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from mess.cache.parquet import read_rows
from mess.cache.schema import EXITS, EXITS_LATER, FRONT
from mess.common.file_hashes import FileHashes
from mess.common.files import sha256, write_text
from mess.common.records import read_record, require_unaltered
from mess.config import Config, load_config
from mess.data import ClassTable, read_classes
from mess.errors import CacheError, ConfigError, MessError, nearest
from mess.runs.cache import RunCache
from mess.runs.fingerprints import pipeline_fingerprint
from mess.runs.results import Adoption, Comparison, SearchResult
from mess.signals.registry import configured_signals

RUNS = Path("runs")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_held: set[IO[str]] = set()
"""Lock files of this process."""


def _close_held() -> None:
    # A forked data-loading worker would keep the lock for seconds after its parent was killed.
    for file in _held:
        os.close(file.fileno())


os.register_at_fork(after_in_child=_close_held)


class Run:
    """A run directory: paths within it, and what is read from them, each when first asked for.

    What was read is kept, for one command's time: whoever has changed a file makes a new `Run`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._caches: dict[str, RunCache] = {}

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def best_epoch(self) -> Path:
        return self.path / "best-epoch.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def weights(self) -> Path:
        return self.path / "network.safetensors"

    @property
    def classes(self) -> Path:
        return self.path / "classes.json"

    @property
    def adoption_file(self) -> Path:
        return self.path / "adopted.json"

    @property
    def exits(self) -> Path:
        return self.path / "exits.parquet"

    def written_by_training(self) -> list[Path]:
        """Files whose leftovers a training that was killed may have left behind."""
        return [
            self.checkpoint, self.best_epoch, self.metrics, self.classes, self.adoption_file,
            self.exits, self.weights,
        ]  # fmt: skip

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def command(self, verb: str) -> str:
        """A command on this run, as messages show it."""
        return f"`mess {verb} --run {shlex.quote(str(self.path))}`"

    def cache(self, name: str) -> Path:
        """Raises MessError for what cannot be a cache's name."""
        return self.path / "cache" / _require_name(name, "cache")

    def caches(self) -> list[str]:
        """Names of the prediction caches, in alphabetical order."""
        folders = (folder for folder in (self.path / "cache").glob("*") if folder.is_dir())
        return sorted(folder.name for folder in folders if _NAME.fullmatch(folder.name))

    def latency(self, name: str) -> Path:
        """Raises MessError for what cannot be a profile's name."""
        return self.path / "latency" / f"{_require_name(name, 'profile')}.parquet"

    def profiles(self) -> list[str]:
        """Names of the latency profiles, in alphabetical order."""
        files = (self.path / "latency").glob("*.parquet")
        return sorted(file.stem for file in files if _NAME.fullmatch(file.stem))

    def search(self, search_id: str) -> Path:
        return self.path / "searches" / search_id

    def study(self, key: str) -> Path:
        return self.path / "studies" / f"{key}.journal"

    def bundle(self, name: str) -> Path:
        return self.path / "exports" / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training or memoising in this run meanwhile."""
        with (self.path / ".lock").open("w") as file:
            try:
                # The system lets go of it when the process ends, however it ends. The file
                # stays: were it deleted, two processes could each lock one of this name.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MessError(
                    f"another process is at work in {self.path}. Wait for it, or name another "
                    "folder with --run."
                ) from None
            _held.add(file)
            try:
                yield
            finally:
                _held.discard(file)

    @cached_property
    def config(self) -> Config:
        """The resolved configuration the run was begun with."""
        return load_config(self.config_file)

    @cached_property
    def weights_sha256(self) -> str:
        """Of the trained weights; raises MessError where training has not finished.

        A file that looks untouched since an earlier command is not read again.
        """
        digest = self._hashes.sha256(self.require_weights())
        self._hashes.save()
        return digest

    @cached_property
    def _hashes(self) -> FileHashes:
        # Not in the run's own folder, whose files all tell something.
        return FileHashes(self.path / "cache" / "file-hashes.json")

    def forget_hashes(self) -> None:
        """Read the weights again, whatever is remembered of them."""
        self._hashes.forget()
        vars(self).pop("weights_sha256", None)

    @cached_property
    def class_table(self) -> ClassTable:
        """Names and colours of the classes the run was trained on."""
        return read_classes(self.classes)[0]

    @property
    def adoption(self) -> Adoption | None:
        """What was found of the network that the run adopted; None where it adopted none."""
        if not self.adoption_file.exists():
            return None
        return read_record(self.adoption_file, Adoption, "Delete it and run the same again.")

    @cached_property
    def candidate_rows(self) -> list[dict[str, Any]]:
        """All rows of exits.parquet."""
        return read_rows(self.exits, EXITS, EXITS_LATER)

    @property
    def exit_rows(self) -> list[dict[str, Any]]:
        """Those of the trained exits, `final` included, from shallow to deep."""
        self.require_weights()
        return [row for row in self.candidate_rows if row["status"] == "trained"]

    @property
    def excluded_exits(self) -> dict[str, Any]:
        """What no search can find: how many candidates were not trained, and the limits."""
        return {
            "exits": len(self.candidate_rows) - len(self.exit_rows),
            "max_exit_cost": self.config.exits.max_exit_cost,
            "max_exit_share": self.config.exits.max_exit_share,
        }

    @cached_property
    def expected_identity(self) -> dict[str, Any]:
        """The part of a cache's identity that can be known without data and signals."""
        return {
            "weights": self.weights_sha256,
            "pipeline": pipeline_fingerprint(self.config),
            "exits": [row["exit_id"] for row in self.exit_rows],
        }

    def open_cache(self, name: str) -> RunCache:
        """The cache of this name, which is refused where it is not of this run as it is now."""
        if name not in self._caches:
            points = {row["exit_id"]: row["point"] for row in self.exit_rows}
            self._caches[name] = RunCache(
                self.cache(name), self.expected_identity, self.config.memoise, points
            )
        return self._caches[name]

    def result(self, search_id: str) -> SearchResult:
        """What a finished search found.

        Raises MessError that names a key which is missing, or says that the file was altered.
        """
        again = f"Run {self.command('search')} again."
        path = self.search(search_id) / "result.json"
        result = read_record(path, SearchResult, again)
        require_unaltered(result, path, again)
        return result

    def front(self, search_id: str, result: SearchResult) -> list[dict[str, Any]]:
        """The rows of a search's front.parquet; raises CacheError where they are not its result's.

        Results of earlier versions do not tell, and their fronts are taken as they are.
        """
        path = self.search(search_id) / "front.parquet"
        rows = read_rows(path, FRONT)
        if result.get("front_sha256", digest := sha256(path)) != digest:
            raise CacheError(
                f"{path} was altered after it was written. Run {self.command('search')} again."
            )
        return rows

    def searches(self) -> list[str]:
        """Identifiers of finished searches, oldest first."""
        # Written last, so a search that was killed has none and does not count.
        folders = (self.path / "searches").glob("*/result.json")
        return [file.parent.name for file in sorted(folders, key=_written)]

    def _best_beside(self, search_id: str, known: Sequence[str]) -> str:
        """The best policy's search, where the newest comparison is of this one; else this one."""
        files = sorted((self.path / "comparisons").glob("*/comparison.json"), key=_written)
        if not files:
            return search_id
        again = f"Name the search with --search, or run {self.command('search')} again."
        found = read_record(files[-1], Comparison, again)
        compared = {row.get("search") for row in found["policies"]}
        return found["best"] if search_id in compared and found["best"] in known else search_id

    def require_weights(self) -> Path:
        """The trained weights; raises MessError where training has not finished."""
        if not self.weights.exists():
            raise MessError(
                f"{self.path} has no trained network yet. "
                f"Run {self.command('train-overprovisioned')} to go on."
            )
        return self.weights

    def require_search(self, search_id: str | None) -> str:
        """`search_id`, or the newest; raises MessError where it does not exist.

        The newest of those that compared policies is the best of them.
        """
        known = self.searches()
        if not known:
            raise MessError(f"{self.path} has no search yet. Run {self.command('search')} first.")
        if search_id is None:
            return self._best_beside(known[-1], known)
        if search_id not in known:
            raise MessError(f"{self.path} has no search {search_id!r}; {nearest(search_id, known)}")
        return search_id


def _require_name(name: str, what: str) -> str:
    # It becomes a file or a folder of the run: no separators, no "..", nothing hidden.
    if not _NAME.fullmatch(name):
        raise MessError(
            f"a {what}'s name has letters, digits and . _ - only, up to 100 of them, and begins "
            f"with a letter or a digit; got {name!r}. Give another, as by --name."
        )
    return name


def find_run(path: Path | None) -> Run:
    """The run at `path`, or the newest below ./runs; raises MessError where there is none."""
    if path is not None:
        if not (path / "config.toml").is_file():
            raise MessError(
                f"{path} is no run: it has no config.toml. Train one with "
                f"{Run(path).command('train-overprovisioned')}."
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
    """The run to train in: `path`, else the newest that trains as `config` does, else a new one.

    What weights do not depend on, such as `memoise`, may change, and of the run at `path` also
    where its data lies; the run's configuration is then written anew. Raises ConfigError when
    `path` holds other weights' run, and for signals that do not exist, which would show only after
    training; MessError where another process is at work in a run that would change.
    """
    configured_signals(config.memoise)
    if path is None:
        same = [run for run in _runs() if _trains(run, config)]
        path = same[-1].path if same else RUNS / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    run = Run(path)
    if run.config_file.exists():
        if run.config.of_weights() != config.of_weights():
            raise ConfigError(
                f"{path} was begun {_difference(run, config)}. Choose another folder with --run, "
                "or leave CONFIG, --set and --adopt out to go on with that one."
            )
        if run.config == config:
            return run
    path.mkdir(parents=True, exist_ok=True)
    # Who is at work in it works by what it says.
    with run.locked():
        write_text(run.config_file, config.to_toml())
    # Opened anew: `run` may have read the old configuration.
    return Run(path)


def _difference(run: Run, config: Config) -> str:
    begun, asked = run.config.training.adopted, config.training.adopted
    if begun == asked:
        return f"with another configuration ({run.config_file})"
    if begun is None:
        return "without --adopt"
    now = "none" if asked is None else f"one with sha256 {asked[:12]}"
    return f"with --adopt and a file with sha256 {begun[:12]}, and now there is {now}"


def _trains(run: Run, config: Config) -> bool:
    try:
        return run.config.trains_as(config)
    except ConfigError:
        return False  # of another version, or edited by hand


def new_folder(parent: Path, stem: str) -> Path:
    """A new folder below `parent`, named `stem`, or `stem-2`, `stem-3`, ... where that is taken."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", stem).strip("-")
    for number in itertools.count(1):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            # Making it is taking the name: of two at once one fails and tries the next.
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def _runs() -> list[Run]:
    folders = [file.parent for file in RUNS.glob("*/config.toml")]
    return [Run(folder) for folder in sorted(folders, key=lambda f: _written(f / "config.toml"))]


def _written(file: Path) -> tuple[int, str]:
    # By name where times are equal, as on file systems with a coarse clock.
    return os.stat(file).st_mtime_ns, str(file)
