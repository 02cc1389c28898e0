"""`mess train-overprovisioned` in processes of its own that start within milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from mess.cache.predictions.store import PredictionStore
from mess.cli import app as cli
from mess.commands import memoise as memoising
from mess.common.progress import Task
from mess.runs.run import Run
from tests.events import events_of, logged

CONFIG = """
seed = 5
[data]
kind = "shapes"
size = [24, 32]
shapes = [16, 30, 4]
workers = 0
holdout = 0.25
[backbone]
name = "small_resnet"
options = { width = 4 }
[exits]
points = 3
crm = [1]
blocks = [0]
rdi = [false]
heads = ["fcn"]
[training]
batch_size = 4
[training.stage1]
iterations = 30
learning_rate = 0.1
[training.stage2]
iterations = 30
learning_rate = 0.1
[memoise]
pixel_thresholds = [0.5]
batch_size = 1
"""

STEPS = 30
"""Of each stage; memoising has as many images."""

START, STAGE_1, STAGE_2, MEMOISING = ORDER = "start", "stage1", "stage2", "memoising calibration"

forkserver = multiprocessing.get_context("forkserver")
# Else every start would import them for seconds.
forkserver.set_forkserver_preload(
    ["mess.commands.train", "mess.commands.memoise", "tests.workflow.warm"]
)


class Told(NamedTuple):
    """A task that began or did a step, and when."""

    task: str
    seconds: float


class Outcome(NamedTuple):
    """What a process told, its exit code, and what it wrote to stderr."""

    told: list[Told]
    code: int
    errors: str


class Moment(NamedTuple):
    """So many seconds after so many steps of a task, or after the next task began."""

    task: str
    steps: int
    seconds: float

    def has_come(self, told: Sequence[Told]) -> bool:
        """But for the seconds."""
        count = Counter(each.task for each in told)
        later = ORDER[ORDER.index(self.task) + 1 :]
        return count[self.task] > self.steps or any(count[task] for task in later)


class Teller:
    """A reporter that tells another process what this one does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def message(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        teller = self
        teller.tell(name)

        class Steps:
            def advance(self, steps: float = 1, **figures: float) -> None:
                teller.tell(name)

        yield Steps()

    def tell(self, task: str) -> None:
        self._connection.send(Told(task, time.monotonic()))


def begin_training(folder: Path, settings: str = "") -> Run:
    """A run in `folder` that is yet to be trained; `settings` are lines of its [training]."""
    folder.mkdir()
    config = CONFIG.replace("[training]", f"[training]\n{settings}")
    (folder / "config.toml").write_text(config)
    return Run(folder)


def train(run: Run, *, kill: Moment | None = None, largest_file: int | None = None) -> Outcome:
    """Give the command for a run, and kill it at a moment.

    largest_file: bytes beyond which no file may grow, as on a full disk.
    """
    receiver, sender = forkserver.Pipe(duplex=False)
    errors, stderr = forkserver.Pipe(duplex=False)
    process = forkserver.Process(target=_command, args=(run.path, sender, stderr, largest_file))
    process.start()
    sender.close()
    stderr.close()
    told: list[Told] = []
    with receiver:
        try:
            while receiver.poll(300):
                told.append(receiver.recv())
                if kill and kill.has_come(told):
                    time.sleep(kill.seconds)
                    process.kill()
                    kill = None
            process.kill()
        except EOFError:
            pass
    process.join()
    assert process.exitcode is not None
    with open(os.dup(errors.fileno()), encoding="utf-8") as written:
        errors.close()
        return Outcome(told, process.exitcode, written.read())


def _command(
    run: Path, connection: Connection, stderr: Connection, largest_file: int | None
) -> None:
    """The command line but for measuring latencies."""
    log_every_step_and_measure_nothing()
    memoising._PART_IMAGES = 1
    teller = Teller(connection)
    cli.reporter = lambda: nullcontext(teller)
    os.dup2(stderr.fileno(), 2)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    teller.tell(START)
    cli.sys.argv = ["mess", "train-overprovisioned", "--run", str(run)]
    cli.main()


def log_every_step_and_measure_nothing() -> None:
    """For processes that train: exporting parts to measure them takes far longer than the rest."""
    mock.patch("mess.training.loop._LOG_EVERY", 1).start()
    mock.patch("mess.commands.profile.measure_run").start()


def assert_same_end(found: Run, expected: Run) -> None:
    """The same files with the same content; parts and event files may be divided differently."""
    assert not (found.path / "latency").exists(), "latencies were measured after all"
    for file in ("network.safetensors", "exits.parquet", "classes.json", "metrics.jsonl"):
        assert (found.path / file).read_bytes() == (expected.path / file).read_bytes(), file
    assert predictions(found).equals(predictions(expected))
    assert sorted(path.name for path in found.path.iterdir()) == sorted(
        path.name for path in expected.path.iterdir()
    )
    if found.tensorboard.exists():
        assert events_of(found.tensorboard) == logged(found.metrics)


def predictions(run: Run) -> pa.Table:
    """Every column of every prediction, in order of exit and image."""
    store = PredictionStore(run.cache("calibration"))
    store.read({})
    table = pa.concat_tables(
        pq.read_table(path).replace_schema_metadata(None)
        for path in store.parts_folder.glob("part-*.parquet")
    )
    return table.sort_by([("exit_id", "ascending"), ("image_id", "ascending")]).combine_chunks()
