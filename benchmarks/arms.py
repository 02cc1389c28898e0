"""Ways to train, each at its own best learning rate: what the benchmarks of training compare.

The rates of `START` are tried with the first seed, a step further where the best is at an end, and
judged on held-out training images; the other seeds train with the best. Workers train with one
thread each. Runs lie in the work folder, results accumulate in the output: killed at any moment,
the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from results import Results, Row, machine_facts

from mess.commands.train import train_network
from mess.common.progress import Silent
from mess.config import load_config
from mess.data import open_split
from mess.errors import TrainingError
from mess.exits import FINAL
from mess.runs.network import trained_network
from mess.runs.run import begin_run
from mess.training.holdout import miou_by_exit

NETWORK, EXITS = 1200, 400
"""Iterations of stage 1 and of stage 2, where an arm has no own."""

RATES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
START = (0.05, 0.1, 0.2)
"""Tried first; neighbours of an end that is best follow."""

SPLITS = ("calibration", "test")

COMMON = {
    "data.holdout": 0.15,
    "exits.points": ["down1", "down2", "down3", "down4", "up3"],
    "exits.crm": [1],
    "exits.blocks": [0],
    "exits.rdi": [False],
    "exits.heads": ["fcn"],
    "exits.skips": [False],  # the early heads of stage 1 have none either
    "exits.max_exit_cost": 0.999,  # early exits alone: the final one has its own head
    "exits.max_exit_share": 100.0,
    # Rates of `RATES` are those of SGD, which all that is compared is trained by.
    "training.stage1.optimiser": "sgd",
    "training.stage1.iterations": NETWORK,
    "training.stage2.iterations": EXITS,
}


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to train: settings over the common ones, and the arm whose network it starts from.

    `rate` is the setting that is tuned, by the mean mIoU on held-out images of what is `judged`.
    """

    name: str
    settings: Mapping[str, Any]
    start: str | None = None
    rate: str = "training.stage1.learning_rate"
    scale: Mapping[str, float] = field(default_factory=dict)
    """Other rates, in proportion to the one that is tuned."""
    judged: Literal["early", "final", "all"] = "early"
    """Exits; other arms may start from the backbone where the final one is among them."""
    again: bool = False
    """Whether the network of `start` is trained once more, the same, before the exits."""


def exits_alone(name: str, start: str, settings: Mapping[str, Any]) -> Arm:
    """Exits on the frozen backbone of another arm."""
    own = {"training.scheme": "frozen", "training.stage1.iterations": 0, **settings}
    return Arm(name, own, start, rate="training.stage2.learning_rate")


@dataclass(frozen=True)
class Training:
    """One run of an arm."""

    arm: Arm
    seed: int
    rate: float
    start: Path | None
    settings: tuple[tuple[str, float], ...] = ()
    """Rates of the network that is trained once more."""


