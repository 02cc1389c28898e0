"""Both training stages: schedules, what they may change, and being killed at any moment."""

from __future__ import annotations

import json
import os
import signal
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mess.training.checkpoint
import mess.training.loop
import mess.training.resume
from mess.common.progress import Reporter, Silent, Task
from mess.compute.processes import ALONE, Processes
from mess.config import Config, parse_config
from mess.data.loader import Batch
from mess.errors import ConfigError, InterruptedWork, TrainingError
from mess.exits import FINAL
from mess.networks.candidates import Candidate, candidates
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mess.training.logs import MetricsLog
from mess.training.loop import Training
from mess.training.losses import SoftTarget, cross_entropy, exit_loss, mixture, upsample
from mess.training.resume import Saver
from mess.training.stage import Batches
from mess.training.stages import ExitAwarePretraining, ExitTraining
from mess.training.stages.pretraining import active_exits
from mess.training.stages.recipes import RECIPES, keeps_best, stages_of
from mess.training.stopping import stop_on_signal
from tests.conftest import MakeConfig
from tests.seeds import seeded

CLASSES = 4
CPU = torch.device("cpu")
EPOCH = 2
EVERY_STEP = {"checkpoint_minutes": 1e-12, "checkpoint_share": 1.0}
"""A checkpoint."""
ROUND_ROBIN, MODULO = "round-robin", "modulo"


def batch(stage: str, iteration: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seeded(1000 * ord(stage[-1]) + iteration))
    images = torch.randn(2, 3, 32, 48, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 32, 48), generator=generator)
    return images, labels.masked_fill(torch.rand(2, 32, 48, generator=generator) < 0.1, 255)


def batches(stage: str, iterations: int, start: int, sharing: Processes) -> Iterator[Batch]:
    assert sharing == ALONE
    for iteration in range(start, iterations):
        yield *batch(stage, iteration), torch.arange(2)


@cache
def _rows(toml: str) -> list[Candidate]:
    return candidates(parse_config(tomllib.loads(toml)), CLASSES)


def rows_of(config: Config) -> list[Candidate]:
    """The candidates, laid out once a configuration."""
    return _rows(config.to_toml())


def build(config: Config) -> OverprovisionedNetwork:
    return build_network(config, rows_of(config), CLASSES)


def run_training(
    config: Config,
    folder: Path,
    *,
    batches: Batches = batches,
    reporter: Reporter | None = None,
    after_stage: Callable[[OverprovisionedNetwork, str], None] = lambda network, stage: None,
    score: Callable[[str, int, str], float] = lambda stage, iteration, exit_id: 0.0,
) -> OverprovisionedNetwork:
    """All stages in `folder`, from its checkpoint where there is one."""
    folder.mkdir(exist_ok=True)
    network = build(config)

    def judge(
        stage: str, iteration: int, exits: Sequence[str], mine: Sequence[str]
    ) -> dict[str, float]:
        assert mine == exits
        network.eval()
        after_stage(network, stage)
        return {exit_id: score(stage, iteration, exit_id) for exit_id in exits}

    Training(
        network=network,
        config=config,
        batches=batches,
        checkpoint=folder / "checkpoint",
        log=MetricsLog(folder / "metrics"),
        reporter=reporter or Silent(),
        device=CPU,
        judge=judge,
        best=folder / "best" if keeps_best(config) else None,
        epoch=EPOCH,
    ).run(stages_of(network, config, rows_of(config), CLASSES, CPU))
    return network


class Killed(Exception):
    pass


class _KillingTask:
    def __init__(self, left: int) -> None:
        self._left = left

    def advance(self, steps: float = 1, **figures: float) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed


class Killer(Silent):
    """Kills at the `iteration`-th step (1-based) of a stage, before that step is checkpointed."""

    def __init__(self, stage: str, iteration: int) -> None:
        self._stage, self._iteration = stage, iteration

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _KillingTask(self._iteration - done if name == self._stage else -1)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def always_saving(make_config: MakeConfig) -> Config:
    """A checkpoint after every iteration."""
    return make_config(training=EVERY_STEP)


@pytest.fixture(autouse=True, scope="module")
def _log_every_iteration() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mess.training.loop, "_LOG_EVERY", 1)
        yield


# ---- Schedules


def test_round_robin_takes_the_early_exits_in_turn() -> None:
    trained = [active_exits(ROUND_ROBIN, iteration, points=4) for iteration in range(7)]
    assert trained == [[1], [2], [3], [1], [2], [3], [1]]


