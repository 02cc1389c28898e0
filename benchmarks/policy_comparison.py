"""Exit policies compared on trained networks: what each saves, and what its signals look like.

    python benchmarks/policy_comparison.py --runs NAME=RUN[,RUN] ... [--target macs]
        [--errors 0.001 0.01 0.02 0.05] [--below final|best] [--exits 2 3] [--output FILE]

For every run, limit and number of exits: `mess search --policy all`, each policy with thresholds of
its own and with one for all exits; the answers are proven. Then quantiles of the normalised entropy
and of the variation of information of consecutive exits over the calibration images, as in Figs. 2
and 4 of the 2025 paper, and how well every signal predicts failure. Several runs of one name, such
as seeds, are one table with means and deviations. Errors are counted from the network's own final
exit or, where a shallow exit is as good as that, from the best of all. Results accumulate in FILE.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from results import Results, Row, machine_facts

from mess import workflow
from mess.common.metrics import mean_iou
from mess.common.progress import Silent
from mess.runs.policies import policy_tables
from mess.runs.results import CALIBRATION
from mess.runs.run import Run
from mess.search.answers.failure_prediction import ranking

QUANTILES = (0.1, 0.5, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=RUN[,RUN]")
    parser.add_argument("--errors", type=float, nargs="+", default=[0.001, 0.01, 0.02, 0.05])
    parser.add_argument("--below", default="final", choices=["final", "best"])
    parser.add_argument("--exits", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--target", default="macs", choices=["macs", "latency"])
    parser.add_argument("--output", type=Path, default=Path("policy-comparison.json"))
    options = parser.parse_args()
    results = Results(options.output, machine_facts("numpy", "numba"))
    for text in options.runs:
        name, _, paths = text.partition("=")
        for number, path in enumerate(paths.split(",")):
            run, of = Run(Path(path)), {"run": name, "number": number}
            for exits in options.exits:
                for error in options.errors:
                    case = {"exits": exits, "error": error, "below": options.below}
                    case["target"] = options.target
                    results.measure(
                        {"part": "answers", **of, **case},
                        lambda run=run, case=case: answers(run, **case),
                    )
            results.measure({"part": "signals", **of}, lambda run=run: signals(run))
    print("\n\n".join(tables(results)))


def answers(run: Run, exits: int, error: float, below: str, target: str) -> Row:
    """Every policy's answer, as shares of the baseline's cost."""
    found = workflow.search(
        run.path,
        policy="all",
        target=target,
        max_exits=exits,
        max_error=error if below == "final" else None,
        min_miou=best_miou(run) - error if below == "best" else None,
    )
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
    return {"policies": rows}


def best_miou(run: Run) -> float:
    """Of the exits on the calibration images."""
    tables, _ = policy_tables(run.open_cache(CALIBRATION), "any", Silent())
    counts = tables.intersection.sum(1), tables.predicted.sum(1)
    return float(mean_iou(*counts, tables.label.sum(0)).max())


def signals(run: Run) -> Row:
    """Quantiles over the images by exit, of NE and of VI to the exit before; and the ranking."""
    quantiles: dict[str, dict[str, list[float]]] = {"ne": {}, "vi": {}}
    tables, _ = policy_tables(run.open_cache(CALIBRATION), "any", Silent())
    pairs, _ = policy_tables(run.open_cache(CALIBRATION), "vi", Silent())
    assert pairs.pairs is not None
    entropies = 1 - tables.signals[:, :, tables.signal_names.index("ne")].astype(np.float64)
    for point in range(1, tables.points + 1):
        exit_ = int(np.flatnonzero(tables.point == point)[0])
        quantiles["ne"][tables.exit_ids[exit_]] = np.quantile(entropies[exit_], QUANTILES).tolist()
        before = np.flatnonzero(tables.point == point - 1)
        if len(before) and point < tables.points:
            bits = -pairs.pairs[before[0], exit_].astype(np.float64)
            quantiles["vi"][tables.exit_ids[exit_]] = np.quantile(bits, QUANTILES).tolist()
    ranked = ranking(tables) | ranking(pairs)
    # JSON has no NaN.
    scores = {name: None if np.isnan(score) else score for name, score in ranked.items()}
    return {"quantiles": list(QUANTILES), **quantiles, "failure_prediction": scores}


def _gain(baseline: float | None, cost: float | None) -> float | None:
    return baseline / cost if baseline and cost else None


def tables(results: Results) -> Iterator[str]:
    rows = results.of("answers")
    names = ("run", "target", "below", "exits")
    for kind in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        some = [row for row in rows if tuple(row[name] for name in names) == kind]
        run, target, below, exits = kind
        yield f"{run}, {target}, below {below}, up to {exits} exits\n\n{_gains(some)}"
    seen = results.of("signals")
    for run in dict.fromkeys(row["run"] for row in seen):
        own = [row for row in seen if row["run"] == run]
        yield f"{run}, failure prediction\n\n{_ranking([row['failure_prediction'] for row in own])}"
        yield f"{run}\n\n{_quantiles(own)}"


def _gains(rows: Sequence[Row]) -> str:
    metric = f"{rows[0]['target']}_gain"
    errors = list(dict.fromkeys(row["error"] for row in rows))
    lines = [
        "| policy | " + " | ".join(f"error ≤ {error:g}" for error in errors) + " |",
        "| --- |" + " --- |" * len(errors),
    ]
    for position, first in enumerate(rows[0]["policies"]):
        cells = []
        for error in errors:
            found = [row["policies"][position] for row in rows if row["error"] == error]
            gains = [row[metric] for row in found]
            cells.append(
                f"{np.mean(gains):.2f}× ± {np.std(gains, ddof=1):.2f}"
                if len(gains) > 1
                else f"{gains[0]:.2f}× ({len(found[0]['exits'])})"
            )
        shared = ", one threshold" * first["shared_threshold"]
        lines.append(f"| {first['policy']}{shared} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ranking(scores: Sequence[dict[str, float | None]]) -> str:
    """The mean over the runs, best first; NaN, and last, where a signal says nothing in one."""
    means = {
        name: np.mean(np.array([run[name] for run in scores], dtype=float)) for name in scores[0]
    }
    lines = ["| signal | score |", "| --- | --- |"]
    lines += [
        f"| {name} | {mean:.3f} |"
        for name, mean in sorted(means.items(), key=lambda item: -np.nan_to_num(item[1], nan=-9))
    ]
    return "\n".join(lines)


def _quantiles(rows: Sequence[Row]) -> str:
    shares = rows[0]["quantiles"]
    heads = [f"{kind} {share:.0%}" for kind in ("NE", "VI") for share in shares]
    lines = [f"| exit | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for exit_id in rows[0]["ne"]:
        cells = [f"{value:.3f}" for value in np.mean([row["ne"][exit_id] for row in rows], axis=0)]
        if exit_id in rows[0]["vi"]:
            bits = np.mean([row["vi"][exit_id] for row in rows], axis=0)
            cells += [f"{value:.2f}" for value in bits]
        else:
            cells += [""] * len(shares)
        lines.append(f"| {exit_id.split('-')[0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
