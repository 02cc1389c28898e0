"""Runs that begin with a trained network: its weights stay, its channels are what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from mess import workflow
from mess.cli.app import main
from mess.commands.adopt import adopting
from mess.commands.train import train_network
from mess.common.files import sha256
from mess.common.metrics import iou, mean_iou
from mess.common.progress import Silent, Task
from mess.config import load_config
from mess.data.shapes import CLASSES
from mess.errors import ConfigError, MessError, WeightsError
from mess.exits import FINAL
from mess.networks.backbones import build_backbone
from mess.networks.backbones.base import Backbone
from mess.runs.network import trained_network
from mess.runs.run import Run, begin_run
from mess.testing.backbones import filled
from tests.seeds import seeded

Adopt = Callable[..., Run]

CPU = torch.device("cpu")

ORDER = ("void", "star", "background", "ring", "ellipse", "other", "rectangle", "triangle")
"""Of a network with two channels that are no class, one of them larger than all others."""

SHIFTED = (*CLASSES.names[1:], CLASSES.names[0])
"""Every class in another one's place."""

READOUT = ("head.4.weight", "head.4.bias")
"""What gives a head its channels."""


class Listener(Silent):
    """Keeps what was said; stops at the first step of the stage `dies`."""

    def __init__(self, dies: str = "") -> None:
        self.said: list[str] = []
        self._dies = dies

    def message(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        with super().task(name, total, done) as task:
            if name == self._dies:
                raise KeyboardInterrupt
            yield task


@pytest.fixture
def weights(made: Run, tmp_path: Path) -> Path:
    """Backbone and final exit of the shared run, as a state dict of a Backbone."""
    path = tmp_path / "theirs.safetensors"
    save_file(backbone_of(made.weights), path)
    return path


@pytest.fixture
def adopt(made: Run, tmp_path: Path) -> Adopt:
    """Train a run on the shared run's images that begins with a file."""

    def begin(
        file: Path | None, *overrides: str, run: str = "run", listener: Silent | None = None
    ) -> Run:
        config = load_config(made.config_file, overrides)
        config = config if file is None else adopting(config, file)
        place = begin_run(tmp_path / run, config, "run")
        train_network(place, "cpu", listener or Silent(), adopt=file)
        return Run(place.path)

    return begin


def backbone_of(network: Path) -> dict[str, Tensor]:
    return {
        name.removeprefix("backbone."): tensor
        for name, tensor in load_file(network).items()
        if name.startswith("backbone.")
    }


def with_channels(state: dict[str, Tensor], names: Sequence[str], file: Path) -> Path:
    """The weights of the same network with its channels in another order, and others among them."""
    changed = dict(state)
    for key in READOUT:
        own = state[key]
        rows = [
            own[CLASSES.names.index(name)] if name in CLASSES.names else torch.zeros_like(own[0])
            for name in names
        ]
        changed[key] = torch.stack(rows)
    for channel, name in enumerate(names):
        changed["head.4.bias"][channel] += 1000.0 if name == "void" else 0.0
    save_file(changed, file)
    return file


def as_toml(names: Sequence[str]) -> str:
    return f"backbone.outputs={json.dumps(list(names))}"


def images() -> Tensor:
    return torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(seeded(5)))


def logits(backbone: Backbone) -> Tensor:
    with torch.inference_mode():
        return backbone.eval()(images())


def memoised(made: Run) -> tuple[float, list[float]]:
    """The mIoU of the final exit and the IoU of each class, by the shared run's cache."""
    tables = made.open_cache("calibration").tables
    final = list(tables.exit_ids).index(FINAL)
    counts = (
        tables.intersection[final].sum(0), tables.predicted[final].sum(0), tables.label.sum(0)
    )  # fmt: skip
    return float(mean_iou(*counts)), iou(*counts).tolist()