def test_modulo_is_eq2_to_the_letter() -> None:
    for points in range(1, 7):
        for iteration in range(30):
            number = iteration + 1  # Eq. 2 counts from one
            expected = [i for i in range(1, points) if number % i == 0]
            assert active_exits(MODULO, iteration, points) == expected


@pytest.mark.parametrize("schedule", [ROUND_ROBIN, MODULO])
def test_a_network_without_early_points_has_no_early_exits(schedule: str) -> None:
    assert active_exits(schedule, 5, points=1) == []


# ---- What an iteration trains


def pretraining(config: Config) -> tuple[OverprovisionedNetwork, ExitAwarePretraining]:
    network = build(config)
    stage = stages_of(network, config, rows_of(config), CLASSES, CPU)[0]
    assert isinstance(stage, ExitAwarePretraining)
    without_dropout(network)
    stage.begin()
    return network, stage


def without_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def test_an_iteration_of_stage_1_trains_body_head_and_one_early_head(
    make_config: MakeConfig,
) -> None:
    network, stage = pretraining(make_config())
    for iteration, (trained, idle) in enumerate([("p1", "p2"), ("p2", "p1")]):
        before = snapshot(network), {n: t.clone() for n, t in stage.state().items()}
        losses = stage.step(*batch("stage1", iteration), iteration)
        assert list(losses) == [FINAL, trained]
        after = network.state_dict(), stage.state()
        changed = {n for n, t in before[0].items() if not torch.equal(t, after[0][n])}
        assert any(name.startswith("backbone.blocks.0.") for name in changed)
        assert any(name.startswith("backbone.head.") for name in changed)
        assert not any(name.startswith("exits.") for name in changed)
        heads = {n for n, t in before[1].items() if not torch.equal(t, after[1][n])}
        assert any(name.startswith(f"heads.{trained}.") for name in heads)
        assert not any(name.startswith(f"heads.{idle}.") for name in heads)


def test_heads_can_learn_at_a_rate_of_their_own(make_config: MakeConfig) -> None:
    moved = {}
    for factor in (1, 3):
        rates = {"learning_rate": 0.01, "head_learning_rate": 0.01 * factor}
        network, stage = pretraining(make_config(training={"stage1": rates}))
        before = snapshot(network)
        stage.step(*batch("stage1", 0), 0)
        moved[factor] = {
            n: t - before[n] for n, t in network.state_dict().items() if t.is_floating_point()
        }
    head, body = "backbone.head.4.weight", "backbone.blocks.3.conv.0.0.weight"
    torch.testing.assert_close(moved[3][head], 3 * moved[1][head], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved[3][body], moved[1][body])
    assert moved[1][body].abs().max() > 0


