"""What a person sees on the terminal: progress, tables, messages."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mess.common.progress import Reporter, Task

_out = Console()
_err = Console(stderr=True)

_LINE_SECONDS = 30.0


def be_quiet() -> None:
    """Say nothing but errors."""
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good


def complain(text: str) -> None:
    """Say an error on stderr."""
    _err.print(f"Error: {text}", markup=False, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """Say a line, word for word."""
    _out.print(text, markup=False, soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Write JSON to stdout, alone."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_exits(rows: Sequence[dict[str, Any]]) -> None:
    """The candidate exits, one a line."""
    table = Table()
    for name in ("exit", "block"):
        table.add_column(name, no_wrap=True)
    for name in ("MACs (M)", "path (M)", "params (k)", "stride"):
        table.add_column(name, justify="right")
    table.add_column("status")
    for row in rows:
        table.add_row(
            row["exit_id"],
            row["block"],
            f"{row['exit_macs'] / 1e6:,.1f}",
            f"{(row['exit_macs'] + row['backbone_macs']) / 1e6:,.1f}",
            f"{row['params'] / 1e3:,.1f}",
            str(row["output_stride"]),
            row["status"].partition(":")[0],
        )
    _out.print(table)
    for row in rows:
        if row["status"] != "kept":
            say(f"{row['exit_id']} {row['status']}")
    kept = sum(row["status"] == "kept" for row in rows)
    say(f"{len(rows)} candidates, {kept} kept.")


def print_caches(rows: Sequence[dict[str, Any]]) -> None:
    """The caches of a run."""
    table = Table("cache", "split")
    for name in ("images", "exits", "signals", "parts", "pairs", "MB"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for row in rows:
        counts = [str(row.get(name, "")) for name in ("images", "exits")]
        signals = str(len(row["signals"])) if "signals" in row else ""
        size = f"{(row['bytes'] + row['pair_bytes']) / 1e6:,.2f}"
        pairs = "" if row.get("pairs") is None else f"{row['pairs']:,}"
        usable = "ready" if row["state"] == "ready" else "not usable"
        found = [str(row["parts"]), pairs, size, usable]
        table.add_row(row["name"], row.get("split", ""), *counts, signals, *found)
    _out.print(table)
    for row in rows:
        if row["state"] != "ready":
            say(f"{row['name']}: {row['state']}")


def print_verification(rows: Sequence[dict[str, Any]]) -> None:
    """What was verified, and every fault."""
    for row in rows:
        say(
            f"{row['name']}: {row['parts']} parts, {row['rows']:,} rows, "
            f"{row['bytes'] / 1e6:,.2f} MB in {row['seconds']:.1f} s: "
            f"{len(row['faults']) or 'no'} fault{'' if len(row['faults']) == 1 else 's'}"
        )
        for fault in row["faults"]:
            say(f"  {fault}")


def print_predictions(rows: Sequence[dict[str, Any]]) -> None:
    """The exit each image took, and its label map's file."""
    table = Table("image", "exit", "signal", "label map")
    for row in rows:
        signal = "" if row["signal"] is None else f"{row['signal']:.3f}"
        table.add_row(row["image"], row["exit_id"], signal, row["label_map"])
    _out.print(table)


def print_search(result: dict[str, Any]) -> None:
    """The chosen instance beside the network run to its end."""
    table = Table("exit", "signal", "threshold", "images")
    for exit_ in result["exits"]:
        threshold = "" if exit_["threshold"] is None else f"{exit_['threshold']:.4f}"
        table.add_row(
            exit_["exit_id"], exit_["signal"] or "", threshold, f"{100 * exit_['exit_rate']:.1f}%"
        )
    _out.print(table)
    _out.print(_comparison(result["predicted"], result["baseline"], ("miou", "macs", "latency_ms")))
    found = result["search"]
    certainty = "proven optimal"
    if not found["optimal"]:
        certainty = f"best of {found['evaluated']:,} trials, not proven,"
        if found["gap"] is not None:
            unit = " mIoU" if result["target"] == "accuracy" else " of the cost"
            certainty = f"interrupted: best so far, at most {found['gap']:.3g}{unit} from the best"
    source = found.get("source")
    how = f", read off the front of {source}" if source else f" in {found['seconds']:.1f} s"
    say(
        f"{certainty} among {found['configurations']:,} configurations{how}; "
        f"error {result['error']:.4f}. Result: {result['path']}"
    )
    for line in explanation_lines(result):
        say(line)