class Study:
    """Which trainings are due, by what is known so far."""

    def __init__(
        self, arms: Sequence[Arm], results: Results, work: Path, seeds: Sequence[int]
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.results, self.work, self.seeds = results, work, seeds

    def due(self, names: Sequence[str]) -> Iterator[Training]:
        """What can be trained now for the arms, without what is measured."""
        for name in names:
            arm = self.arms[name]
            if arm.start and self.rate(arm.start) is None:
                yield from self.due([arm.start])
                continue
            known = self.known(name)
            for rate in self._rates(name):
                if rate not in known:
                    yield from self._training(arm, self.seeds[0], rate)
            best = self.rate(name)
            if best is not None:
                for seed in self.seeds[1:]:
                    if not self._measured(name, seed, best):
                        yield from self._training(arm, seed, best)

    def _training(self, arm: Arm, seed: int, rate: float) -> Iterator[Training]:
        if not arm.start:
            yield Training(arm, seed, rate, None)
            return
        before = self.rate(arm.start)
        assert before is not None
        if arm.again:
            yield Training(arm, seed, rate, None, ((self.arms[arm.start].rate, before),))
        elif not self._measured(arm.start, seed, before):
            yield from self._training(self.arms[arm.start], seed, before)
        else:
            yield Training(arm, seed, rate, folder(self.work, arm.start, seed, before))

    def _rates(self, name: str) -> Sequence[float]:
        """The rates to try: the first ones, and neighbours of a best one at an end."""
        known = self.known(name)
        if not set(START) <= set(known):
            return START
        best = max(known, key=lambda rate: known[rate])
        position = RATES.index(best)
        return [*known, *RATES[max(position - 1, 0) : position + 2]]

    def rate(self, name: str) -> float | None:
        """The best rate of an arm, where it is known."""
        known = self.known(name)
        if not known or any(rate not in known for rate in self._rates(name)):
            return None
        return max(known, key=lambda rate: known[rate])

    def known(self, name: str) -> dict[float, float]:
        """The score on held-out images of the rates tried with the first seed."""
        return {
            row["rate"]: row["score"]
            for row in self.results.of("training")
            if row["arm"] == name and row["seed"] == self.seeds[0]
        }

    def _measured(self, name: str, seed: int, rate: float) -> bool:
        case = _case(name, seed, rate)
        return any(row["case"] == case for row in self.results.rows)


def run_study(
    arms: Sequence[Arm],
    tables: Mapping[str, Sequence[str]],
    print_tables: Callable[[Study, Sequence[str]], Iterator[str]],
    output: str,
) -> None:
    """The command line of a benchmark: train what its tables need, and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", default=list(tables), choices=list(tables))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--output", type=Path, default=Path(output))
    options = parser.parse_args()
    results = Results(options.output, machine_facts("torch", "torchvision", "numpy"))
    study = Study(arms, results, options.work, options.seeds)
    names = list(dict.fromkeys(name for table in options.tables for name in tables[table]))
    run_all(study, names, options)
    print("\n\n".join(print_tables(study, options.tables)))


def run_all(study: Study, names: Sequence[str], options: argparse.Namespace) -> None:
    """Train what is due until nothing is, so many at once."""
    running: dict[Future[Row], Training] = {}
    spawn = get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        while True:
            for training in dict.fromkeys(study.due(names)):
                if len(running) < options.workers and training not in running.values():
                    running[pool.submit(measure, training, options)] = training
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                training = running.pop(done)
                case = _case(training.arm.name, training.seed, training.rate)
                study.results.measure(case, done.result)


def measure(training: Training, options: argparse.Namespace) -> Row:
    """Train; the score on held-out images, and the mIoU of every exit on both splits."""
    torch.set_num_threads(1)
    arm = training.arm
    settings = {
        "seed": training.seed,
        **arm.settings,
        **dict(training.settings),
        arm.rate: training.rate,
        **{name: factor * training.rate for name, factor in arm.scale.items()},
    }
    if training.start:
        settings["training.start"] = training.start.resolve()
    overrides = [*_overrides(COMMON), *options.settings, *_overrides(settings)]
    config = load_config(options.config, overrides)
    place = begin_run(folder(options.work, arm.name, training.seed, training.rate), config, "")
    try:
        if not place.weights.exists():
            with place.locked():
                train_network(place, "cpu", Silent())
    except TrainingError as error:
        return {"score": 0.0, "failed": str(error)}
    last = _held_out(place.metrics)
    early = [value for name, value in last.items() if name != FINAL]
    scored = {"early": early, "final": [last[FINAL]], "all": [*early, last[FINAL]]}[arm.judged]
    device = torch.device("cpu")
    network = trained_network(place, device)
    exits = [*network.exits, FINAL]
    miou = {
        split: miou_by_exit(
            network, open_split(config.data, split, training.seed), config, exits, device
        )
        for split in SPLITS
    }
    macs = {row["exit_id"]: row["backbone_macs"] + row["exit_macs"] for row in place.exit_rows}
    return {"score": float(np.mean(scored)), "miou": miou, "path_macs": macs}


def _held_out(metrics: Path) -> dict[str, float]:
    rows = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    last = [row for row in rows if row["stage"].endswith("-holdout")][-1]
    return {name: value for name, value in last.items() if name not in ("stage", "iteration")}


def _case(name: str, seed: int, rate: float) -> Row:
    return {"part": "training", "arm": name, "seed": seed, "rate": rate}


def folder(work: Path, name: str, seed: int, rate: float) -> Path:
    words = name.replace(",", "").replace("+ ", "").replace(" ", "-").replace("/", "-").lower()
    return work / f"{words}-{seed}-{rate:g}"


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_toml(value)}" for key, value in settings.items()]


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str | Path) else str(value)
