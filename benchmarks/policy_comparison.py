"""Exit policies compared on trained networks: what each saves, and what its signals look like.

    python benchmarks/policy_comparison.py --runs NAME=RUN ... [--errors 0.001 0.01 0.02 0.05]
        [--target macs] [--exits 2 3] [--output FILE]

For every run, limit and number of exits: `mess search --policy all`, each policy with thresholds of
its own and with one for all exits; the answers are proven. Then quantiles of the normalised entropy
and of the variation of information of consecutive exits over the calibration images, as in Figs. 2
and 4 of the 2025 paper, and how well every signal predicts failure. Results accumulate in FILE.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from results import Results, Row, machine_facts

from mess import workflow
from mess.assembly import CALIBRATION
from mess.progress import Silent
from mess.run import Run
from mess.steps.policies import policy_tables

QUANTILES = (0.1, 0.5, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=RUN")
    parser.add_argument("--errors", type=float, nargs="+", default=[0.001, 0.01, 0.02, 0.05])
    parser.add_argument("--exits", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--target", default="macs", choices=["macs", "latency"])
    parser.add_argument("--output", type=Path, default=Path("policy-comparison.json"))
    options = parser.parse_args()
    results = Results(options.output, machine_facts("numpy", "numba"))
    for text in options.runs:
        name, _, path = text.partition("=")
        run = Run(Path(path))
        for exits in options.exits:
            for error in options.errors:
                case = {"part": "answers", "run": name, "exits": exits, "error": error}
                results.measure(
                    {**case, "target": options.target},
                    lambda run=run, exits=exits, error=error: answers(
                        run, exits, error, options.target
                    ),
                )
        results.measure({"part": "signals", "run": name}, lambda run=run: signals(run))
    print("\n\n".join(tables(results)))


def answers(run: Run, exits: int, error: float, target: str) -> Row:
    """Every policy's answer, as shares of the baseline's cost."""
    found = workflow.search(run.path, policy="all", target=target, max_error=error, max_exits=exits)
    baseline = found["baseline"]
    rows = [
        {
            "policy": row["policy"],
            "shared_threshold": row["shared_threshold"],
            "macs_gain": baseline["macs"] / row["predicted"]["macs"],
            "latency_gain": _gain(baseline["latency_ms"], row["predicted"]["latency_ms"]),
            "exits": row["exits"],
            "error": row["error"],
            "optimal": row["optimal"],
        }
        for row in found["policies"]
    ]
    return {"policies": rows, "failure_prediction": found["signals"]}


def signals(run: Run) -> Row:
    """Quantiles over the images, by exit: NE, and VI to the exit of the point before."""
    quantiles: dict[str, dict[str, list[float]]] = {"ne": {}, "vi": {}}
    tables, _, _ = policy_tables(run, CALIBRATION, "ne", Silent())
    pairs, _, _ = policy_tables(run, CALIBRATION, "vi", Silent())
    assert pairs.pairs is not None
    for point in range(1, tables.points + 1):
        exit_ = int(np.flatnonzero(tables.point == point)[0])
        entropy = 1 - tables.signals[exit_, :, 0].astype(np.float64)
        quantiles["ne"][tables.exit_ids[exit_]] = np.quantile(entropy, QUANTILES).tolist()
        before = np.flatnonzero(tables.point == point - 1)
        if len(before) and point < tables.points:
            bits = -pairs.pairs[before[0], exit_].astype(np.float64)
            quantiles["vi"][tables.exit_ids[exit_]] = np.quantile(bits, QUANTILES).tolist()
    return {"quantiles": list(QUANTILES), **quantiles}


def _gain(baseline: float | None, cost: float | None) -> float | None:
    return baseline / cost if baseline and cost else None


def tables(results: Results) -> Iterator[str]:
    rows = results.of("answers")
    for name in dict.fromkeys(row["run"] for row in rows):
        for exits in dict.fromkeys(row["exits"] for row in rows if row["run"] == name):
            some = [row for row in rows if row["run"] == name and row["exits"] == exits]
            yield f"{name}, up to {exits} exits\n\n{_gains(some)}"
        yield f"{name}, failure prediction\n\n{_ranking(next(r for r in rows if r['run'] == name))}"
    for row in results.of("signals"):
        yield f"{row['run']}\n\n{_quantiles(row)}"


def _gains(rows: Sequence[Row]) -> str:
    metric = "macs_gain" if rows[0]["target"] == "macs" else "latency_gain"
    lines = [
        "| policy | " + " | ".join(f"error ≤ {row['error']:g}" for row in rows) + " |",
        "| --- |" + " --- |" * len(rows),
    ]
    for position, first in enumerate(rows[0]["policies"]):
        cells = []
        for row in rows:
            found = row["policies"][position]
            cells.append(f"{found[metric]:.2f}× ({len(found['exits'])})")
        shared = ", one threshold" * first["shared_threshold"]
        lines.append(f"| {first['policy']}{shared} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ranking(row: Row) -> str:
    lines = ["| signal | score |", "| --- | --- |"]
    lines += [
        f"| {name} | {'' if score is None else f'{score:.3f}'} |"
        for name, score in row["failure_prediction"].items()
    ]
    return "\n".join(lines)


def _quantiles(row: Row) -> str:
    heads = [f"{kind} {share:.0%}" for kind in ("NE", "VI") for share in row["quantiles"]]
    lines = [f"| exit | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for exit_id, entropy in row["ne"].items():
        bits = row["vi"].get(exit_id)
        cells = [f"{value:.3f}" for value in entropy]
        cells += [f"{value:.2f}" for value in bits] if bits else [""] * len(row["quantiles"])
        lines.append(f"| {exit_id.split('-')[0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
