"""The mIoU of every exit of a trained run, alone, on the calibration and the test split.

    python benchmarks/exits.py RUN [--output FILE]

Memoises the test split first where that was not done.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from mess import workflow
from mess.common.metrics import mean_iou
from mess.runs.run import Run

SPLITS = ("calibration", "test")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    run = Run(options.run)
    miou = {}
    for split in SPLITS:
        workflow.memoise(run.path, split=split)
        miou[split] = exit_mious(run, split)
    rows = [
        {
            "exit_id": row["exit_id"],
            "path_macs": row["backbone_macs"] + row["exit_macs"],
            **{split: miou[split][row["exit_id"]] for split in SPLITS},
        }
        for row in run.exit_rows
    ]
    print("| exit | path MACs (M) | mIoU calibration | mIoU test |\n| --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| `{row['exit_id']}` | {row['path_macs'] / 1e6:,.0f} "
            f"| {row['calibration']:.4f} | {row['test']:.4f} |"
        )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def exit_mious(run: Run, split: str) -> dict[str, float]:
    """From the memoised counts."""
    tables = run.open_cache(split).tables
    label = tables.label.sum(axis=0)
    hits = tables.intersection.sum(axis=1, dtype=np.int64)
    predicted = tables.predicted.sum(axis=1, dtype=np.int64)
    values = np.asarray(mean_iou(hits, predicted, label))
    return dict(zip(tables.exit_ids, values.tolist(), strict=True))


if __name__ == "__main__":
    main()