def test_early_heads_learn_from_the_final_one_by_a_weight(make_config: MakeConfig) -> None:
    found = {}
    for weight in (0.0, 0.7):
        config = make_config(training={"stage1": {"early_distillation": weight}})
        network, stage = pretraining(config)
        without_dropout(stage._heads)
        head = stage._heads["p1"]
        images, labels = batch("stage1", 0)
        with torch.no_grad():
            features = network.features(images)
            student = upsample(head(features[network.point_names[0]]), (32, 48)).log_softmax(1)
            teacher = upsample(network.logits(FINAL, features), (32, 48)).log_softmax(1)
            divergence = (teacher.exp() * (teacher - student)).sum(1)[labels != 255].mean()
        network, stage = pretraining(config)  # batch statistics have moved
        without_dropout(stage._heads)
        losses = stage.step(images, labels, 0)
        found[weight] = losses["p1"], losses[FINAL], divergence
    (plain, final, divergence), (distilled, same_final, _) = found[0.0], found[0.7]
    assert divergence > 0.01
    torch.testing.assert_close(distilled - plain, 0.7 * divergence, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(same_final, final)


@pytest.mark.parametrize("start", ["seed", "stage1"])
def test_plain_exits_may_start_from_the_early_heads(make_config: MakeConfig, start: str) -> None:
    exits = {"rdi": [False], "blocks": [0, 1], "skips": [False, True], "skip_stride": 2}
    config = make_config(exits=exits, training={"stage2": {"start": start}})
    network, stage = pretraining(config)
    fresh = snapshot(network.exits)
    for iteration in range(2):
        stage.step(*batch("stage1", iteration), iteration)
    stage.end()
    plain = network.exits["p2-crm1-b0-fcn"].state_dict()
    skipping = network.exits["p2-crm1-b0-fcn-skip"].get_submodule("exit").state_dict()
    head = stage._heads["p2"].state_dict()
    assert same(plain, head) == same(skipping, head) == (start == "stage1")
    moved = {n for n, t in network.exits.state_dict().items() if not torch.equal(t, fresh[n])}
    of = {name.partition(".")[0] for name in moved}
    names = {f"p{point}-crm1-b0-fcn{skip}" for point in (1, 2) for skip in ("", "-skip")}
    assert of == (names & set(network.exits) if start == "stage1" else set())


def test_stage_2_steps_follow_the_poly_schedule(make_config: MakeConfig) -> None:
    config = make_config(training={"momentum": 0.0, "weight_decay": 0.0})
    moved = []
    for iteration in (0, 2):
        network = build(config)
        without_dropout(network)
        stage = ExitTraining(network, config, CLASSES, CPU, loss="pfd")
        stage.begin()
        before = snapshot(network.exits)
        stage.step(*batch("stage2", 0), iteration)
        name = "p1-crm1-b1-rdi-fcn.head.4.weight"
        moved.append(network.exits.state_dict()[name] - before[name])
    torch.testing.assert_close(moved[1], (1 / 3) ** 0.9 * moved[0], rtol=1e-3, atol=1e-7)


def test_stage_2_reports_eq3_of_every_exit(make_config: MakeConfig) -> None:
    config = make_config(training={"stage2": {"alpha": 0.3}})
    network = build(config)
    without_dropout(network)
    stage = ExitTraining(network, config, CLASSES, CPU, loss="pfd")
    stage.begin()
    images, labels = batch("stage2", 0)
    with torch.no_grad():
        features = network.features(images)
        target = SoftTarget(network.logits(FINAL, features), labels, mixture("pfd", 0.3))
        expected = {
            exit_id: target.loss(network.logits(exit_id, features)).item()
            for exit_id in network.exits
        }
    losses = stage.step(images, labels, 0)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)


def test_stage_2_leaves_backbone_and_final_head_bit_identical_and_trains_every_exit(
    tiny: Config, tmp_path: Path
) -> None:
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(seeded(5)))
    kept: dict[str, tuple[dict[str, Tensor], dict[str, Tensor], Tensor]] = {}

    def keep(network: OverprovisionedNetwork, stage: str) -> None:
        training = network.backbone.training
        with torch.no_grad():
            logits = network.backbone.eval()(image)
        network.backbone.train(training)
        kept[stage] = snapshot(network.backbone), snapshot(network.exits), logits

    network = run_training(tiny, tmp_path, after_stage=keep)
    (backbone1, exits1, logits1), (backbone2, exits2, logits2) = kept["stage1"], kept["stage2"]
    assert same(backbone1, backbone2)
    assert torch.equal(logits1, logits2)
    assert same(exits1, snapshot(build(tiny).exits))
    for exit_id, module in network.exits.items():
        for name, _ in module.named_parameters():
            full = f"{exit_id}.{name}"
            assert not torch.equal(exits1[full], exits2[full]), full


# ---- Initialisation


def test_an_exit_starts_the_same_whatever_exits_surround_it(make_config: MakeConfig) -> None:
    many = build(make_config())
    few = build(make_config(exits={"crm": [2], "blocks": [1]}))
    shared = [name for name in few.exits if name in many.exits]
    assert shared == list(few.exits)
    assert len(many.exits) > len(few.exits)
    for name in shared:
        assert same(many.exits[name].state_dict(), few.exits[name].state_dict())
    assert same(many.backbone.state_dict(), few.backbone.state_dict())


def test_the_seed_alone_decides_the_start(make_config: MakeConfig) -> None:
    torch.manual_seed(seeded(1))
    first = build(make_config()).state_dict()
    state = torch.get_rng_state()
    second = build(make_config()).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, second)
    other = build(make_config(seed=1)).state_dict()
    weights = [name for name in first if name.endswith(".weight") and first[name].dim() == 4]
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_equal_architectures_at_two_points_start_differently(make_config: MakeConfig) -> None:
    exits = build(make_config(exits={"max_exit_cost": 9})).exits
    first, second = (exits[f"p{p}-crm1-b1-rdi-fcn"].state_dict() for p in (2, 3))
    name = "head.4.bias"
    assert first[name].shape == second[name].shape
    assert not torch.equal(first[name], second[name])


