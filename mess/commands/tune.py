"""Learning rates by short trainings, judged on training images that are held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from mess.commands.train import train_network
from mess.common.files import write_json
from mess.common.progress import Reporter
from mess.common.records import read_log, read_record
from mess.config import Config, StageConfig, parse_config
from mess.data import open_split
from mess.errors import ConfigError, MessError, TrainingError
from mess.exits import FINAL
from mess.networks.candidates import KEPT, candidates
from mess.runs.run import Run, begin_run
from mess.training.logs import HOLDOUT
from mess.training.stages.recipes import RECIPES, keeps_best

RATES = {"sgd": (0.01, 0.02, 0.05, 0.1, 0.2), "adamw": (0.0003, 0.001, 0.003)}
"""That are tried where none are given, by a stage's optimiser."""

SHARE = 0.2
"""Of the configured iterations that a trial gets."""

_HELD_OUT = 0.1
"""Of the train split, where the configuration holds nothing out."""

Score = Callable[[dict[str, float]], float]


class Trial(TypedDict):
    """A short training with one learning rate."""

    stage: str
    learning_rate: float
    iterations: int
    miou: float | None
    """On the held-out images: of the final exit after stage 1, else the mean over the early exits;
    None where the training came to no finite loss."""


class Tuning(TypedDict):
    """What `mess tune` found; tune.json."""

    trials: list[Trial]
    settings: list[str]
    """KEY=VALUE of the best, as `--set` takes them."""
    at_the_end: list[str]
    """Stages whose best rate is the smallest or the largest that was tried."""


class _Stage(NamedTuple):
    """A stage in the log, the key of its rate, and what of its exits counts."""

    name: str
    key: str
    score: Score


def tune(
    config: Config, folder: Path, rates: Sequence[float] | None, share: float, device: str,
    reporter: Reporter,
) -> Tuning:  # fmt: skip
    """Train shortly with each rate: stage 1, then stage 2 on the best backbone of those.

    A stage without iterations, or without exits, is left out. Every trial is a run below `folder`:
    what is finished is not done again, and rates of earlier calls are compared with these. Raises
    MessError for rates or a share that mean nothing, and where no rate came to an end.
    """
    if not config.data.holdout:
        data = config.data.model_copy(update={"holdout": _HELD_OUT})
        config = config.model_copy(update={"data": data})
    first_rates, second_rates = (
        list(dict.fromkeys([*_earlier(folder, key), *_sound(config, key, rates, share)]))
        for key in ("stage1", "stage2")
    )
    joint = RECIPES[config.training.scheme].pretraining == "joint"
    trials: list[Trial] = []
    best: list[Trial] = []
    start, behind = config.training.start, ""
    if joint or config.training.stage1.iterations:
        stage = _Stage("joint", "stage1", _mean) if joint else _Stage("stage1", "stage1", _final)
        trials = [
            _tried(_first(config, rate, share), _folder(folder, stage, rate), stage, device,
                   reporter)
            for rate in first_rates
        ]  # fmt: skip
        best.append(_best(trials))
        chosen = best[0]["learning_rate"]
        # Another backbone would be another trial.
        start, behind = _folder(folder, stage, chosen), f"-on-{chosen:g}"
    if not joint and config.training.stage2.iterations and _has_exits(config):
        if config.training.stage2.start == "stage1":
            reporter.message(
                "Stage 2 is tried with exits that start from the seed: the early heads of stage 1 "
                "are in no run's weights."
            )
        stage = _Stage("stage2", "stage2", _early)
        later = [
            _tried(_second(config, rate, share, start), _folder(folder, stage, rate, behind), stage,
                   device, reporter)
            for rate in second_rates
        ]  # fmt: skip
        best.append(_best(later))
        trials += later
    found = Tuning(
        trials=trials, settings=_settings(config, best),
        at_the_end=[each["stage"] for each in best if _is_at_the_end(each, trials)],
    )  # fmt: skip
    write_json(folder / "tune.json", found)
    return found


def _is_at_the_end(found: Trial, trials: Sequence[Trial]) -> bool:
    rates = [trial["learning_rate"] for trial in trials if trial["stage"] == found["stage"]]
    return found["learning_rate"] in (min(rates), max(rates))


def _earlier(folder: Path, key: str) -> list[float]:
    """The rates that were tried for a stage before in the folder."""
    file = folder / "tune.json"
    if not file.exists():
        return []
    again = "Delete it and name the rates with --rate: trials that are finished are not done again."
    trials = read_record(file, Tuning, again)["trials"]
    return [trial["learning_rate"] for trial in trials if trial["stage"] == key]


def _sound(
    config: Config, key: str, given: Sequence[float] | None, share: float
) -> Sequence[float]:
    """The rates to try for a stage, where they and the share can be meant."""
    stage = config.training.stage1 if key == "stage1" else config.training.stage2
    rates = given or RATES[stage.optimiser]
    if min(rates) <= 0 or len(set(rates)) < len(rates):
        raise MessError(f"--rate takes learning rates above 0, each once, got {list(rates)}.")
    if not 0 < share <= 1:
        raise MessError(f"--share is of the configured iterations, in (0, 1], got {share:g}.")
    for rate in rates:
        trial = _first(config, rate, share) if key == "stage1" else _second(config, rate, share)
        try:
            parse_config(trial.model_dump())
        except ConfigError as error:
            raise MessError(f"--rate {rate:g} cannot be tried: {error}") from error
    return rates