def print_policies(result: dict[str, Any]) -> None:
    """Every policy's answer, and how well its signals predict failure."""
    table = Table()
    table.add_column("policy", overflow="fold")
    for name in ("exits", "mIoU", "MACs (M)", "ms", "fewer MACs", "failure prediction"):
        table.add_column(name, justify="right")
    baseline = result["baseline"]
    missing = []
    for row in result["policies"]:
        name = f"{row['policy']}{', one threshold' * row['shared_threshold']}"
        if "infeasible" in row:
            missing.append(f"{name}: {row['infeasible']}")
            continue
        got, score = row["predicted"], row["failure_prediction"]
        table.add_row(
            f"{name}{' *' * (row['search'] == result['best'])}"
            f"{', not proven' * (not row['optimal'])}",
            str(len(row["exits"])),
            f"{got['miou']:.4f}",
            f"{got['macs'] / 1e6:,.1f}",
            "" if got["latency_ms"] is None else f"{got['latency_ms']:.2f}",
            f"{baseline['macs'] / got['macs']:.2f}x",
            "" if score is None else f"{score:.3f}",
        )
    _out.print(table)
    for line in missing:
        say(line)
    say(f"* is the best: `mess export --search {result['best']}`. Fronts: {result['path']}")


def explanation_lines(result: dict[str, Any]) -> list[str]:
    """What a search's explanation says, in sentences: limits and purchases, then neighbours."""
    told, given = result.get("explanation") or {}, result["constraints"]
    miou = "mIoU at the checkpoints" if result["setting"] == "anytime" else "mIoU"
    lines = [_offer(offer, told["unit"], miou) for offer in told.get("buys", ())]
    if told.get("binding"):
        flags = " and by ".join(_flag(name, given) for name in told["binding"])
        binding = f"Held back by {flags}."
        lines[:1] = [f"{binding} {lines[0]}" if lines else binding]
    beside = [
        f"{words} has {_amount(point['cost'], told['unit'])} and {point['miou']:.4f} {miou}, error "
        f"{point['error']:.4f} ({' + '.join(point['exits'])})"
        for side, words in (("cheaper", "the next cheaper"), ("better", "the next more accurate"))
        if (point := told.get("next", {}).get(side))
    ]
    return [*lines, f"On the front, {'; '.join(beside)}."] if beside else lines


def _offer(offer: dict[str, Any], unit: str, miou: str) -> str:
    """One sentence on what a step buys."""
    request = offer["request"]
    asked = f" ({' '.join(_flag(name, request) for name in request)})" if request else ""
    exits = " + ".join(offer["configuration"]["exits"])
    if offer["changes"] == "cost":
        step = f"{offer['step']:g} less {miou}{asked} saves"
        before, after, gain = (_amount(offer[key], unit) for key in ("from", "to", "gain"))
        gain = f"{gain} ({100 * offer['share']:.0f}%)"
    else:
        amount = f"{offer['step']:g} ms" if unit == "ms" else _amount(offer["step"], unit)
        step = f"{amount} more{asked} buys"
        before, after, gain = (f"{offer[key]:.4f}" for key in ("from", "to", "gain"))
        gain = f"{gain} {miou}"
    return f"{step} {gain}: {before} -> {after}, {exits}." if offer["gain"] else f"{step} nothing."