# ---- Killed and resumed


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

    def none(stage: str, iterations: int, start: int, sharing: Processes) -> Iterator[Batch]:
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


# ---- Schemes


def scheme(make_config: MakeConfig, name: str, **training: object) -> Config:
    stages = {"stage1": {"iterations": 4, "exit_learning_rate": 0.05}, "stage2": {"iterations": 3}}
    return make_config(
        data={"holdout": 0.25},
        training={
            "scheme": name,
            "checkpoint_minutes": 1e-12,
            "checkpoint_share": 1.0,
            **stages,
            **training,
        },
    )


def falling(stage: str, iteration: int, exit_id: str) -> float:
    """The first epoch is the best."""
    return 1.0 / iteration


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("keep", ["last", "best"])
def test_every_scheme_trains_and_resumes_bit_identical(
    make_config: MakeConfig, tmp_path: Path, name: str, keep: str
) -> None:
    config = scheme(make_config, name, keep=keep)
    whole = run_training(config, tmp_path / "whole", score=falling)
    start = snapshot(build(config))
    assert not same(snapshot(whole.backbone), snapshot(build(config).backbone))
    for exit_id in whole.exits:
        assert any(
            not torch.equal(tensor, start[f"exits.{exit_id}.{part}"])
            for part, tensor in whole.exits[exit_id].state_dict().items()
        ), exit_id
    stages = stages_of(whole, config, rows_of(config), CLASSES, CPU)
    for number, stage in enumerate(stages):
        folder = tmp_path / str(number)
        with pytest.raises(Killed):
            run_training(config, folder, score=falling, reporter=Killer(stage.name, 3))
        assert same(run_training(config, folder, score=falling).state_dict(), whole.state_dict())
        assert (folder / "metrics").read_text() == (tmp_path / "whole" / "metrics").read_text()


@pytest.mark.parametrize("name", ["two-stage", "e2e"])
def test_reduced_precision_stays_near_and_resumes_bit_identical(
    make_config: MakeConfig, tmp_path: Path, name: str
) -> None:
    def config(precision: str) -> Config:
        return scheme(
            make_config, name,
            stage1={"iterations": 4, "precision": precision},
            stage2={"iterations": 3, "precision": precision},
        )  # fmt: skip

    exact = run_training(config("float32"), tmp_path / "exact").state_dict()
    whole = run_training(config("bfloat16"), tmp_path / "whole").state_dict()
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32, torch.int64}
    assert not same(whole, exact)
    first, near = (
        json.loads((tmp_path / folder / "metrics").read_text().splitlines()[0])
        for folder in ("exact", "whole")
    )
    assert near["mean"] == pytest.approx(first["mean"], rel=0.02)
    folder = tmp_path / "killed"
    last = "joint" if name == "e2e" else "stage2"
    with pytest.raises(Killed):
        run_training(config("bfloat16"), folder, reporter=Killer(last, 3))
    assert same(run_training(config("bfloat16"), folder).state_dict(), whole)


