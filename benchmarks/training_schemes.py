"""The papers' training schemes on CamVid: Tables 5 and 6 of MESS, Tables I-IV of BranDeepLabV3.

    python benchmarks/training_schemes.py --data CAMVID --weights FILE --work DIR [--parts ...]
        [--seeds 0 1 2] [--threads N] [--output FILE]

MobileNetV2 at 240×180, the same iterations for all. Runs lie in the work folder, results
accumulate in the output: killed at any moment, the same command goes on. Prints the tables of
what has been measured so far.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Results, Row, machine_facts

from mess.commands.train import train_network
from mess.common.progress import Silent
from mess.config import load_config
from mess.data import open_split
from mess.exits import FINAL
from mess.runs.network import trained_network
from mess.runs.run import begin_run
from mess.training.holdout import miou_by_exit

PRETRAINING, EXITS, BRANCHES, LONG_BRANCHES = 300, 200, 100, 400
"""Iterations of stage 1, of stage 2, and of branches with the trained network they are put on.

What trains backbone and exits at once from the start gets those of both stages, and once those of
stage 1 alone.
"""

SPLITS = ("calibration", "test")

_COMMON = {
    "data.size": [180, 240],
    "data.holdout": 0.1,
    "exits.points": 6,
    "exits.crm": [1],
    "exits.blocks": [0],
    "exits.rdi": [False],
    "exits.heads": ["fcn"],
    "exits.max_exit_cost": 0.999,  # early exits alone: the final one has its own head
    "exits.max_exit_share": 100.0,
    "training.stage1.iterations": PRETRAINING,
    "training.stage1.learning_rate": 0.02,
    "training.stage1.head_learning_rate": 0.05,
    "training.stage2.iterations": EXITS,
    "training.stage2.learning_rate": 0.05,
}


@dataclass(frozen=True)
class Arm:
    """One way to train: settings over the common ones, and the arm whose network it starts from."""

    part: str
    name: str
    settings: Mapping[str, Any]
    start: str | None = None


def _same_backbone(name: str, scheme: str, **settings: Any) -> Arm:
    """Exits alone, on the backbone of two-stage training: its stage 1 would be the same again."""
    own = {"training.scheme": scheme, "training.stage1.iterations": 0, **settings}
    return Arm("losses", name, own, start="two-stage")


def _branches(name: str, count: int, **settings: Any) -> Arm:
    """DeepLab branches on a trained network; the papers' ratio of rates, raised for few steps."""
    return Arm(
        "branches",
        name,
        {
            "training.scheme": "branches",
            "exits.points": count + 1,
            "exits.heads": ["dlb"],
            "exits.dlb_channels": 64,
            # Without branches nothing is cheap enough: a control that is trained just as long.
            "exits.max_exit_cost": 100.0 if count else 1e-9,
            "exits.max_exit_share": 100.0,
            "training.stage1.iterations": BRANCHES,
            "training.stage1.learning_rate": 2.5e-4,
            "training.stage1.head_learning_rate": 2.75e-2,
            "training.stage1.exit_learning_rate": 2.5e-2,
            **settings,
        },
        start="frozen",
    )


ARMS = [
    Arm("schemes", "two-stage", {"training.scheme": "two-stage"}),
    Arm("schemes", "frozen", {"training.scheme": "frozen"}),
    Arm(
        "schemes",
        "e2e",
        {
            "training.scheme": "e2e",
            "training.stage1.iterations": PRETRAINING + EXITS,
            "training.stage1.exit_learning_rate": 0.05,
        },
    ),
    Arm(
        "schemes",
        "e2e, short",  # its backbone trained as long as that of the others
        {"training.scheme": "e2e", "training.stage1.exit_learning_rate": 0.05},
    ),
    _same_backbone("ce", "two-stage", **{"training.loss": "ce"}),
    _same_backbone("kd", "kd"),
    _same_backbone("pfd, bfloat16", "two-stage", **{"training.stage2.precision": "bfloat16"}),
    _same_backbone("self-distill", "self-distill"),
    *(_branches(f"{count} branches", count) for count in (0, 3, 5, 7, 9)),
    # For the exit policies of the 2025 paper: early exits that have learned something.
    *(
        _branches(
            f"7 branches, {loss}",
            7,
            **{"training.stage1.iterations": LONG_BRANCHES, "training.loss": loss},
        )
        for loss in ("lovasz", "ce")
    ),
]

