"""Beginning a run with a trained network of the user's own."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from mess.common.files import sha256, write_json
from mess.common.metrics import chance_miou, iou, mean_iou
from mess.common.progress import Reporter
from mess.config import BackboneConfig, Config
from mess.data import ClassTable, open_split
from mess.errors import ConfigError, WeightsError
from mess.exits import FINAL
from mess.networks.adoption import adopt_weights
from mess.networks.backbones import build_backbone
from mess.networks.backbones.outputs import channels_of
from mess.networks.network import OverprovisionedNetwork
from mess.networks.weight_files import read_weights
from mess.runs.results import CALIBRATION
from mess.runs.run import Run
from mess.sentences.adoption import adoption_lines
from mess.training.holdout import exit_counts
from mess.training.stages.recipes import RECIPES


def adopting(config: Config, weights: Path) -> Config:
    """`config` for a run whose backbone and final exit are those of the file `weights`, untrained.

    Raises ConfigError where it says that they are trained or come from elsewhere, WeightsError
    where the file is not of its network: before there is a run of it.
    """
    training = config.training
    if RECIPES[training.scheme].pretraining == "joint":
        apart = [repr(name) for name, recipe in RECIPES.items() if recipe.pretraining != "joint"]
        raise ConfigError(
            f"--adopt keeps backbone and final exit as they are, and training.scheme = "
            f"{training.scheme!r} trains them together with the exits. Set it to "
            f"{', '.join(apart[:-1])} or {apart[-1]}."
        )
    if training.start is not None:
        raise ConfigError(
            f"--adopt {weights} and training.start = {str(training.start)!r} both say where "
            "backbone and final exit come from. Leave one of them out."
        )
    if not weights.is_file():
        raise WeightsError(
            f"weights file {weights} does not exist. A run that was begun with it goes on without: "
            "leave --adopt and CONFIG out and name the run with --run."
        )
    stage1 = training.stage1.model_copy(update={"iterations": 0})
    training = training.model_copy(update={"stage1": stage1, "adopted": sha256(weights)})
    # What the backbone would start from is not read: it may be a download.
    backbone = config.backbone.model_copy(update={"weights": "none"})
    _try(weights, backbone, open_split(config.data, "train", config.seed).classes)
    return config.model_copy(update={"training": training, "backbone": backbone})


def _try(weights: Path, config: BackboneConfig, classes: ClassTable) -> None:
    if config.outputs is not None:
        channels_of(config.outputs, classes.names)
    # Names and shapes are compared here, too; nothing is copied.
    with torch.device("meta"):
        backbone = build_backbone(config, classes.num_classes)
    adopt_weights(backbone, read_weights(weights), weights)


def require_adopted(place: Run, weights: Path | None) -> Path:
    """The file that a run adopts and has nothing of yet."""
    if weights is None:
        raise ConfigError(
            f"{place.path} adopts a trained network (sha256 {place.config.training.adopted}) and "
            f"has not read it yet. Run {place.command('train-overprovisioned')} --adopt FILE."
        )
    return weights


def judge_adopted(
    place: Run,
    network: OverprovisionedNetwork,
    weights: Path,
    device: torch.device,
    reporter: Reporter,
) -> None:
    """Say how good the adopted network is on the calibration split, and keep it in the run.

    Before anything is trained: that its channels are not the classes shows here.
    """
    adopted = place.config.training.adopted
    assert adopted is not None
    found = place.adoption
    # There already where a run was killed between this and its first checkpoint.
    if found is None or found["sha256"] != adopted:
        config = place.config
        data = open_split(config.data, CALIBRATION, config.seed)
        with reporter.task("evaluating the adopted network", len(data)) as task:
            label, counts = exit_counts(network, data, config, [FINAL], device, task.advance)
        intersection, predicted = counts[FINAL]
        per_class = iou(intersection, predicted, label).tolist()
        found = {
            "file": weights.name,
            "sha256": adopted,
            "images": len({data.image_id(index) for index in range(len(data))}),
            "miou": float(mean_iou(intersection, predicted, label)),
            "chance": chance_miou(label),
            "classes": [
                {"class": name, "iou": None if math.isnan(value) else value}
                for name, value in zip(data.classes.names, per_class, strict=True)
            ],
        }
        write_json(place.adoption_file, found)
    for line in adoption_lines(found):
        reporter.message(line)
