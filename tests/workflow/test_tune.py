"""Learning rates by short trainings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import mess.commands.tune
from mess import workflow
from mess.commands.train import train_network
from mess.errors import MessError, TrainingError
from mess.runs.run import Run
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