TABLES = {
    "schemes": ("two-stage", "frozen", "e2e", "e2e, short"),
    "losses": ("two-stage", "ce", "kd", "self-distill", "pfd, bfloat16"),
    "branches": ("0 branches", "3 branches", "5 branches", "7 branches", "9 branches"),
    "branch losses": ("7 branches, lovasz", "7 branches, ce"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("training-schemes.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(options.output, machine_facts("torch", "torchvision", "numpy"))
    wanted = {name for part in options.parts for name in TABLES[part]}
    for seed in options.seeds:
        for arm in ARMS:
            if arm.name in wanted or any(a.start == arm.name and a.name in wanted for a in ARMS):
                case = {"part": arm.part, "arm": arm.name, "seed": seed}
                results.measure(case, lambda arm=arm, seed=seed: measure(arm, seed, options))
    print("\n\n".join(tables(results)))


def measure(arm: Arm, seed: int, options: argparse.Namespace) -> Row:
    """Train, and the mIoU of every exit on both splits; no time where a killed run went on."""
    run = folder(options.work, arm.name, seed)
    settings = {
        **_COMMON,
        "seed": seed,
        "data.root": options.data.resolve(),
        "backbone.weights": options.weights.resolve(),
        **arm.settings,
    }
    if arm.start:
        settings["training.start"] = folder(options.work, arm.start, seed).resolve()
    config = load_config("camvid", [f"{key}={_toml(value)}" for key, value in settings.items()])
    place = begin_run(run, config, arm.name)
    whole = not (place.weights.exists() or place.checkpoint.exists())
    begun = time.monotonic()
    if not place.weights.exists():
        with place.locked():
            train_network(place, "cpu", Silent())
    seconds = round(time.monotonic() - begun, 1) if whole else None
    device = torch.device("cpu")
    network = trained_network(place, device)
    exits = [*network.exits, FINAL]
    miou = {
        split: miou_by_exit(network, open_split(config.data, split, seed), config, exits, device)
        for split in SPLITS
    }
    return {"seconds": seconds, "threads": torch.get_num_threads(), "miou": miou}


def folder(work: Path, name: str, seed: int) -> Path:
    return work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def tables(results: Results) -> Iterator[str]:
    """Markdown, a table a part and split: mean ± deviation over the seeds."""
    miou = {
        (case["arm"], case["seed"]): case["miou"] for part in TABLES for case in results.of(part)
    }
    for part, arms in TABLES.items():
        for split in SPLITS:
            measured = {
                arm: {seed: m[split] for (name, seed), m in miou.items() if name == arm}
                for arm in arms
            }
            measured = {arm: seeds for arm, seeds in measured.items() if seeds}
            if measured:
                final_only = part == "branches"
                yield f"{part}, {split}\n\n{_table(measured, final_only=final_only)}"


def _table(measured: Mapping[str, Mapping[int, Mapping[str, float]]], *, final_only: bool) -> str:
    """The first arm as it is, the others also by their difference to it, seed by seed."""
    reference = next(iter(measured.values()))
    exits = [FINAL] if final_only else list(next(iter(reference.values())))
    lines = [
        "| | seeds | " + " | ".join(exit_id.split("-")[0] for exit_id in exits) + " |",
        "| --- |" + " --- |" * (len(exits) + 1),
    ]
    for arm, seeds in measured.items():
        cells = [_spread([miou[exit_id] for miou in seeds.values()]) for exit_id in exits]
        lines.append(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |")
        if seeds is not reference:
            both = sorted(set(seeds) & set(reference))
            cells = [
                _spread([seeds[seed][e] - reference[seed][e] for seed in both], sign="+")
                for e in exits
            ]
            lines.append(f"| – difference | {len(both)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.3f}{deviation}"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str | Path) else str(value)


if __name__ == "__main__":
    main()
