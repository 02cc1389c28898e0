"""The papers' training schemes: Tables 5 and 6 of MESS, Tables I-IV of BranDeepLabV3.

    python benchmarks/training_schemes.py --work DIR [--tables ...] [--seeds 0 1 2] [--workers 2]
        [--output FILE] [--config quickstart] [--set KEY=VALUE ...]

Every arm has its own best learning rate: those of `RATES` that stand for it are tried with the
first seed, a step further where the best is at an end, and judged on held-out training images; the
other seeds train with the best. Arms that are compared have the same iterations. Workers train with
one thread each. Runs lie in the work folder, results accumulate in the output: killed at any
moment, the same command goes on. Prints the tables of what has been measured so far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

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

NETWORK, EXITS, BRANCHES = 1200, 400, 400
"""Iterations of stage 1, of stage 2, and of branches with the trained network they are put on."""

RATES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
START = (0.05, 0.1, 0.2)
"""Tried first; neighbours of an end that is best follow."""

SPLITS = ("calibration", "test")

_COMMON = {
    "data.holdout": 0.15,
    "exits.points": ["down1", "down2", "down3", "down4", "up3"],
    "exits.crm": [1],
    "exits.blocks": [0],
    "exits.rdi": [False],
    "exits.heads": ["fcn"],
    "exits.skips": [False],  # the early heads of stage 1 have none either
    "exits.max_exit_cost": 0.999,  # early exits alone: the final one has its own head
    "exits.max_exit_share": 100.0,
    "training.stage1.iterations": NETWORK,
    "training.stage2.iterations": EXITS,
}


@dataclass(frozen=True)
class Arm:
    """One way to train: settings over the common ones, and the arm whose network it starts from.

    `rate` is the setting that is tuned, by the mIoU on held-out images of what the arm trains.
    """

    name: str
    settings: Mapping[str, Any]
    start: str | None = None
    rate: str = "training.stage1.learning_rate"
    scale: Mapping[str, float] = field(default_factory=dict)
    """Other rates, in proportion to the one that is tuned."""


def _exits(name: str, start: str, **settings: Any) -> Arm:
    """Exits alone, on the backbone of another arm."""
    own = {"training.scheme": "frozen", "training.stage1.iterations": 0, **settings}
    return Arm(name, own, start, rate="training.stage2.learning_rate")


def _branches(count: int) -> Arm:
    """DeepLab branches on a trained network, one at its last point; rates in proportion."""
    points = {0: [], 3: ["down2", "down4"], 6: _COMMON["exits.points"]}[count]
    return Arm(
        f"{count} branches",
        {
            "training.scheme": "branches",
            "training.keep": "last",
            # The control has candidates, of which none is cheap enough.
            "exits.points": points or ["down4"],
            "exits.max_exit_cost": 100.0 if count else 1e-9,
            "exits.heads": ["dlb"],
            "exits.dlb_channels": 64,
            "training.stage1.iterations": BRANCHES,
        },
        start="plain",
        rate="training.stage1.exit_learning_rate",
        scale={"training.stage1.learning_rate": 0.01, "training.stage1.head_learning_rate": 1.1},
    )


_HEADS = {"training.stage2.start": "stage1", "training.stage2.iterations": 0}
_JOINT = {"training.scheme": "e2e"}

ARMS = {
    arm.name: arm
    for arm in (
        # Without early heads the exits are anyone's; they are not told.
        Arm("plain", {"training.scheme": "frozen", "training.stage2.iterations": 1}),
        Arm("exit-aware", {"training.scheme": "two-stage", **_HEADS}),
        Arm("e2e", _JOINT),
        Arm("e2e, longer", {**_JOINT, "training.stage1.iterations": NETWORK + EXITS}),
        _exits("frozen", "plain"),
        _exits("two-stage, CE", "exit-aware"),
        _exits("two-stage, KD", "exit-aware", **{"training.loss": "kd"}),
        _exits("two-stage, CE + KD", "exit-aware", **{"training.loss": "self-distill"}),
        _exits("two-stage, PFD", "exit-aware", **{"training.loss": "pfd"}),
        *(_branches(count) for count in (0, 3, 6)),
    )
}

TABLES = {
    "schemes": ("plain", "e2e", "e2e, longer", "exit-aware", "frozen", "two-stage, CE"),
    "losses": ("two-stage, CE", "two-stage, KD", "two-stage, CE + KD", "two-stage, PFD"),
    "branches": ("0 branches", "3 branches", "6 branches"),
}
FINAL_ALONE = {"plain", "0 branches", "3 branches", "6 branches"}
"""Arms whose early exits are not what their table is about."""


@dataclass(frozen=True)
class Training:
    """One run of an arm."""

    arm: str
    seed: int
    rate: float
    start: Path | None


class Study:
    """Which trainings are due, by what is known so far."""

    def __init__(self, results: Results, work: Path, seeds: Sequence[int]) -> None:
        self.results, self.work, self.seeds = results, work, seeds

    def due(self, names: Sequence[str]) -> Iterator[Training]:
        """What can be trained now for the arms, without what is measured."""
        for name in names:
            arm = ARMS[name]
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
        start = None
        if arm.start:
            before = self.rate(arm.start)
            assert before is not None
            if not self._measured(arm.start, seed, before):
                yield from self._training(ARMS[arm.start], seed, before)
                return
            start = folder(self.work, arm.start, seed, before)
        yield Training(arm.name, seed, rate, start)

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
        case = _case(Training(name, seed, rate, None))
        return any(row["case"] == case for row in self.results.rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--output", type=Path, default=Path("training-schemes.json"))
    options = parser.parse_args()
    results = Results(options.output, machine_facts("torch", "torchvision", "numpy"))
    study = Study(results, options.work, options.seeds)
    names = list(dict.fromkeys(name for table in options.tables for name in TABLES[table]))
    run_all(study, names, options)
    print("\n\n".join(tables(study, options.tables)))


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
                case = _case(running.pop(done))
                study.results.measure(case, done.result)


def measure(training: Training, options: argparse.Namespace) -> Row:
    """Train; the score on held-out images, and the mIoU of every exit on both splits."""
    torch.set_num_threads(1)
    arm = ARMS[training.arm]
    rates = {
        arm.rate: training.rate,
        **{name: factor * training.rate for name, factor in arm.scale.items()},
    }
    settings = {**_COMMON, "seed": training.seed, **arm.settings, **rates}
    if training.start:
        settings["training.start"] = training.start.resolve()
    overrides = [f"{key}={_toml(value)}" for key, value in settings.items()]
    config = load_config(options.config, [*options.settings, *overrides])
    place = begin_run(folder(options.work, arm.name, training.seed, training.rate), config, "")
    try:
        if not place.weights.exists():
            with place.locked():
                train_network(place, "cpu", Silent())
    except TrainingError as error:
        return {"score": 0.0, "failed": str(error)}
    last = _held_out(place.metrics)
    early = [value for name, value in last.items() if name != FINAL]
    scored = [last[FINAL]] if arm.name in FINAL_ALONE else early
    if arm.settings.get("training.scheme") == "e2e" or arm.name == "exit-aware":
        # The final exit is trained, too, and others start from its backbone.
        scored = [*early, last[FINAL]]
    device = torch.device("cpu")
    network = trained_network(place, device)
    exits = [*network.exits, FINAL]
    miou = {
        split: miou_by_exit(
            network, open_split(config.data, split, training.seed), config, exits, device
        )
        for split in SPLITS
    }
    return {"score": float(np.mean(scored)), "miou": miou}


def _held_out(metrics: Path) -> dict[str, float]:
    rows = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    last = [row for row in rows if row["stage"].endswith("-holdout")][-1]
    return {name: value for name, value in last.items() if name not in ("stage", "iteration")}


def _case(training: Training) -> Row:
    return {
        "part": "training", "arm": training.arm, "seed": training.seed, "rate": training.rate,
    }  # fmt: skip


def folder(work: Path, name: str, seed: int, rate: float) -> Path:
    words = name.replace(",", "").replace("+ ", "").replace(" ", "-").lower()
    return work / f"{words}-{seed}-{rate:g}"


def tables(study: Study, wanted: Sequence[str]) -> Iterator[str]:
    """Markdown, a table a part and split: mean ± deviation over the seeds."""
    for table in wanted:
        for split in SPLITS:
            measured = {}
            for name in TABLES[table]:
                rate = study.rate(name)
                rows = {
                    row["seed"]: row["miou"][split]
                    for row in study.results.of("training")
                    if row["arm"] == name and row["rate"] == rate and "miou" in row
                }
                if rows:
                    measured[name] = rate, rows
            if measured:
                yield f"{table}, {split}\n\n{_table(measured, final_only=table == 'branches')}"


def _table(
    measured: Mapping[str, tuple[float | None, Mapping[int, Mapping[str, float]]]],
    *,
    final_only: bool,
) -> str:
    """An arm a row, with the rate that was best for it."""
    full = max((rows for _, rows in measured.values()), key=lambda rows: len(rows[min(rows)]))
    exits = [FINAL] if final_only else list(full[min(full)])
    lines = [
        "| | rate | seeds | " + " | ".join(exit_id.split("-")[0] for exit_id in exits) + " |",
        "| --- |" + " --- |" * (len(exits) + 2),
    ]
    for name, (rate, rows) in measured.items():
        cells = [
            ""
            if name in FINAL_ALONE and exit_id != FINAL
            else _spread([miou[exit_id] for miou in rows.values() if exit_id in miou])
            for exit_id in exits
        ]
        lines.append(f"| {name} | {rate:g} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str | Path) else str(value)


if __name__ == "__main__":
    main()
