"""The papers' training schemes: Tables 5 and 6 of MESS, Tables I-IV of BranDeepLabV3.

    python benchmarks/training_schemes.py --work DIR [--tables ...] [--seeds 0 1 2] [--workers 2]
        [--output FILE] [--config quickstart] [--set KEY=VALUE ...]

Every arm has its own best learning rate (`arms.py`); arms that are compared have the same
iterations. Prints the tables of what has been measured so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from arms import COMMON, EXITS, NETWORK, SPLITS, Arm, Study, exits_alone, run_study, spread

from mess.exits import FINAL

BRANCHES = 400
"""Iterations of branches with the trained network they are put on."""


def _branches(count: int) -> Arm:
    """DeepLab branches on a trained network, one at its last point; rates in proportion."""
    points = {0: [], 3: ["down2", "down4"], 6: COMMON["exits.points"]}[count]
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
        judged="final",
        rate="training.stage1.exit_learning_rate",
        scale={"training.stage1.learning_rate": 0.01, "training.stage1.head_learning_rate": 1.1},
    )


_HEADS = {"training.stage2.start": "stage1", "training.stage2.iterations": 0}
_JOINT = {"training.scheme": "e2e"}

ARMS = (
    # Without early heads the exits are anyone's; they are not told.
    Arm("plain", {"training.scheme": "frozen", "training.stage2.iterations": 1}, judged="final"),
    Arm("exit-aware", {"training.scheme": "two-stage", **_HEADS}, judged="all"),
    Arm("e2e", _JOINT, judged="all"),
    Arm("e2e, longer", {**_JOINT, "training.stage1.iterations": NETWORK + EXITS}, judged="all"),
    exits_alone("frozen", "plain", {}),
    exits_alone("two-stage, CE", "exit-aware", {}),
    exits_alone("two-stage, KD", "exit-aware", {"training.loss": "kd"}),
    exits_alone("two-stage, CE + KD", "exit-aware", {"training.loss": "self-distill"}),
    exits_alone("two-stage, PFD", "exit-aware", {"training.loss": "pfd"}),
    *(_branches(count) for count in (0, 3, 6)),
)

TABLES = {
    "schemes": ("plain", "e2e", "e2e, longer", "exit-aware", "frozen", "two-stage, CE"),
    "losses": ("two-stage, CE", "two-stage, KD", "two-stage, CE + KD", "two-stage, PFD"),
    "branches": ("0 branches", "3 branches", "6 branches"),
}


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
    # Early exits that an arm is not about.
    unjudged = {arm.name for arm in ARMS if arm.judged == "final"}
    lines = [
        "| | rate | seeds | " + " | ".join(exit_id.split("-")[0] for exit_id in exits) + " |",
        "| --- |" + " --- |" * (len(exits) + 2),
    ]
    for name, (rate, rows) in measured.items():
        cells = [
            ""
            if name in unjudged and exit_id != FINAL
            else spread([miou[exit_id] for miou in rows.values() if exit_id in miou])
            for exit_id in exits
        ]
        lines.append(f"| {name} | {rate:g} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    run_study(ARMS, TABLES, tables, "training-schemes.json")


if __name__ == "__main__":
    main()