def test_backbone_and_final_exit_stay_and_exits_are_trained(
    made: Run, weights: Path, adopt: Adopt
) -> None:
    """Though the configuration has a stage 1."""
    assert made.config.training.stage1.iterations
    run = adopt(weights)
    theirs, found = load_file(weights), load_file(run.weights)
    assert all(torch.equal(found[f"backbone.{name}"], theirs[name]) for name in theirs)
    assert len(found) > len(theirs)
    before, after = trained_network(made, CPU), trained_network(run, CPU)
    assert torch.equal(logits(before.backbone), logits(after.backbone))
    untrained = load_file(adopt(weights, "training.stage2.learning_rate=1e-12", run="b").weights)
    moved = [name for name in found if not torch.allclose(found[name], untrained[name])]
    assert {name.split(".")[1] for name in moved if name.startswith("exits.")} == set(after.exits)
    assert all(name.startswith("exits.") for name in moved)


def test_a_whole_network_of_a_run_is_adopted_without_its_exits(made: Run, adopt: Adopt) -> None:
    run = adopt(made.weights)
    expected, found = load_file(made.weights), load_file(run.weights)
    same = {name for name in found if torch.equal(found[name], expected[name])}
    assert {name for name in found if name.startswith("backbone.")} <= same
    assert len(same) < len(found)


