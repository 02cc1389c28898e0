"""Schemes of training, their losses, and the best epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mess.config import Config
from mess.errors import ConfigError
from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork
from mess.training.best_epoch import BestEpoch
from mess.training.losses import cross_entropy, exit_loss
from mess.training.stage import TrainedUnit
from mess.training.stages.recipes import RECIPES, keeps_best, stages_of
from tests.conftest import MakeConfig
from tests.training.killing import Killed, Killer
from tests.training.small import (
    CLASSES,
    CPU,
    EPOCH,
    batch,
    build,
    rows_of,
    run_training,
    same,
    snapshot,
    without_dropout,
)


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
        losses = stage.step(stage.see(*batch("stage2", 0)), 0)
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
    losses = stage.step(stage.see(images, labels), 0)
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


def test_the_best_epoch_outlives_an_update(make_config: MakeConfig, tmp_path: Path) -> None:
    """Which may write the same configuration differently."""
    config = scheme(make_config, "two-stage", keep="best", stage1={"iterations": 6})
    network = build(config)
    names = {"backbone": TrainedUnit(("backbone.",), (FINAL,))}
    file = tmp_path / "best.safetensors"

    def best_epoch(toml: str) -> BestEpoch:
        return BestEpoch(file, network, "stage1", names, toml)

    best_epoch("# of before\n" + config.to_toml()).offer(2, {FINAL: 0.5})
    kept = snapshot(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    now = best_epoch(config.to_toml())
    now.offer(4, {FINAL: 0.4})
    now.restore()
    assert all(torch.equal(network.state_dict()[n], kept[n]) for n in kept if n[0] == "b")


def test_the_best_epoch_needs_images_to_tell_it(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.holdout is 0\."):
        keeps_best(make_config(training={"scheme": "branches"}))
    assert not keeps_best(make_config(training={"scheme": "branches", "keep": "last"}))
    assert keeps_best(scheme(make_config, "branches"))
    assert not keeps_best(scheme(make_config, "e2e"))
