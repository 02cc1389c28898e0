"""Learning rates by short trainings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import mess.commands.tune
from mess import workflow
from mess.commands.train import train_network
from mess.config import load_config
from mess.errors import MessError, TrainingError
from mess.runs.run import Run, begin_run
from tests.workflow.test_start import SETTINGS

OVERRIDES = [*SETTINGS, "training.stage1.learning_rate=0.1", "training.stage1.iterations=10"]
HEADS = "training.stage1.head_learning_rate=0.3"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs that are really trained from here on; a rate of 0.7 has no finite loss."""
    folders = []

    def train(place: Run, *rest: object) -> None:
        folders.append(place.path)
        train_network(place, *rest)  # pyright: ignore[reportArgumentType]
        # Predictions of networks that were trained for four steps are anyone's guess.
        if "-0.7" in place.path.name:
            place.weights.unlink()
            raise TrainingError("the loss is nan")
        good = {"stage1-0.5": 0.75, "stage1-0.2": 0.5, "stage2-0.2": 0.25, "stage2-0.5": 0.125}
        rows = [json.loads(line) for line in place.metrics.read_text().splitlines()]
        for row in rows:
            if row["stage"].endswith("-holdout"):
                trial = place.path.name.partition("-on-")[0]
                row |= {name: good[trial] for name in row if name[0] in "pf"}
        place.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(mess.commands.tune, "train_network", train)
    return folders


def tuned(folder: Path, *rates: float) -> dict:
    return workflow.tune(
        "shapes", folder=folder, overrides=[*OVERRIDES, HEADS], rates=rates, share=0.4, device="cpu"
    )


def test_the_best_rates_are_told_as_settings(trained: list[Path], tmp_path: Path) -> None:
    found = tuned(tmp_path, 0.2, 0.5, 0.7)
    assert [(t["stage"], t["learning_rate"], t["miou"]) for t in found["trials"]] == [
        ("stage1", 0.2, 0.5), ("stage1", 0.5, 0.75), ("stage1", 0.7, None),
        ("stage2", 0.2, 0.25), ("stage2", 0.5, 0.125), ("stage2", 0.7, None),
    ]  # fmt: skip
    assert found["settings"] == [
        "training.stage1.learning_rate=0.5",
        "training.stage1.head_learning_rate=1.5",
        "training.stage2.learning_rate=0.2",
    ]
    assert found["at_the_end"] == ["stage2"]
    assert json.loads((tmp_path / "tune.json").read_text()) == found
    # Stage 1 for the share of its iterations; stage 2 on the best backbone, which stays.
    of_first = tomllib.loads((tmp_path / "stage1-0.2" / "config.toml").read_text())["training"]
    assert of_first["stage1"]["iterations"] == 4
    assert of_first["stage1"]["head_learning_rate"] == pytest.approx(0.6)
    config = tomllib.loads((tmp_path / "stage2-0.5-on-0.5" / "config.toml").read_text())
    assert config["training"]["stage1"]["iterations"] == 0
    assert config["training"]["start"] == str(tmp_path / "stage1-0.5")
    # The calibration split tells nothing: images are held out where none were.
    assert config["data"]["holdout"] == 0.1


def test_what_is_trained_is_not_trained_again(trained: list[Path], tmp_path: Path) -> None:
    tuned(tmp_path, 0.2)
    first = list(trained)
    again = tuned(tmp_path, 0.2, 0.5)
    assert [path.name for path in first] == ["stage1-0.2", "stage2-0.2-on-0.2"]
    # Another backbone is the best now.
    names = ["stage1-0.5", "stage2-0.2-on-0.5", "stage2-0.5-on-0.5"]
    assert [path.name for path in trained[2:]] == names
    assert again["settings"][0] == "training.stage1.learning_rate=0.5"
    with pytest.raises(MessError, match=r"stage1-0\.2 is a trial of another config.*--folder"):
        workflow.tune("shapes", folder=tmp_path, overrides=SETTINGS, rates=[0.2], device="cpu")


def test_rates_of_earlier_calls_are_compared_with(trained: list[Path], tmp_path: Path) -> None:
    tuned(tmp_path, 0.5)
    found = tuned(tmp_path, 0.2)
    # Worse than the one before, which is not trained again.
    assert found["settings"][0] == "training.stage1.learning_rate=0.5"
    assert [(t["stage"], t["learning_rate"]) for t in found["trials"]] == [
        ("stage1", 0.5), ("stage1", 0.2), ("stage2", 0.5), ("stage2", 0.2),
    ]  # fmt: skip
    assert [path.name for path in trained[2:]] == ["stage1-0.2", "stage2-0.2-on-0.5"]


def test_each_stage_tries_rates_that_suit_its_optimiser(
    trained: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mess.commands.tune, "RATES", {"sgd": (0.2, 0.5), "adamw": (0.7,)})
    adamw = [*OVERRIDES, "training.stage2.optimiser=adamw"]
    with pytest.raises(MessError, match=r"stage2 came to no finite loss at any of the rates 0.7\."):
        workflow.tune("shapes", folder=tmp_path, overrides=adamw, share=0.4, device="cpu")
    names = [path.name for path in trained]
    assert names == ["stage1-0.2", "stage1-0.5", "stage2-0.7-on-0.5"]