def test_the_frozen_scheme_trains_the_backbone_without_early_heads(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    run_training(scheme(make_config, "frozen"), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics").read_text().splitlines()]
    assert all(
        set(row) == {"stage", "iteration", "learning_rate", "mean", FINAL}
        for row in rows
        if row["stage"] == "stage1"
    )


def test_the_scheme_decides_the_loss_unless_it_is_given(make_config: MakeConfig) -> None:
    found = {}
    for name, loss in [*((name, None) for name in RECIPES), ("two-stage", "ce")]:
        config = scheme(make_config, name, **({"loss": loss} if loss else {}))
        network = build(config)
        without_dropout(network)
        stage = stages_of(network, config, rows_of(config), CLASSES, CPU)[-1]
        stage.begin()
        network.backbone.eval()
        losses = stage.step(*batch("stage2", 0), 0)
        found[name, loss] = losses["p1-crm1-b1-rdi-fcn"].item()
    assert found["two-stage", "ce"] == pytest.approx(found["frozen", None])
    assert found["e2e", None] == pytest.approx(found["frozen", None])
    different = [found[name, None] for name in RECIPES if name != "e2e"]
    assert len({round(value, 4) for value in different}) == len(RECIPES) - 1


@pytest.mark.parametrize(
    ("name", "loss"),
    [*(("e2e", loss) for loss in ("pfd", "ce", "kd", "self-distill")), ("branches", "lovasz")],
)
def test_joint_training_steps_along_the_gradient_of_the_sum(
    make_config: MakeConfig, name: str, loss: str
) -> None:
    """Of the exits' losses and the final exit's, which learns from labels: none teaches itself."""
    rates = {"learning_rate": 0.01, "head_learning_rate": 0.02, "exit_learning_rate": 0.05}
    class_weights = None if loss == "lovasz" else [1.0, 2.0, 0.5, 1.5]
    config = scheme(
        make_config,
        name,
        class_weights=class_weights,
        loss=loss,
        momentum=0.0,
        weight_decay=0.0,
        stage1={"iterations": 4, **rates},
    )
    network, plain = build(config), build(config)
    for each in (network, plain):
        without_dropout(each)
    (stage,) = stages_of(network, config, rows_of(config), CLASSES, CPU)
    stage.begin()
    images, labels = batch("stage1", 0)
    losses = stage.step(images, labels, 0)
    plain.train()
    features = plain.features(images)
    final = plain.logits(FINAL, features)
    weights = torch.tensor(class_weights) if class_weights else None
    target = exit_loss(loss, final, labels, class_weights=weights)
    own = target.loss(final) if loss == "lovasz" else cross_entropy(final, labels, weights)
    expected = {FINAL: own} | {
        exit_id: target.loss(plain.logits(exit_id, features)) for exit_id in plain.exits
    }
    torch.stack(list(expected.values())).sum().backward()
    assert {n: v.item() for n, v in losses.items()} == pytest.approx(
        {n: v.item() for n, v in expected.items()}, rel=1e-4
    )
    for name, parameter in plain.named_parameters():
        rate = rates[
            "exit_learning_rate"
            if name.startswith("exits.")
            else "head_learning_rate"
            if name.startswith("backbone.head.")
            else "learning_rate"
        ]
        assert parameter.grad is not None, name
        moved = parameter.detach() - network.state_dict()[name]
        torch.testing.assert_close(moved, rate * parameter.grad, rtol=2e-3, atol=2e-6)


def test_class_weights_are_one_a_class(make_config: MakeConfig) -> None:
    config = scheme(make_config, "frozen", class_weights=[1.0, 2.0])
    with pytest.raises(ConfigError, match="has 2 values; the data has 4 classes"):
        stages_of(build(config), config, rows_of(config), CLASSES, CPU)


# ---- The best epoch


def test_every_exit_ends_with_its_best_epoch(make_config: MakeConfig, tmp_path: Path) -> None:
    config = scheme(
        make_config,
        "two-stage",
        keep="best",
        stage1={"iterations": 6},
        stage2={"iterations": 6},
    )
    exits = list(build(config).exits)
    best = {FINAL: 4, **{exit_id: (2, 4, 6)[k % 3] for k, exit_id in enumerate(exits)}}
    kept: dict[tuple[str, int], dict[str, Tensor]] = {}

    def score(stage: str, iteration: int, exit_id: str) -> float:
        return 1.0 - abs(iteration - best[exit_id]) / 10

    def keep(network: OverprovisionedNetwork, stage: str) -> None:
        kept[stage, EPOCH * (1 + sum(name == stage for name, _ in kept))] = snapshot(network)

    network = run_training(config, tmp_path, after_stage=keep, score=score)
    assert sorted(kept) == [(stage, i) for stage in ("stage1", "stage2") for i in (2, 4, 6)]
    for name, tensor in network.state_dict().items():
        _, exit_id, *_ = name.split(".")
        if name.startswith("exits."):
            expected = kept["stage2", best[exit_id]][name]
        else:
            expected = kept["stage1", best[FINAL]][name]
        assert torch.equal(tensor, expected), name


def test_the_best_epoch_needs_images_to_tell_it(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.holdout is 0\."):
        keeps_best(make_config(training={"scheme": "branches"}))
    assert not keeps_best(make_config(training={"scheme": "branches", "keep": "last"}))
    assert keeps_best(scheme(make_config, "branches"))
    assert not keeps_best(scheme(make_config, "e2e"))


# ---- Failures


def test_a_loss_that_is_not_finite_names_stage_and_exit_and_keeps_the_checkpoint(
    always_saving: Config, tmp_path: Path
) -> None:
    def poisoned(stage: str, iterations: int, start: int, sharing: Processes) -> Iterator[Batch]:
        plain = batches(stage, iterations, start, sharing)
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
