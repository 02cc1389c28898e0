"""Instances of one trained run at several errors, really run: the table of the README.

For every error: search, export, and run the bundle in turns with the network run to its end on the
calibration and the test split. Prints a Markdown table and writes the figures with machine and
versions as JSON.

    python benchmarks/instances.py RUN [--target macs] [--errors 0.001 0.01] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mess import workflow
from mess.errors import InfeasibleError
from mess.profiling.machine import machine_facts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--target", default="latency", choices=["latency", "macs"])
    parser.add_argument("--errors", type=float, nargs="+", default=[0.001, 0.01, 0.02])
    parser.add_argument("--max-exits", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = [row for error in options.errors if (row := measure(options, error))]
    print(table(rows))
    if options.output:
        report = {"machine": machine_facts("onnxruntime", 1), "instances": rows}
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, error: float) -> dict[str, Any] | None:
    """Search at one error and run its instance on both splits."""
    try:
        found = workflow.search(
            options.run, target=options.target, max_error=error, max_exits=options.max_exits
        )
    except InfeasibleError as message:
        print(f"error <= {error:g}: {message}")
        return None
    bundle = workflow.export(options.run, search=found["id"])
    return {
        "max_error": error,
        "search": found,
        "calibration": workflow.evaluate(bundle, run=options.run, split="calibration"),
        "test": workflow.evaluate(bundle, run=options.run, split="test"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, the baseline first."""
    lines = [
        "| instance | mIoU calibration | mIoU test | MACs (M) | latency (ms) | exits: rates |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    if rows:
        first = rows[0]
        base = {split: first[split]["baseline"] for split in ("calibration", "test")}
        lines.append(
            f"| run to its end | {base['calibration']['miou']:.4f} | {base['test']['miou']:.4f} "
            f"| {base['calibration']['macs'] / 1e6:,.0f} "
            f"| {base['calibration']['latency_ms']:.1f} | |"
        )
    for row in rows:
        calibration, test = row["calibration"], row["test"]
        macs = calibration["baseline"]["macs"] / calibration["macs"]
        time = calibration["baseline"]["latency_ms"] / calibration["latency_ms"]
        names = [exit_["exit_id"] for exit_ in row["search"]["exits"]]
        rates = [
            f"{name} {100 * mine:.0f}% ({100 * theirs:.0f}%)"
            for name, mine, theirs in zip(
                names, calibration["exit_rates"], test["exit_rates"], strict=True
            )
        ]
        lines.append(
            f"| error <= {row['max_error']:g} | {calibration['miou']:.4f} | {test['miou']:.4f} "
            f"| {calibration['macs'] / 1e6:,.0f} ({macs:.2f}x less) "
            f"| {calibration['latency_ms']:.1f} ({time:.2f}x less) | {', '.join(rates)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
