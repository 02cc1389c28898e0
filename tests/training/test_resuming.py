"""Killed, stopped or failed at any moment, a training goes on to the same end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mess.training.checkpoint
import mess.training.loop
import mess.training.resume
from mess.common.progress import Task
from mess.compute.processes import ALONE, Processes
from mess.config import Config
from mess.data.loader import Batch
from mess.errors import InterruptedWork, TrainingError
from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork
from mess.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mess.training.resume import Saver
from mess.training.stages.recipes import stages_of
from mess.training.stopping import stop_on_signal
from tests.conftest import MakeConfig
from tests.seeds import seeded
from tests.training.killing import EVERY_STEP, Killed, Killer
from tests.training.small import (
    CLASSES,
    CPU,
    batches,
    build,
    rows_of,
    run_training,
    same,
    snapshot,
)


@pytest.fixture(scope="module")
def uninterrupted(
    always_saving: Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    network = run_training(always_saving, folder)
    return snapshot(network), (folder / "metrics").read_text()


@pytest.mark.parametrize(
    ("stage", "iteration"),
    [("stage1", 1), ("stage1", 3), ("stage1", 4), ("stage2", 1), ("stage2", 2), ("stage2", 3)],
)
def test_a_killed_and_resumed_run_ends_bit_identical(
    stage: str,
    iteration: int,
    always_saving: Config,
    uninterrupted: tuple[dict[str, Tensor], str],
    tmp_path: Path,
) -> None:
    with pytest.raises(Killed):
        run_training(always_saving, tmp_path, reporter=Killer(stage, iteration))
    torch.manual_seed(seeded(999))  # another process has another random state
    network = run_training(always_saving, tmp_path)
    assert same(network.state_dict(), uninterrupted[0])
    assert (tmp_path / "metrics").read_text() == uninterrupted[1]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_what_adamw_remembers_goes_on_too(
    stage: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    adamw = {"optimiser": "adamw", "learning_rate": 1e-3}
    config = make_config(training=EVERY_STEP | {"stage1": adamw, "stage2": adamw})
    whole = snapshot(run_training(config, tmp_path / "whole"))
    with pytest.raises(Killed):
        run_training(config, tmp_path / "killed", reporter=Killer(stage, 3))
    assert same(run_training(config, tmp_path / "killed").state_dict(), whole)


def test_a_run_killed_after_logging_repeats_no_row(
    always_saving: Config,
    uninterrupted: tuple[dict[str, Tensor], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(mess.training.resume.Saver, "save", killed)
        with pytest.raises(Killed):
            run_training(always_saving, tmp_path)
    with (tmp_path / "metrics").open("a") as file:
        file.write('{"stage": "stage1", "itera')  # a row cut short
    network = run_training(always_saving, tmp_path)
    assert same(network.state_dict(), uninterrupted[0])
    assert (tmp_path / "metrics").read_text() == uninterrupted[1]


def test_a_run_killed_while_a_stage_is_judged_judges_it_again(
    always_saving: Config, uninterrupted: tuple[dict[str, Tensor], str], tmp_path: Path
) -> None:
    """Else the metrics log would never tell how good its exits were."""

    def kill(network: OverprovisionedNetwork, stage: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        run_training(always_saving, tmp_path, after_stage=kill)
    finished: list[str] = []
    network = run_training(
        always_saving, tmp_path, after_stage=lambda _, stage: finished.append(stage)
    )
    assert finished == ["stage1", "stage2"]
    assert same(network.state_dict(), uninterrupted[0])


class Signaller(Killer):
    """Sends this process a signal during a step."""

    def __init__(self, stage: str, iteration: int, number: int) -> None:
        super().__init__(stage, iteration)
        self._number = number

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        signaller = self

        class Counter:
            left = self._iteration - done if name == self._stage else -1

            def advance(self, steps: float = 1, **figures: float) -> None:
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signaller._number)

        yield Counter()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_signal_stops_after_the_step_and_loses_nothing(
    tiny: Config,
    uninterrupted: tuple[dict[str, Tensor], str],
    tmp_path: Path,
    stage: str,
    number: int,
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(InterruptedWork, match=f"after iteration 2 of {stage}") as stopped:
        run_training(tiny, tmp_path, reporter=Signaller(stage, 2, number))
    assert stopped.value.signal_number == number
    assert signal.getsignal(number) is before
    kept = load_checkpoint(tmp_path / "checkpoint")
    assert kept is not None
    assert (kept.stage, kept.iteration) == (stage, 2)
    network = run_training(tiny, tmp_path)
    assert same(network.state_dict(), uninterrupted[0])


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_signal_in_the_last_iteration_stops_before_the_next_stage(
    make_config: MakeConfig, tmp_path: Path, stage: str
) -> None:
    config = make_config()
    last = {"stage1": 4, "stage2": 3}[stage]
    with pytest.raises(InterruptedWork, match=f"after iteration {last} of {stage}"):
        run_training(config, tmp_path / "run", reporter=Signaller(stage, last, signal.SIGTERM))
    whole = run_training(config, tmp_path / "whole")
    assert same(run_training(config, tmp_path / "run").state_dict(), whole.state_dict())


def test_exits_may_stay_the_early_heads_of_stage_1(make_config: MakeConfig, tmp_path: Path) -> None:
    exits = {"crm": [1], "rdi": [False], "blocks": [0]}
    stage2 = {"iterations": 0, "start": "stage1"}
    config = make_config(exits=exits, training=EVERY_STEP | {"stage2": stage2})
    after = {}

    def see(network: OverprovisionedNetwork, stage: str) -> None:
        after[stage] = snapshot(network)

    trained = snapshot(run_training(config, tmp_path, after_stage=see))
    # Stage 1 is judged before its end, which hands the heads over.
    assert not same(after["stage1"], trained)
    assert same(after["stage2"], trained)


def test_a_network_without_exits_is_trained_all_the_same(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(exits={"max_exit_cost": 1e-9})
    network = run_training(config, tmp_path / "run")
    assert not network.exits
    rows = (tmp_path / "run" / "metrics").read_text().splitlines()
    assert {json.loads(row)["stage"] for row in rows} == {"stage1"}


def test_groups_may_change_until_they_are_begun(make_config: MakeConfig, tmp_path: Path) -> None:
    def config(groups: int) -> Config:
        settings = {"iterations": 3, "groups": groups}
        return make_config(
            training={"checkpoint_minutes": 1e-12, "checkpoint_share": 1.0, "stage2": settings}
        )

    whole = run_training(config(1), tmp_path / "whole")
    for stage, groups in (("stage1", 3), ("stage2", 1)):
        with pytest.raises(Killed):
            run_training(config(1), tmp_path / stage, reporter=Killer(stage, 2))
        found = run_training(config(groups), tmp_path / stage)
        assert same(found.state_dict(), whole.state_dict())
    with pytest.raises(Killed):
        run_training(config(1), tmp_path / "begun", reporter=Killer("stage2", 2))
    with pytest.raises(TrainingError, match="Keep training.stage2.groups as it was"):
        run_training(config(2), tmp_path / "begun")


def test_a_second_signal_acts_at_once(request: pytest.FixtureRequest) -> None:
    # Jobs that a shell runs in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)  # another thread may get it first; the sleep ends where it arrives
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_stage_does_not_change_is_written_once(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone and exits of other groups; with them a killed run ends bit-identical."""
    config = make_config(training={**EVERY_STEP, "stage2": {"iterations": 3, "groups": 2}})
    whole = run_training(config, tmp_path / "whole")
    stages = [stage.name for stage in stages_of(whole, config, rows_of(config), CLASSES, CPU)]
    assert stages == ["stage1", "stage2-1of2", "stage2-2of2"]
    written: dict[str, list[set[str]]] = {}
    save = mess.training.checkpoint.save_checkpoint

    def count(path: Path, found: Checkpoint, **others: Any) -> None:
        settled = "-settled-" if "-settled-" in path.name else ""
        end = "-end" if found.iteration == 3 else ""
        written.setdefault(found.stage + settled + end, []).append(set(found.tensors))
        save(path, found, **others)

    monkeypatch.setattr(mess.training.checkpoint, "save_checkpoint", count)
    folder = tmp_path / "killed"
    for stage in stages[1:]:
        with pytest.raises(Killed):
            run_training(config, folder, reporter=Killer(stage, 3))
        assert len(list(folder.glob("checkpoint-*-settled-*"))) == 1
    assert same(run_training(config, folder).state_dict(), whole.state_dict())
    names = {f"network.{name}" for name in whole.state_dict()}
    for stage in stages[1:]:
        (settled,) = written[stage + "-settled-"]
        for checkpoint in written[stage]:
            weights = {name for name in checkpoint if name.startswith("network.")}
            assert not weights & settled
            assert weights | settled == names
            assert all(name.startswith("network.exits.") for name in weights)
        assert len(written[stage]) == 2
        # What the end of a stage may change besides is in its last one.
        assert names <= written[stage + "-end"][0]