def test_a_stage_without_iterations_or_exits_is_not_tried(
    trained: list[Path], tmp_path: Path
) -> None:
    first = tuned(tmp_path / "first", 0.5)
    start = tmp_path / "first" / "stage1-0.5"
    without = [*SETTINGS, "training.stage1.iterations=0", f"training.start={start}"]
    found = workflow.tune(
        "shapes", folder=tmp_path / "exits", overrides=without, rates=[0.2], device="cpu"
    )
    assert found["settings"] == ["training.stage2.learning_rate=0.2"]
    config = tomllib.loads((tmp_path / "exits" / "stage2-0.2" / "config.toml").read_text())
    assert config["training"]["stage1"]["iterations"] == 0
    assert config["training"]["start"] == str(start)
    single = [*OVERRIDES, "exits.points=1", "exits.max_exit_cost=1e-9"]
    alone = workflow.tune(
        "shapes", folder=tmp_path / "alone", overrides=single, rates=[0.5], device="cpu"
    )
    assert alone["settings"] == first["settings"][:1]


def test_groups_of_exits_are_judged_together(trained: list[Path], tmp_path: Path) -> None:
    grouped = [*OVERRIDES, "training.stage2.groups=2", "training.stage2.start=stage1"]
    found = workflow.tune(
        "shapes", folder=tmp_path, overrides=grouped, rates=[0.5], share=0.4, device="cpu"
    )
    assert found["trials"][1]["miou"] == 0.125
    # Early heads are not there to start from.
    config = tomllib.loads((tmp_path / "stage2-0.5-on-0.5" / "config.toml").read_text())
    assert config["training"]["stage2"]["start"] == "seed"


def of_epochs(folder: Path, stage: str, keep: str, *epochs: dict[str, float]) -> dict[str, float]:
    settings = [*SETTINGS, "data.holdout=0.5", f"training.keep={keep}"]
    place = begin_run(folder, load_config("shapes", settings), "trial")
    rows = [
        {"stage": f"{stage}-holdout", "iteration": number, **epoch}
        for number, epoch in enumerate(epochs)
    ]
    place.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = {"stage1": mess.commands.tune._final, "stage2": mess.commands.tune._early}[stage]
    return mess.commands.tune._judged(place, mess.commands.tune._Stage(stage, stage, score))


def test_a_trial_is_judged_by_the_weights_it_keeps(tmp_path: Path) -> None:
    epochs = {"p1": 0.25, "final": 0.5}, {"p1": 0.5, "final": 0.375}
    assert of_epochs(tmp_path / "a", "stage1", "last", *epochs) == epochs[1]
    assert of_epochs(tmp_path / "b", "stage1", "best", *epochs) == epochs[0]
    each = of_epochs(tmp_path / "c", "stage2", "best", *epochs)
    assert each == {"p1": 0.5, "final": 0.5}


def test_a_rate_below_the_floor_is_refused_before_any_trial(
    trained: list[Path], tmp_path: Path
) -> None:
    floor = [*OVERRIDES, "training.stage1.min_learning_rate=0.05"]
    expected = (
        r"--rate 0\.02 cannot be tried: .*min_learning_rate 0\.05 is above learning_rate 0\.02"
    )
    with pytest.raises(MessError, match=expected):
        workflow.tune("shapes", folder=tmp_path, overrides=floor, rates=[0.2, 0.02], device="cpu")
    assert not trained


@pytest.mark.parametrize(
    ("rates", "share", "message"),
    [
        ([0.1, 0.1], 0.2, r"each once, got \[0.1, 0.1\]"),
        ([0.1, -1.0], 0.2, r"above 0, each once, got \[0.1, -1.0\]"),
        ([0.1], 1.5, r"in \(0, 1\], got 1.5"),
    ],
)
def test_rates_and_shares_that_mean_nothing_are_refused(
    rates: list[float], share: float, message: str, tmp_path: Path
) -> None:
    with pytest.raises(MessError, match=message):
        workflow.tune("shapes", folder=tmp_path, rates=rates, share=share)


def test_no_rate_with_a_finite_loss_is_told(trained: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MessError, match=r"stage1 came to no finite loss at any of the rates 0.7"):
        tuned(tmp_path, 0.7)


def test_a_damaged_record_of_earlier_rates_is_named(trained: list[Path], tmp_path: Path) -> None:
    (tmp_path / "tune.json").write_text('{"trials": [{"stage": "stage1"}]}')
    with pytest.raises(MessError, match=r"tune\.json lacks trials\[0\]\.learning_rate\. Delete it"):
        tuned(tmp_path, 0.2)
    assert not trained


def test_a_bad_line_of_the_log_is_passed_over(tmp_path: Path) -> None:
    epochs = {"p1": 0.25, "final": 0.5}, {"p1": 0.5, "final": 0.375}
    of_epochs(tmp_path / "a", "stage1", "last", *epochs)
    log = tmp_path / "a" / "metrics.jsonl"
    stage = mess.commands.tune._Stage("stage1", "stage1", mess.commands.tune._final)
    log.write_text(f"null\n{log.read_text()}}}{{\n")
    assert mess.commands.tune._judged(Run(tmp_path / "a"), stage) == epochs[1]
    log.write_text("null\n")
    with pytest.raises(MessError, match=r"tells no mIoU of held-out images after stage1\. Delete"):
        mess.commands.tune._judged(Run(tmp_path / "a"), stage)