def _has_exits(config: Config) -> bool:
    classes = open_split(config.data, "train", config.seed).classes
    rows = candidates(config, classes.num_classes)
    return any(row.status == KEPT and row.exit_id != FINAL for row in rows)


def _first(config: Config, rate: float, share: float) -> Config:
    """Stage 1 at `rate`, other parts of the network in the same proportion to it as configured."""
    old = config.training.stage1
    factor = rate / old.learning_rate
    others = ("head_learning_rate", "exit_learning_rate")
    stage1 = old.model_copy(
        update={
            **_short(old, share),
            "learning_rate": rate,
            **{n: factor * value for n in others if (value := getattr(old, n)) is not None},
        }
    )
    # As short as may be: it is another trial's.
    stage2 = config.training.stage2.model_copy(update={"iterations": 1, "warmup": 0})
    return _with(config, stage1=stage1, stage2=stage2)


def _second(config: Config, rate: float, share: float, start: Path | None = None) -> Config:
    stage1 = config.training.stage1.model_copy(update={"iterations": 0})
    old = config.training.stage2
    changes = {**_short(old, share), "learning_rate": rate, "start": "seed"}
    return _with(config, stage1=stage1, stage2=old.model_copy(update=changes), start=start)


def _short(stage: StageConfig, share: float) -> dict[str, int]:
    """A stage's iterations, and those of its warm-up, for a trial."""
    iterations = max(round(share * stage.iterations), 1)
    return {"iterations": iterations, "warmup": min(round(share * stage.warmup), iterations - 1)}


def _with(config: Config, **changes: object) -> Config:
    training = config.training.model_copy(update=changes)
    return config.model_copy(update={"training": training})


def _tried(config: Config, path: Path, stage: _Stage, device: str, reporter: Reporter) -> Trial:
    place = Run(path)
    if place.config_file.exists() and not place.config.trains_as(config):
        raise MessError(
            f"{path} is a trial of another configuration. Name another folder with --folder, or "
            "delete it."
        )
    place = begin_run(path, config, "tune")
    settings = config.training.stage2 if stage.key == "stage2" else config.training.stage1
    rate, miou = settings.learning_rate, None
    try:
        if not place.weights.exists():
            reporter.message(f"{stage.name} at a learning rate of {rate:g}:")
            with place.locked():
                train_network(place, device, reporter)
        miou = stage.score(_judged(place, stage))
    except TrainingError as error:
        reporter.message(f"{stage.name} at {rate:g} came to nothing: {error}")
    return Trial(stage=stage.key, learning_rate=rate, iterations=settings.iterations, miou=miou)


def _folder(folder: Path, stage: _Stage, rate: float, behind: str = "") -> Path:
    return folder / f"{stage.key}-{rate:g}{behind}"


def _judged(place: Run, stage: _Stage) -> dict[str, float]:
    """The mIoU of each exit on the held-out images, with the weights that the stage ended with.

    Raises MessError where the log of the trial tells none.
    """
    # Groups of exits are logged one after another, as stage2-1of4 and so on.
    by_group: dict[str, list[dict[str, float]]] = {}
    for row in read_log(place.metrics):
        name = row["stage"].removesuffix(HOLDOUT)
        if name != row["stage"] and (name == stage.name or name.startswith(f"{stage.name}-")):
            of_exits = {key: row[key] for key in row if key not in ("stage", "iteration")}
            by_group.setdefault(name, []).append(of_exits)
    best = keeps_best(place.config)
    found: dict[str, float] = {}
    for epochs in by_group.values():
        if not best:
            found |= epochs[-1]
        elif stage.key == "stage2":
            # Each exit has a best epoch of its own.
            found |= {name: max(epoch[name] for epoch in epochs) for name in epochs[-1]}
        else:
            found |= max(epochs, key=stage.score)
    if not found:
        raise MessError(
            f"{place.metrics} tells no mIoU of held-out images after {stage.name}. Delete "
            f"{place.path} and run the same command again: it is trained anew."
        )
    return found


def _final(miou: dict[str, float]) -> float:
    return miou[FINAL]


def _mean(miou: dict[str, float]) -> float:
    return float(np.mean(list(miou.values())))


def _early(miou: dict[str, float]) -> float:
    return float(np.mean([value for name, value in miou.items() if name != FINAL]))


def _best(trials: Sequence[Trial]) -> Trial:
    ended = [trial for trial in trials if trial["miou"] is not None]
    if not ended:
        tried = ", ".join(f"{trial['learning_rate']:g}" for trial in trials)
        raise MessError(
            f"{trials[0]['stage']} came to no finite loss at any of the rates {tried}. Try smaller "
            "ones with --rate."
        )
    return max(ended, key=lambda trial: trial["miou"] or -math.inf)


def _settings(config: Config, best: Sequence[Trial]) -> list[str]:
    settings = []
    for trial in best:
        stage = config.training.stage1 if trial["stage"] == "stage1" else config.training.stage2
        factor = trial["learning_rate"] / stage.learning_rate
        settings += [
            f"training.{trial['stage']}.{name}={factor * value:g}"
            for name, value in stage
            if name in ("learning_rate", "head_learning_rate", "exit_learning_rate") and value
        ]
    return settings
