"""What makes exits better, one idea at a time: heads, skips, rates, starts, losses.

    python benchmarks/exit_ideas.py --work DIR [--tables ...] [--seeds 0 1 2] [--workers 2]
        [--output FILE] [--config quickstart] [--set KEY=VALUE ...]

Every arm has its own best learning rate (`arms.py`) and, but where more is the idea, the same
iterations. An idea is compared with the plain exits in two ways: at each point, and at equal cost:
each of its exits with the best plain one, on the calibration split, that costs no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from arms import EXITS, Arm, Study, exits_alone, run_study, spread
from results import Row

from mess.exits import FINAL

NETWORK_OF = "exit-aware"
PLAIN = "plain"
"""An FCN head at each point, by PFD, on every second pixel's label."""

_OWN = {
    "training.scheme": "two-stage",
    "training.stage2.start": "stage1",
    "training.stage2.iterations": 0,
}
_PLAIN = {"training.loss": "pfd", "training.stage2.pixel_stride": 2}
_SHAPES = {"exits.crm": [1, 2], "exits.blocks": [0, 2]}
_DEEPLAB = {"exits.heads": ["dlb"], "exits.dlb_channels": 64}
_UNCHANGED = {"data.crop": 1.0, "data.scale": [1.0, 1.0], "data.jitter": 0.0}
_LONG = {"training.stage2.iterations": 3 * EXITS}


def _idea(name: str, settings: Mapping[str, Any], start: str = NETWORK_OF) -> Arm:
    return exits_alone(name, start, {**_PLAIN, **settings})


ARMS = (
    Arm(NETWORK_OF, _OWN, judged="all"),
    Arm("distilled heads", {**_OWN, "training.stage1.early_distillation": 1.0}, judged="all"),
    Arm("Lovász in stage 1", {**_OWN, "training.stage1.lovasz": 1.0}, judged="all"),
    _idea(PLAIN, {}),
    # What the paper's space has anyway: widths and extra blocks.
    _idea("plain, all shapes", _SHAPES),
    _idea("separable DeepLab", {**_DEEPLAB, "exits.heads": ["sdlb"]}),
    _idea("DeepLab", _DEEPLAB),
    _idea("DeepLab, the papers' rates", {**_DEEPLAB, "exits.dlb_rates": "papers"}),
    _idea("LR-ASPP", {"exits.heads": ["lraspp"]}),
    _idea("skips", {"exits.skips": [True]}),
    _idea("every pixel's label", {"training.stage2.pixel_stride": 1}),
    _idea("whole images, no jitter", _UNCHANGED),
    _idea("three times as long", _LONG),
    _idea("three times, best epoch", {**_LONG, "training.keep": "best"}),
    Arm(
        "from stage 1's heads",
        {**_PLAIN, "training.scheme": "two-stage", "training.stage2.start": "stage1"},
        NETWORK_OF,
        rate="training.stage2.learning_rate",
        again=True,
    ),
    _idea("after distilled heads", {}, "distilled heads"),
    _idea("after Lovász in stage 1", {}, "Lovász in stage 1"),
)

TABLES = {
    "heads": (
        PLAIN,
        "plain, all shapes",
        "separable DeepLab",
        "DeepLab",
        "DeepLab, the papers' rates",
        "LR-ASPP",
        "skips",
    ),
    "training": (
        PLAIN,
        "every pixel's label",
        "whole images, no jitter",
        "three times as long",
        "three times, best epoch",
        "from stage 1's heads",
        "after distilled heads",
        "after Lovász in stage 1",
    ),
}
REFERENCE = {"heads": "plain, all shapes", "training": PLAIN}
"""Whose exits those of an idea are compared with."""


def tables(study: Study, wanted: Sequence[str]) -> Iterator[str]:
    """Markdown: mIoU on `test` at each point, and what an idea is ahead by at equal cost."""
    for table in wanted:
        measured = {name: rows for name in TABLES[table] if (rows := _rows(study, name))}
        if REFERENCE[table] in measured:
            yield f"{table}, test\n\n{_table(measured, measured[REFERENCE[table]])}"


def _rows(study: Study, name: str) -> dict[int, Row]:
    """What was measured with an arm's best rate, by seed."""
    rate = study.rate(name)
    return {
        row["seed"]: row
        for row in study.results.of("training")
        if row["arm"] == name and row["rate"] == rate and "miou" in row
    }


def _table(measured: Mapping[str, Mapping[int, Row]], reference: Mapping[int, Row]) -> str:
    first = next(iter(measured.values()))
    points = [exit_id.split("-")[0] for exit_id in next(iter(first.values()))["miou"]["test"]]
    lines = [
        "| | rate | MACs (M) | " + " | ".join(points) + " | at equal cost |",
        "| --- |" + " --- |" * (len(points) + 3),
    ]
    for name, rows in measured.items():
        row = next(iter(rows.values()))
        chosen = {seed: _best_by_point(row, points) for seed, row in rows.items()}
        early = [chosen[min(rows)].get(point) for point in points if point != FINAL]
        macs = [f"{row['path_macs'][e] / 1e6:.0f}" if e else "–" for e in early]
        cells = [
            spread(
                [
                    row["miou"]["test"][best[point]]
                    for row, best in zip(rows.values(), chosen.values(), strict=True)
                    if point in best
                ]
            )
            for point in points
        ]
        ahead = [_ahead(row, reference[seed]) for seed, row in rows.items() if seed in reference]
        cells = [name, f"{row['rate']:g}", ", ".join(macs), *cells]
        lines.append(f"| {' | '.join(cells)} | {spread(ahead)} |")
    return "\n".join(lines)


def _best_by_point(row: Row, points: Sequence[str]) -> dict[str, str]:
    """The exit of each point that is best on the calibration split, where it has any."""
    miou = row["miou"]["calibration"]
    of = {point: [e for e in miou if e.split("-")[0] == point] for point in points}
    return {point: max(exits, key=lambda e: miou[e]) for point, exits in of.items() if exits}


def _ahead(row: Row, reference: Row) -> float:
    """Mean over the early exits: mIoU on `test` above that of the best reference not dearer.

    Where no early exit of the reference is as cheap, its cheapest is compared.
    """
    known = reference["miou"]["calibration"]
    early = sorted((e for e in known if e != FINAL), key=lambda e: reference["path_macs"][e])
    ahead = []
    for exit_id, value in row["miou"]["test"].items():
        if exit_id == FINAL:
            continue
        limit = row["path_macs"][exit_id]
        affordable = [e for e in early if reference["path_macs"][e] <= limit] or early[:1]
        best = max(affordable, key=lambda e: known[e])
        ahead.append(value - reference["miou"]["test"][best])
    return float(np.mean(ahead))


def main() -> None:
    run_study(ARMS, TABLES, tables, "exit-ideas.json")


if __name__ == "__main__":
    main()