def test_what_a_stage_changes_at_its_end_is_kept(make_config: MakeConfig, tmp_path: Path) -> None:
    exits = {"blocks": [0], "crm": [1]}
    stage2 = {"iterations": 3, "start": "stage1"}
    config = make_config(exits=exits, training={**EVERY_STEP, "stage2": stage2})
    whole = run_training(config, tmp_path / "whole")
    for iteration in (1, 2):
        folder = tmp_path / str(iteration)
        with pytest.raises(Killed):
            run_training(config, folder, reporter=Killer("stage2", iteration))
        assert same(run_training(config, folder).state_dict(), whole.state_dict())


def test_checkpoints_take_a_small_share_of_the_time(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(training={"checkpoint_minutes": 1.0, "checkpoint_share": 0.02})
    network = build(config)
    stage = stages_of(network, config, rows_of(config), CLASSES, CPU)[0]
    clock = [1000.0]
    monkeypatch.setattr(mess.training.resume.time, "monotonic", lambda: clock[0])

    def passed(seconds: float) -> bool:
        clock[0] += seconds
        return saver.is_due()

    def slow(*_: object) -> None:
        clock[0] += 10.0

    saver = Saver(network, config, tmp_path / "checkpoint", ALONE)
    assert not passed(59.0)
    assert passed(2.0)
    monkeypatch.setattr(mess.training.resume, "save_whole", slow)
    saver.save(stage, 1)
    assert not passed(489.0)  # 10 of 499 seconds are more than 2%
    assert passed(2.0)
    monkeypatch.setattr(mess.training.resume, "save_whole", lambda *_: None)
    saver.save(stage, 2)
    assert not passed(59.0)
    assert passed(2.0)


def test_a_checkpoint_of_other_exits_is_refused_by_name(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run_training(make_config(training=EVERY_STEP), tmp_path, reporter=Killer("stage1", 2))
    path = tmp_path / "checkpoint"
    found = load_checkpoint(path)
    assert found is not None
    kept = {n: t for n, t in found.tensors.items() if ".p2-crm2-b1-rdi-fcn." not in n}
    assert len(kept) < len(found.tensors)
    save_checkpoint(path, replace(found, tensors=kept, settled=None))
    with pytest.raises(TrainingError, match=r"p2-crm2-b1-rdi-fcn.*stands on one side alone"):
        run_training(make_config(training=EVERY_STEP), tmp_path)


def test_a_finished_training_has_nothing_left_to_do(always_saving: Config, tmp_path: Path) -> None:
    trained = run_training(always_saving, tmp_path)

    def none(
        seed_name: str, iterations: int, start: int, sharing: Processes, every: int = 1
    ) -> Iterator[Batch]:
        raise AssertionError("nothing is left to train")

    assert same(run_training(always_saving, tmp_path, batches=none).state_dict(),
                trained.state_dict())  # fmt: skip


def test_every_iteration_is_logged_with_the_loss_of_its_exits(tiny: Config, tmp_path: Path) -> None:
    network = run_training(tiny, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics").read_text().splitlines()]
    assert [(row["stage"], row["iteration"]) for row in rows] == [
        *(("stage1", number) for number in (1, 2, 3, 4)),
        *(("stage2", number) for number in (1, 2, 3)),
    ]
    first, last = rows[0], rows[-1]
    assert first["mean"] == pytest.approx((first[FINAL] + first["p1"]) / 2)
    assert set(last) == {"stage", "iteration", "learning_rate", "mean", *network.exits}


# ---- Failures


def test_a_loss_that_is_not_finite_names_stage_and_exit_and_keeps_the_checkpoint(
    always_saving: Config, tmp_path: Path
) -> None:
    def poisoned(
        seed_name: str, iterations: int, start: int, sharing: Processes, every: int = 1
    ) -> Iterator[Batch]:
        plain = batches(seed_name, iterations, start, sharing, every)
        for number, (images, labels, indices) in enumerate(plain):
            yield images * float("nan") if number == 2 else images, labels, indices

    with pytest.raises(TrainingError, match=r"stage1: .* exit final is nan at iteration 3"):
        run_training(always_saving, tmp_path, batches=poisoned)
    kept = load_checkpoint(tmp_path / "checkpoint")
    assert kept is not None
    assert (kept.stage, kept.iteration) == ("stage1", 2)
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())


def test_the_one_exit_that_diverges_in_stage_2_is_named(
    always_saving: Config, tmp_path: Path
) -> None:
    guilty = "p2-crm2-b1-rdi-fcn"

    def poison(network: OverprovisionedNetwork, stage: str) -> None:
        with torch.no_grad():
            next(network.exits[guilty].parameters()).fill_(float("inf"))

    with pytest.raises(TrainingError, match=rf"stage2: the loss of exit {guilty} is nan"):
        run_training(always_saving, tmp_path, after_stage=poison)
    kept = load_checkpoint(tmp_path / "checkpoint")
    assert kept is not None
    assert (kept.stage, kept.iteration) == ("stage1", 4)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"training": {"stage2": {"learning_rate": 0.5}}},
        {"data": {"flip": 0.0}},
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    change: dict[str, object], tiny: Config, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run_training(
            make_config(training=EVERY_STEP),
            tmp_path,
            reporter=Killer("stage1", 2),
        )
    other = make_config(**{"training": EVERY_STEP} | change)
    with pytest.raises(TrainingError, match="another configuration") as refusal:
        run_training(other, tmp_path)
    assert str(tmp_path / "checkpoint") in str(refusal.value)


def test_settings_that_weights_do_not_depend_on_may_change(
    always_saving: Config, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run_training(always_saving, tmp_path, reporter=Killer("stage2", 2))
    other = make_config(
        training={**EVERY_STEP, "tensorboard": True},
        memoise={"batch_size": 1},
        data={"workers": 1, "root": "/elsewhere"},
    )
    run_training(other, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_checkpoint_is_named(content: bytes, tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(TrainingError, match="checkpoint is damaged"):
        run_training(tiny, tmp_path)