def test_a_model_of_torchvision_is_adopted_from_a_checkpoint(made: Run, tmp_path: Path) -> None:
    with torch.device("meta"):
        theirs = deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=CLASSES.num_classes, aux_loss=True
        )
    theirs = filled(theirs)
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": theirs.state_dict(), "epoch": 30}, file)
    overrides = [
        "backbone.name=deeplabv3_mobilenet_v3_large", "backbone.options={}", "exits.points=2",
        "exits.crm=[8]", "exits.blocks=[0]", "training.stage2.iterations=1",
    ]  # fmt: skip
    config = adopting(load_config(made.config_file, overrides), file)
    run = begin_run(tmp_path / "run", config, "run")
    train_network(run, "cpu", Silent(), adopt=file)
    found = logits(trained_network(run, CPU).backbone)
    found = F.interpolate(found, size=(48, 64), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        expected = theirs(images())["out"]
    # The network was not in the layout that images of a run have, in which sums round otherwise.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    state = theirs.state_dict()
    names = trained_network(run, CPU).backbone.original_names
    weights = load_file(run.weights)
    assert all(torch.equal(weights[f"backbone.{ours}"], state[n]) for ours, n in names.items())


def test_it_says_how_good_the_network_is_before_anything_is_trained(
    made: Run, weights: Path, adopt: Adopt
) -> None:
    listener = Listener(dies="stage1")
    with pytest.raises(KeyboardInterrupt):
        adopt(weights, listener=listener)
    miou, classes = memoised(made)
    (said,) = (line for line in listener.said if line.startswith("Adopted"))
    assert f"theirs.safetensors (sha256 {sha256(weights)[:12]}): mIoU {miou:.4f} on 40" in said
    worst = CLASSES.names[int(np.argmin(classes))]
    assert f"the worst class first: {worst} {min(classes):.3f}," in said
    assert not any("near chance" in line for line in listener.said)


def test_what_was_found_is_kept_in_the_run(made: Run, weights: Path, adopt: Adopt) -> None:
    found = adopt(weights).adoption
    assert found is not None
    miou, classes = memoised(made)
    assert found["file"] == "theirs.safetensors"
    assert found["sha256"] == sha256(weights)
    assert found["images"] == 40
    assert found["miou"] == pytest.approx(miou, abs=1e-12)
    assert [row["class"] for row in found["classes"]] == list(CLASSES.names)
    assert [row["iou"] for row in found["classes"]] == pytest.approx(classes, abs=1e-12)


def test_channels_in_another_order_and_others_beside_them(
    made: Run, weights: Path, adopt: Adopt, tmp_path: Path
) -> None:
    """The same answers, although the channel for void is the largest everywhere."""
    file = with_channels(load_file(weights), ORDER, tmp_path / "more.safetensors")
    run = adopt(file, as_toml(ORDER))
    assert run.adoption is not None
    miou, classes = memoised(made)
    assert run.adoption["miou"] == pytest.approx(miou, abs=1e-12)
    assert [row["iou"] for row in run.adoption["classes"]] == pytest.approx(classes, abs=1e-12)
    raw = build_backbone(run.config.backbone, CLASSES.num_classes)
    raw.load_state_dict(load_file(file))
    every = logits(raw)
    assert every.shape[1] == len(ORDER)
    assert (every.argmax(1) == 0).all()
    chosen = [ORDER.index(name) for name in CLASSES.names]
    network = trained_network(run, CPU)
    assert torch.equal(logits(network.backbone), every[:, chosen])
    with torch.inference_mode():
        features = network.features(images())
        shapes = {network.logits(exit_id, features).shape[1] for exit_id in (*network.exits, FINAL)}
    assert shapes == {CLASSES.num_classes}


def test_classes_in_the_wrong_order_are_near_chance(
    weights: Path, adopt: Adopt, tmp_path: Path
) -> None:
    file = with_channels(load_file(weights), SHIFTED, tmp_path / "shifted.safetensors")
    listener = Listener()
    run = adopt(file, listener=listener)
    assert run.adoption is not None
    assert run.adoption["miou"] < run.adoption["chance"] < 0.2
    (warning,) = (line for line in listener.said if "near chance" in line)
    assert f"{run.adoption['chance']:.4f} is what a guess reaches" in warning
    assert "backbone.outputs" in warning
    right = adopt(file, as_toml(SHIFTED), run="right").adoption
    assert right is not None
    assert right["miou"] > 0.8


def test_a_stopped_run_goes_on_without_the_file(weights: Path, adopt: Adopt) -> None:
    expected = load_file(adopt(weights, run="whole").weights)
    listener = Listener(dies="stage2")
    with pytest.raises(KeyboardInterrupt):
        adopt(weights, listener=listener)
    run = Run(weights.parent / "run")
    weights.unlink()
    listener = Listener()
    train_network(run, "cpu", listener)
    found = load_file(run.weights)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any("Adopted" in line for line in listener.said)


def test_a_run_that_was_killed_before_its_first_checkpoint_needs_the_file_again(
    weights: Path, adopt: Adopt
) -> None:
    with pytest.raises(KeyboardInterrupt):
        adopt(weights, listener=Listener(dies="evaluating the adopted network"))
    run = Run(weights.parent / "run")
    with pytest.raises(ConfigError, match=f"{sha256(weights)}.*has not read it yet.*--adopt FILE"):
        train_network(run, "cpu", Silent())
    assert adopt(weights).weights.exists()


def test_the_network_is_judged_once(weights: Path, adopt: Adopt) -> None:
    with pytest.raises(KeyboardInterrupt):
        adopt(weights, listener=Listener(dies="stage1"))
    # What dies where it would judge again.
    listener = Listener(dies="evaluating the adopted network")
    adopt(weights, listener=listener)
    assert any(line.startswith("Adopted theirs.safetensors") for line in listener.said)


def test_a_run_keeps_the_file_it_was_begun_with(
    weights: Path, adopt: Adopt, tmp_path: Path
) -> None:
    run = adopt(weights)
    (tmp_path / "moved").mkdir()
    moved = weights.rename(tmp_path / "moved" / "renamed.safetensors")
    assert adopt(moved).path == run.path
    other = with_channels(load_file(moved), SHIFTED, tmp_path / "theirs.safetensors")
    begun, now = sha256(moved)[:12], sha256(other)[:12]
    with pytest.raises(ConfigError, match=f"begun with --adopt.*{begun}, and now.*{now}.*--run"):
        adopt(other)
    with pytest.raises(ConfigError, match=f"begun with --adopt.*{begun}, and now there is none"):
        adopt(None)
    adopt(None, "training.stage1.iterations=1", run="plain")
    with pytest.raises(ConfigError, match="begun without --adopt"):
        adopt(moved, "training.stage1.iterations=1", run="plain")


@pytest.mark.parametrize("scheme", ["e2e", "branches"])
def test_schemes_that_train_everything_are_refused(
    scheme: str, weights: Path, adopt: Adopt
) -> None:
    with pytest.raises(ConfigError, match=f"{scheme}.*together with the exits.*'two-stage'"):
        adopt(weights, f"training.scheme={scheme}")


@pytest.mark.parametrize("scheme", ["kd", "frozen"])
def test_the_other_schemes_leave_the_network_as_it_is(
    scheme: str, weights: Path, adopt: Adopt
) -> None:
    run = adopt(
        weights, f"training.scheme={scheme}", "training.keep=best", "data.holdout=0.25",
        "training.stage2.iterations=4",
    )  # fmt: skip
    found = load_file(run.weights)
    theirs = load_file(weights)
    assert all(torch.equal(found[f"backbone.{name}"], theirs[name]) for name in theirs)


def test_another_start_is_refused(weights: Path, adopt: Adopt, made: Run) -> None:
    with pytest.raises(ConfigError, match=r"training\.start = .* both say where"):
        adopt(weights, f"training.start='{made.path}'")


def test_a_missing_file_says_that_a_run_goes_on_without(adopt: Adopt, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pth does not exist.*goes on without"):
        adopt(tmp_path / "gone.pth")


def test_nothing_is_downloaded_to_be_overwritten(weights: Path, adopt: Adopt) -> None:
    """small_resnet has no pretrained weights, and would refuse any."""
    assert adopt(weights, "backbone.weights=torchvision").config.backbone.weights == "none"


def test_the_number_of_channels_is_held_against_the_file(
    weights: Path, adopt: Adopt, tmp_path: Path
) -> None:
    file = with_channels(load_file(weights), ORDER, tmp_path / "more.safetensors")
    with pytest.raises(WeightsError, match=r"\[8, .*needs \[6, .*backbone\.outputs"):
        adopt(file)
    with pytest.raises(WeightsError, match=r"\[8, .*needs \[7, .*backbone\.outputs"):
        adopt(file, as_toml(ORDER[1:]), run="b")


def test_a_class_without_a_channel_is_refused_before_training(
    weights: Path, adopt: Adopt, tmp_path: Path
) -> None:
    names = [name.replace("star", "stars") for name in ORDER]
    with pytest.raises(ConfigError, match=r"none of them 'star'.*did you mean 'stars'\?"):
        adopt(weights, as_toml(names))
    with pytest.raises(ConfigError, match="none of them 'star'"):
        workflow.exits("shapes", overrides=[as_toml(names)])


def test_a_refused_file_leaves_no_run_behind(
    made: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next file may go where it would have gone."""
    file, run = tmp_path / "other.pth", tmp_path / "run"
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, file)
    words = [str(word) for word in (made.config_file, "--run", run, "--adopt", file)]
    monkeypatch.setattr("sys.argv", ["mess", "train-overprovisioned", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "other.pth is of another network" in capsys.readouterr().err
    assert not run.exists()


def test_from_the_command_to_a_bundle(
    made: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The selection of channels is in the programs, and its costs are the whole head's."""
    file = with_channels(load_file(weights), ORDER, tmp_path / "more.safetensors")
    monkeypatch.chdir(tmp_path)
    overrides = [as_toml(ORDER), "training.stage2.iterations=1", "exits.crm=[1]"]
    run = workflow.train_overprovisioned(
        made.config_file, run=tmp_path / "run", overrides=overrides, adopt=file
    )
    final = next(row for row in run.exit_rows if row["exit_id"] == FINAL)
    own = next(row for row in made.exit_rows if row["exit_id"] == FINAL)
    rows, columns = 48 // 8, 64 // 8
    inner = run.config.backbone.options["width"] * 6 // 4
    assert final["exit_macs"] - own["exit_macs"] == 2 * inner * rows * columns
    workflow.search(run.path, target="accuracy", setting="budgeted")
    found = workflow.evaluate(workflow.export(run.path), split="calibration")
    miou, _ = memoised(made)
    assert found["baseline"]["miou"] == pytest.approx(miou, abs=1e-6)


def test_the_report_says_what_was_adopted(weights: Path, adopt: Adopt) -> None:
    run = adopt(weights)
    assert "Adopted theirs.safetensors" in workflow.report(run.path).read_text(encoding="utf-8")


def test_a_damaged_record_is_named(weights: Path, adopt: Adopt) -> None:
    run = adopt(weights)
    run.adoption_file.write_text("{}")
    with pytest.raises(MessError, match=r"adopted\.json lacks file"):
        _ = run.adoption
