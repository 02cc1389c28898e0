"""Several processes that train and memoise one network end like one process alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mess import workflow
from mess.runs.run import Run
from mess.training.stage import Seen
from mess.training.stages import ExitTraining
from tests.workflow.children import (
    CONFIG,
    assert_same_end,
    forkserver,
    log_every_step_and_measure_nothing,
)

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

SEVERAL_EXITS = CONFIG.replace("crm = [1]", "crm = [1, 2]")


def begin(folder: Path, *settings: str, start: Path | None = None) -> Run:
    """A run in `folder` with three points and six exits; `settings` are lines of its [training]."""
    folder.mkdir()
    lines = [*settings]
    if start:
        # Stage 1 is then the same for all: as it was in that run.
        lines += [f'start = "{start}"', "stage1.iterations = 0"]
    config = SEVERAL_EXITS
    for section in ("stage1", "stage2"):
        config = config.replace(f"[training.{section}]\n", "").replace(
            "iterations = 30\nlearning_rate = 0.1\n", "", 1
        )
    defaults = {"stage1.iterations": 6, "stage2.iterations": 6}
    defaults |= {"stage1.learning_rate": 0.1, "stage2.learning_rate": 0.1}
    given = {line.partition("=")[0].strip() for line in lines}
    lines += [f"{key} = {value}" for key, value in defaults.items() if key not in given]
    config = config.replace("[training]", "\n".join(["[training]", *lines]))
    (folder / "config.toml").write_text(config)
    return Run(folder)


def train(
    run: Run,
    processes: int,
    *,
    dropout: bool = True,
    stop_at: int | None = None,
    note: Path | None = None,
) -> None:
    """Train and memoise as torchrun's processes would; alone, without any of it.

    stop_at: the iteration of stage 2 after which the last process gets a SIGTERM. note: a folder in
    which each process writes a line to a file of its own for every batch of stage 2 that it sees.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [
        forkserver.Process(
            target=_train, args=(run.path, rank, processes, port, dropout, stop_at, note)
        )
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert codes == [1 if stop_at else 0] * processes


def _train(
    run: Path,
    rank: int,
    processes: int,
    port: int,
    dropout: bool,
    stop_at: int | None,
    note: Path | None,
) -> None:
    torch.set_num_threads(1)
    log_every_step_and_measure_nothing()
    if not dropout:
        torch.nn.Dropout.forward = lambda self, input: input
    if processes > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if stop_at and rank == processes - 1:
        _after(stop_at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    if note:
        _note_what_is_seen(note / f"seen-{rank}")
    workflow.train_overprovisioned(run=run)


def _note_what_is_seen(file: Path) -> None:
    see = ExitTraining.see

    def noting(self: ExitTraining, images: Tensor, labels: Tensor) -> Seen:
        with file.open("a") as lines:
            lines.write("a batch\n")
        return see(self, images, labels)

    ExitTraining.see = noting


def _after(number: int, act: Callable[[], None]) -> None:
    """Have `act` called after so many steps of stage 2."""
    step = ExitTraining.step

    def acting(self: ExitTraining, seen: Seen, iteration: int) -> dict[str, Tensor]:
        losses = step(self, seen, iteration)
        if iteration + 1 == number:
            act()
        return losses

    ExitTraining.step = acting


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run by one process, the others' measure."""
    run = begin(tmp_path_factory.mktemp("alone") / "run")
    train(run, 1)
    return run


@pytest.fixture(scope="module")
def exits_alone(alone: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stage 2 and memoising by one process."""
    run = begin(tmp_path_factory.mktemp("exits") / "run", start=alone.path)
    train(run, 1)
    return run


def test_each_batch_of_stage_2_is_seen_by_one_process(alone: Run, tmp_path: Path) -> None:
    """Five batches and two processes: the last round is not whole."""
    run = begin(tmp_path / "run", "stage2.iterations = 5", start=alone.path)
    train(run, 2, note=tmp_path)
    seen = [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("seen-*"))]
    assert seen == [3, 2]


@pytest.mark.parametrize("processes", [2, 4])
def test_exits_divided_over_processes_are_bit_identical(
    exits_alone: Run, alone: Run, tmp_path: Path, processes: int
) -> None:
    """Weights, log and predictions; nothing else is left behind."""
    run = begin(tmp_path / "run", start=alone.path)
    train(run, processes)
    assert_same_end(run, exits_alone)


def test_more_processes_than_exits_have_their_best_epochs_too(alone: Run, tmp_path: Path) -> None:
    expected = begin(tmp_path / "alone", 'keep = "best"', start=alone.path)
    train(expected, 1)
    found = begin(tmp_path / "several", 'keep = "best"', start=alone.path)
    train(found, 7)
    assert_same_end(found, expected)


@pytest.mark.parametrize("others", [(1, 4), (2, 1)])
def test_another_number_of_processes_goes_on(
    exits_alone: Run, alone: Run, tmp_path: Path, others: Sequence[int]
) -> None:
    """The signal comes to one of them, and all stop with one checkpoint."""
    run = begin(tmp_path / "run", start=alone.path)
    train(run, 3, stop_at=2)
    assert len(list(run.path.glob("checkpoint-stage2-2-*.safetensors"))) == 2
    first, last = others
    if first > 1:
        train(run, first, stop_at=4)
        # The shares of all but the first, and what stage 2 does not change.
        assert len(list(run.path.glob("checkpoint-*.safetensors"))) == first - 1 + 1
    train(run, last)
    assert_same_end(run, exits_alone)


@pytest.mark.parametrize("groups", [2, 6, 9])
def test_exits_trained_in_groups_are_bit_identical(
    exits_alone: Run, alone: Run, tmp_path: Path, groups: int
) -> None:
    run = begin(tmp_path / "run", f"stage2.groups = {groups}", start=alone.path)
    train(run, 2 if groups == 2 else 1)
    expected, found = load_file(exits_alone.weights), load_file(run.weights)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("scheme", ["two-stage", "e2e"])
@pytest.mark.parametrize("processes", [2, 4])
def test_a_batch_divided_over_processes_trains_as_a_whole_one(
    tmp_path: Path, scheme: str, processes: int
) -> None:
    """Up to rounding, with batch statistics of the whole batch and without dropout's draws.

    One step: in later ones rounding grows, where activations are near 0.
    """
    settings = [f'scheme = "{scheme}"', "stage1.iterations = 1", "stage1.learning_rate = 0.01"]
    runs = {
        count: begin(tmp_path / str(count), *settings, "stage2.iterations = 1")
        for count in (1, processes)
    }
    for count, run in runs.items():
        train(run, count, dropout=False)
    expected, found = (load_file(run.weights) for run in runs.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-6)


def test_statistics_of_each_process_are_another_training(tmp_path: Path) -> None:
    runs = [begin(tmp_path / kind, f'batch_norm = "{kind}"') for kind in ("global", "process")]
    for run in runs:
        train(run, 2, dropout=False)
    expected, found = (load_file(run.weights) for run in runs)
    assert any((expected[name] - found[name]).abs().max() > 1e-3 for name in expected)
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_fewer_images_are_missing_than_there_are_processes(
    exits_alone: Run, tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(exits_alone.path, tmp_path / "run")))
    parts = sorted(run.cache("calibration").glob("predictions/*.parquet"))
    parts[0].unlink()
    train(run, 4)
    assert_same_end(run, exits_alone)


def test_best_epochs_outlive_another_number_of_processes(alone: Run, tmp_path: Path) -> None:
    """The first epochs are the best; every exit's must be found again by whoever trains it."""
    settings = [
        'keep = "best"',
        "checkpoint_minutes = 1e-12",
        "checkpoint_share = 1.0",
        "stage2.iterations = 20",
    ]
    settings.append("stage2.learning_rate = 5.0")
    expected = begin(tmp_path / "alone", *settings, start=alone.path)
    train(expected, 1)
    found = begin(tmp_path / "several", *settings, start=alone.path)
    train(found, 3, stop_at=5)
    train(found, 2, stop_at=10)
    train(found, 3, stop_at=15)
    train(found, 2)
    assert_same_end(found, expected)


def test_a_search_by_parts_finds_the_same(exits_alone: Run, tmp_path: Path) -> None:
    """The first process writes it, and says so alone."""
    asked = ["search", "--target", "macs", "--max-error", "0.05", "--json", "--run"]
    results = []
    for number, launcher in enumerate([["-m"], [*TORCHRUN, "-m", "--"]]):
        run = Run(Path(shutil.copytree(exits_alone.path, tmp_path / str(number))))
        command = [sys.executable, *launcher, "mess", *asked, str(run.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        (search_id,) = run.searches()
        results.append(json.loads(done.stdout))
        assert results[-1].pop("path") == str(run.search(search_id))
        results[-1]["search"].pop("seconds")
        results[-1].pop("digest")  # also of the seconds
    assert results[0] == results[1]


def test_torchrun_restarts_what_died(exits_alone: Run, alone: Run, tmp_path: Path) -> None:
    """A process is killed in stage 2, once; torchrun starts all anew, and they go on."""
    run = begin(
        tmp_path / "run", "checkpoint_minutes = 1e-12", "checkpoint_share = 1.0", start=alone.path
    )
    script = tmp_path / "dying.py"
    script.write_text(
        textwrap.dedent(r"""
        import os, signal, sys
        from pathlib import Path
        from mess import workflow
        from mess.training.stages import ExitTraining
        from tests.workflow.children import log_every_step_and_measure_nothing
        from tests.workflow.test_processes import _after

        begin = ExitTraining.restore

        def resumed(self, state):
            begin(self, state)
            sys.stdout.write(f"resumed: {os.environ['TORCHELASTIC_RESTART_COUNT']}\n")

        ExitTraining.restore = resumed
        died = Path(sys.argv[2])

        def die():
            if os.environ["RANK"] == "1" and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        log_every_step_and_measure_nothing()
        _after(4, die)
        workflow.train_overprovisioned(run=Path(sys.argv[1]))
        """)
    )
    arguments = ["--max-restarts", "1", str(script), str(run.path), str(tmp_path / "died")]
    command = [sys.executable, *TORCHRUN, *arguments]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed: 1") == 2
    assert (tmp_path / "died").exists()
    expected, found = load_file(exits_alone.weights), load_file(run.weights)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
