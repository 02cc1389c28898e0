"""What an iteration of each stage trains, and where exits start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mess.config import Config
from mess.errors import ConfigError
from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork
from mess.training.losses import LovaszSoftmax, SoftTarget, mixture, upsample
from mess.training.stages import ExitAwarePretraining, ExitTraining
from mess.training.stages.exits import pixel_grid
from mess.training.stages.pretraining import active_exits
from mess.training.stages.recipes import stages_of
from tests.conftest import MakeConfig
from tests.seeds import seeded
from tests.training.small import (
    CLASSES,
    CPU,
    batch,
    build,
    rows_of,
    run_training,
    same,
    snapshot,
    without_dropout,
)

ROUND_ROBIN, MODULO = "round-robin", "modulo"


# ---- Schedules


def test_round_robin_takes_the_early_exits_in_turn() -> None:
    trained = [active_exits(ROUND_ROBIN, iteration, early=3) for iteration in range(7)]
    assert trained == [[1], [2], [3], [1], [2], [3], [1]]


def test_modulo_is_eq2_to_the_letter() -> None:
    for early in range(6):
        for iteration in range(30):
            number = iteration + 1  # Eq. 2 counts from one
            expected = [i for i in range(1, early + 1) if number % i == 0]
            assert active_exits(MODULO, iteration, early) == expected


@pytest.mark.parametrize("schedule", [ROUND_ROBIN, MODULO])
def test_a_network_without_early_points_has_no_early_exits(schedule: str) -> None:
    assert active_exits(schedule, 5, early=0) == []


# ---- What an iteration trains


def pretraining(config: Config) -> tuple[OverprovisionedNetwork, ExitAwarePretraining]:
    network = build(config)
    stage = stages_of(network, config, rows_of(config), CLASSES, CPU)[0]
    assert isinstance(stage, ExitAwarePretraining)
    without_dropout(network)
    stage.begin()
    return network, stage


def test_an_iteration_of_stage_1_trains_body_head_and_one_early_head(
    make_config: MakeConfig,
) -> None:
    network, stage = pretraining(make_config())
    for iteration, (trained, idle) in enumerate([("p1", "p2"), ("p2", "p1")]):
        before = snapshot(network), {n: t.clone() for n, t in stage.state().items()}
        losses = stage.step(stage.see(*batch("stage1", iteration)), iteration)
        assert list(losses) == [FINAL, trained]
        after = network.state_dict(), stage.state()
        changed = {n for n, t in before[0].items() if not torch.equal(t, after[0][n])}
        assert any(name.startswith("backbone.blocks.0.") for name in changed)
        assert any(name.startswith("backbone.head.") for name in changed)
        assert not any(name.startswith("exits.") for name in changed)
        heads = {n for n, t in before[1].items() if not torch.equal(t, after[1][n])}
        assert any(name.startswith(f"heads.{trained}.") for name in heads)
        assert not any(name.startswith(f"heads.{idle}.") for name in heads)


@pytest.mark.parametrize("schedule", [ROUND_ROBIN, MODULO])
def test_points_too_narrow_for_a_head_have_no_early_one(
    make_config: MakeConfig, schedule: str
) -> None:
    """The U-Net's first features have two channels, of which there is no candidate."""
    _, stage = pretraining(
        make_config(
            backbone={"name": "small_unet", "options": {"width": 2}},
            exits={"points": ["down1", "down2", "up3"], "crm": [1], "max_exit_cost": 99},
            training={"stage1": {"exit_dropout": schedule}},
        )
    )
    trained = [set(stage.step(stage.see(*batch("stage1", i)), i)) - {FINAL} for i in range(2)]
    round_robin = schedule == ROUND_ROBIN
    assert trained == ([{"p2"}, {"p3"}] if round_robin else [{"p2"}, {"p2", "p3"}])