def _flag(name: str, values: dict[str, Any]) -> str:
    """A constraint as the command line takes it; `checkpoints[0]` is one of several."""
    if name.startswith("checkpoints["):
        points = [values["checkpoints"][int(name.removeprefix("checkpoints[").removesuffix("]"))]]
    else:
        points = values["checkpoints"] if name == "checkpoints" else []
    if points:
        return " ".join(f"--checkpoint {cost:.10g}={miou:.6g}" for cost, miou in points)
    value = values[name]
    figure = value if isinstance(value, str) else f"{value:.6g}" if value < 1e5 else f"{value:.0f}"
    return f"--{name.removesuffix('_ms').replace('_', '-')} {figure}"


def _amount(value: float, unit: str) -> str:
    scale, digits, words = {
        "ms": (1.0, 2, "ms"),
        "MACs": (1e-6, 1, "M MACs"),
        "parameters": (1e-3, 1, "k parameters"),
    }[unit]
    return f"{value * scale:,.{digits}f} {words}"


def print_evaluation(report: dict[str, Any]) -> None:
    """What a bundle did on a split."""
    _out.print(_comparison(report, report["baseline"], ("miou", "macs", "latency_ms")))
    for exit_ in report.get("exits", ()):
        say(f"{exit_['exit_id']}: mIoU {exit_['miou']:.4f} after {exit_['latency_ms']:.2f} ms")
    rates = ", ".join(f"{100 * rate:.1f}%" for rate in report["exit_rates"])
    shares = "" if "exits" in report else f", exit rates {rates}"
    say(f"{report['images']} {report['split']} images{shares}. Bundle: {report['bundle']}")
    if "agreement" in report:
        agreement = report["agreement"]
        latency = agreement["predicted_latency_ms"]
        say(
            f"Same exit as predicted for {100 * agreement['same_exit']:.1f}% of the images; "
            f"predicted mIoU {agreement['predicted_miou']:.4f}, "
            f"{agreement['predicted_macs'] / 1e6:,.1f} M MACs"
            f"{'' if latency is None else f', {latency:.2f} ms'}."
        )


def _comparison(ours: dict[str, Any], baseline: dict[str, Any], keys: Sequence[str]) -> Table:
    table = Table("", "instance", "run to its end", "ratio")
    for key in keys:
        if ours.get(key) is None:
            continue
        name, scale, digits = {
            "miou": ("mIoU", 1.0, 4),
            "macs": ("MACs (M)", 1e-6, 1),
            "latency_ms": ("latency (ms)", 1.0, 2),
        }[key]
        mine, theirs = ours[key] * scale, baseline[key] * scale
        ratio = f"{theirs / mine:.2f}x less" if mine <= theirs else f"{mine / theirs:.2f}x more"
        ratio = "" if key == "miou" else ratio
        table.add_row(name, f"{mine:,.{digits}f}", f"{theirs:,.{digits}f}", ratio)
    return table


class _RichTask:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: float = 1, **figures: float) -> None:
        text = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self._progress.update(self._task, advance=steps, figures=text)


class _RichReporter:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def message(self, text: str) -> None:
        _note(text)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        task = self._progress.add_task(name, total=total, completed=done, figures="")
        yield _RichTask(self._progress, task)


class _LineTask:
    def __init__(self, name: str, total: float, done: float) -> None:
        self._name, self._total, self._done = name, total, done
        self._next = time.monotonic() + _LINE_SECONDS

    def advance(self, steps: float = 1, **figures: float) -> None:
        self._done += steps
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_SECONDS
            told = "".join(f" {name} {value:.4f}" for name, value in figures.items())
            _note(f"{self._name}: {self._done:g} of {self._total:g}{told}")


class _LineReporter:
    """Where nothing can be drawn: a line of each long task every half minute."""

    def message(self, text: str) -> None:
        _note(text)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _LineTask(name, total, done)


def _note(text: str) -> None:
    _err.print(text, markup=False, soft_wrap=True, highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


@contextmanager
def reporter() -> Iterator[Reporter]:
    """Progress on stderr: stdout is for the result, which may be JSON."""
    if not _err.is_terminal:
        yield _LineReporter()
        return
    with _progress(_err) as progress:
        yield _RichReporter(progress)