def test_heads_can_learn_at_a_rate_of_their_own(make_config: MakeConfig) -> None:
    moved = {}
    for factor in (1, 3):
        rates = {"learning_rate": 0.01, "head_learning_rate": 0.01 * factor}
        network, stage = pretraining(make_config(training={"stage1": rates}))
        before = snapshot(network)
        stage.step(stage.see(*batch("stage1", 0)), 0)
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
        losses = stage.step(stage.see(images, labels), 0)
        found[weight] = losses["p1"], losses[FINAL], divergence
    (plain, final, divergence), (distilled, same_final, _) = found[0.0], found[0.7]
    assert divergence > 0.01
    torch.testing.assert_close(distilled - plain, 0.7 * divergence, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(same_final, final)


def test_the_final_exit_can_learn_by_lovasz_softmax_beside_cross_entropy(
    make_config: MakeConfig,
) -> None:
    found = {}
    for weight in (0.0, 0.7):
        config = make_config(training={"stage1": {"lovasz": weight}, "stage2": {"pixel_stride": 2}})
        network, stage = pretraining(config)
        without_dropout(stage._heads)
        images, labels = batch("stage1", 0)
        with torch.no_grad():
            logits = network.logits(FINAL, network.features(images))
        term = LovaszSoftmax(labels, pixel_grid(config, 0)).loss(logits)
        network, stage = pretraining(config)  # batch statistics have moved
        without_dropout(stage._heads)
        losses = stage.step(stage.see(images, labels), 0)
        found[weight] = losses[FINAL], losses["p1"], term
    (plain, early, term), (both, same_early, _) = found[0.0], found[0.7]
    assert term > 0.01
    torch.testing.assert_close(both - plain, 0.7 * term, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(same_early, early)


@pytest.mark.parametrize(
    ("scheme", "name"),
    [("e2e", "lovasz"), ("e2e", "early_distillation"), ("frozen", "early_distillation")],
)
def test_settings_that_a_scheme_has_no_use_for_are_refused(
    make_config: MakeConfig, tmp_path: Path, scheme: str, name: str
) -> None:
    config = make_config(training={"scheme": scheme, "stage1": {name: 0.5}})
    with pytest.raises(ConfigError, match=f"training.stage1.{name} = 0.5 .* '{scheme}'"):
        run_training(config, tmp_path)


@pytest.mark.parametrize("start", ["seed", "stage1"])
def test_plain_exits_may_start_from_the_early_heads(make_config: MakeConfig, start: str) -> None:
    exits = {"rdi": [False], "blocks": [0, 1], "skips": [False, True], "skip_stride": 2}
    config = make_config(exits=exits, training={"stage2": {"start": start}})
    network, stage = pretraining(config)
    fresh = snapshot(network.exits)
    for iteration in range(2):
        stage.step(stage.see(*batch("stage1", iteration)), iteration)
    stage.end()
    plain = network.exits["p2-crm1-b0-fcn"].state_dict()
    skipping = network.exits["p2-crm1-b0-fcn-skip"].get_submodule("exit").state_dict()
    head = stage._heads["p2"].state_dict()
    assert same(plain, head) == same(skipping, head) == (start == "stage1")
    moved = {n for n, t in network.exits.state_dict().items() if not torch.equal(t, fresh[n])}
    of = {name.partition(".")[0] for name in moved}
    names = {f"p{point}-crm1-b0-fcn{skip}" for point in (1, 2) for skip in ("", "-skip")}
    assert of == (names & set(network.exits) if start == "stage1" else set())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scheme": "frozen"}, "scheme = 'frozen' trains none"),
        ({"scheme": "e2e"}, "scheme = 'e2e' trains none"),
        ({"stage1": {"iterations": 0}}, "stage 1 has no iterations"),
    ],
)
def test_without_early_heads_no_exit_can_start_from_them(
    make_config: MakeConfig, changes: dict[str, Any], reason: str
) -> None:
    config = make_config(training={"stage2": {"start": "stage1"}, **changes})
    with pytest.raises(ConfigError, match=reason):
        stages_of(build(config), config, rows_of(config), CLASSES, CPU)


def test_exits_without_iterations_are_refused_unless_stage_1_made_them(
    make_config: MakeConfig,
) -> None:
    none = make_config(training={"stage2": {"iterations": 0}})
    with pytest.raises(
        ConfigError, match=r"stage2\.iterations = 0 would leave exits as their seed"
    ):
        stages_of(build(none), none, rows_of(none), CLASSES, CPU)
    made = make_config(training={"stage2": {"iterations": 0, "start": "stage1"}})
    assert len(stages_of(build(made), made, rows_of(made), CLASSES, CPU)) == 2
    joint = make_config(training={"scheme": "e2e", "stage2": {"iterations": 0}})
    assert len(stages_of(build(joint), joint, rows_of(joint), CLASSES, CPU)) == 1


def test_stage_2_steps_follow_the_poly_schedule(make_config: MakeConfig) -> None:
    config = make_config(training={"momentum": 0.0, "weight_decay": 0.0})
    moved = []
    for iteration in (0, 2):
        network = build(config)
        without_dropout(network)
        stage = ExitTraining(network, config, CLASSES, CPU, loss="pfd")
        stage.begin()
        before = snapshot(network.exits)
        stage.step(stage.see(*batch("stage2", 0)), iteration)
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
    losses = stage.step(stage.see(images, labels), 0)
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
