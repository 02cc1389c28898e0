"""The command line: parse, call one function of `mess.workflow`, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
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

from mess import __version__, workflow
from mess.errors import MessError
from mess.progress import Task

app = typer.Typer(
    name="mess",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a segmentation network with every exit, search it, ship the instance you need.",
)
_out = Console()
_err = Console(stderr=True)


class Setting(StrEnum):
    input_dependent = "input-dependent"
    anytime = "anytime"
    budgeted = "budgeted"
    final_only = "final-only"


class Target(StrEnum):
    latency = "latency"
    macs = "macs"
    params = "params"
    accuracy = "accuracy"


class LatencyStat(StrEnum):
    mean = "mean"
    p90 = "p90"


class Runtime(StrEnum):
    onnxruntime = "onnxruntime"
    torch = "torch"


class BundleFormat(StrEnum):
    onnx = "onnx"
    torch = "torch"


RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run directory; the newest below ./runs by default.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable."),
]
ConfigArgument = Annotated[
    str | None,
    typer.Argument(help="A shipped configuration, or a TOML file. [default: quickstart]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads within an operator.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        _say(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    del version


@app.command()
def train_overprovisioned(
    config: ConfigArgument = None,
    run: RunOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the network with all its exits, memoise and measure them; run again, it resumes."""
    with _reporter() as reporter:
        place = workflow.train_overprovisioned(
            config, run=run, overrides=overrides or (), device=device, reporter=reporter
        )
    _say(f"Trained: {place.path}. Next: mess search --target latency --max-error 0.01")


@app.command()
def exits(
    config: ConfigArgument = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """List the candidate exits of a configuration, without training."""
    rows = workflow.exits(config, overrides=overrides or ())
    if as_json:
        _print_json(rows)
        return
    table = Table("exit", "block", "MACs (M)", "path (M)", "params (k)", "stride", "status")
    for row in rows:
        table.add_row(
            row["exit_id"],
            row["block"],
            f"{row['exit_macs'] / 1e6:,.1f}",
            f"{(row['exit_macs'] + row['backbone_macs']) / 1e6:,.1f}",
            f"{row['params'] / 1e3:,.1f}",
            str(row["output_stride"]),
            row["status"],
        )
    _out.print(table)
    kept = sum(row["status"] == "kept" for row in rows)
    _say(f"{len(rows)} candidates, {kept} kept.")


@app.command()
def memoise(
    run: RunOption = None,
    split: Annotated[str, typer.Option(help="calibration, test or train.")] = "calibration",
    device: DeviceOption = "auto",
) -> None:
    """Store every exit's predictions on a split."""
    with _reporter() as reporter:
        path = workflow.memoise(run, split=split, device=device, reporter=reporter)
    _say(f"Predictions: {path}")


@app.command()
def profile(
    run: RunOption = None,
    runtime: Annotated[Runtime, typer.Option(help="What runs the parts.")] = Runtime.onnxruntime,
    threads: ThreadsOption = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of every part.")] = 30,
    name: Annotated[str | None, typer.Option(help="Name of the profile.")] = None,
) -> None:
    """Measure every segment and exit on this machine."""
    with _reporter() as reporter:
        path = workflow.profile(
            run,
            runtime=runtime.value,
            threads=threads,
            rounds=rounds,
            name=name,
            reporter=reporter,
        )
    _say(f"Latencies: {path}")


@app.command()
def search(
    run: RunOption = None,
    setting: Annotated[
        Setting, typer.Option(help="How the instance runs.")
    ] = Setting.input_dependent,
    target: Annotated[
        Target, typer.Option(help="Minimised; accuracy is maximised.")
    ] = Target.latency,
    max_error: Annotated[float | None, typer.Option(help="mIoU drop below the final exit.")] = None,
    min_miou: Annotated[float | None, typer.Option(help="mIoU to reach, in [0, 1].")] = None,
    max_latency: Annotated[float | None, typer.Option(help="Milliseconds.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="A number, or 0.5x of the baseline.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Parameters.")] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="COST=MIOU", help="Anytime: mIoU delivered by a cost; repeatable."),
    ] = None,
    latency_stat: Annotated[LatencyStat, typer.Option(help="Over the images.")] = LatencyStat.mean,
    profile: Annotated[str | None, typer.Option(help="Latency profile of the run.")] = None,
    max_exits: Annotated[int, typer.Option(min=1, help="Exits in all.")] = 3,
    thresholds: Annotated[
        int, typer.Option(min=1, help="Grid of each exit where two early exits are searched.")
    ] = 16,
    as_json: JsonOption = False,
) -> None:
    """Find the best instance without retraining."""
    with _reporter() as reporter:
        result = workflow.search(
            run,
            setting=setting.value,
            target=target.value,
            max_error=max_error,
            min_miou=min_miou,
            max_latency=max_latency,
            max_macs=max_macs,
            max_params=max_params,
            checkpoints=checkpoint or (),
            latency_stat=latency_stat.value,
            profile=profile,
            max_exits=max_exits,
            thresholds=thresholds,
            reporter=reporter,
        )
    if as_json:
        _print_json(result)
    else:
        _print_search(result)


@app.command()
def export(
    run: RunOption = None,
    search: Annotated[
        str | None, typer.Option(help="Search to export; the newest by default.")
    ] = None,
    format: Annotated[
        BundleFormat, typer.Option(help="What the bundle holds.")
    ] = BundleFormat.onnx,
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle.")] = None,
) -> None:
    """Write the bundle of a search's instance."""
    with _reporter() as reporter:
        path = workflow.export(
            run, search=search, format=format.value, output=output, reporter=reporter
        )
    _say(f"Bundle: {path}")


@app.command()
def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="The newest of the run by default.")] = None,
    run: RunOption = None,
    split: Annotated[str, typer.Option(help="test or calibration.")] = "test",
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Run a bundle on a split, in turns with the network run to its end."""
    with _reporter() as reporter:
        report = workflow.evaluate(bundle, run=run, split=split, threads=threads, reporter=reporter)
    if as_json:
        _print_json(report)
    else:
        _print_evaluation(report)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    images: Annotated[list[Path], typer.Argument(help="Images of any size.")],
    output: Annotated[Path, typer.Option(help="Folder of the label maps.")] = Path("predictions"),
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Write the label maps of images as palette PNGs."""
    rows = workflow.predict(bundle, images, output=output, threads=threads)
    if as_json:
        _print_json(rows)
        return
    table = Table("image", "exit", "signal", "label map")
    for row in rows:
        signal = "" if row["signal"] is None else f"{row['signal']:.3f}"
        table.add_row(row["image"], row["exit_id"], signal, row["label_map"])
    _out.print(table)


@app.command()
def report(run: RunOption = None) -> None:
    """Write one self-contained HTML file about a run."""
    _say(f"Report: {workflow.report(run)}")


def main() -> None:
    """Entry point: an error a user can act on is one message on stderr and exit code 1."""
    try:
        app()
    except MessError as error:
        _err.print(f"Error: {error}", markup=False, soft_wrap=True, highlight=False)
        sys.exit(1)


def _say(text: str) -> None:
    _out.print(text, markup=False, soft_wrap=True, highlight=False)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _print_search(result: dict[str, Any]) -> None:
    table = Table("exit", "signal", "threshold", "images")
    for exit_ in result["exits"]:
        threshold = "" if exit_["threshold"] is None else f"{exit_['threshold']:.4f}"
        table.add_row(
            exit_["exit_id"], exit_["signal"] or "", threshold, f"{100 * exit_['exit_rate']:.1f}%"
        )
    _out.print(table)
    _out.print(_comparison(result["predicted"], result["baseline"], ("miou", "macs", "latency_ms")))
    found = result["search"]
    certainty = "proven optimal" if found["optimal"] else f"gap {found['gap']}"
    _say(
        f"{certainty} among {found['configurations']:,} configurations in "
        f"{found['seconds']:.1f} s; error {result['error']:.4f}. Result: {result['path']}"
    )


def _print_evaluation(report: dict[str, Any]) -> None:
    _out.print(_comparison(report, report["baseline"], ("miou", "macs", "latency_ms")))
    for exit_ in report.get("exits", ()):
        _say(f"{exit_['exit_id']}: mIoU {exit_['miou']:.4f} after {exit_['latency_ms']:.2f} ms")
    rates = ", ".join(f"{100 * rate:.1f}%" for rate in report["exit_rates"])
    _say(f"{report['images']} {report['split']} images, exit rates {rates}. {report['bundle']}")
    if "agreement" in report:
        agreement = report["agreement"]
        _say(
            f"Same exit as predicted for {100 * agreement['same_exit']:.1f}% of the images; "
            f"predicted mIoU {agreement['predicted_miou']:.4f}, "
            f"{agreement['predicted_macs'] / 1e6:,.1f} M MACs."
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
        ratio = "" if key == "miou" else f"{theirs / mine:.2f}x less"
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
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, soft_wrap=True, highlight=False)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        task = self._progress.add_task(name, total=total, completed=done, figures="")
        yield _RichTask(self._progress, task)


@contextmanager
def _reporter() -> Iterator[_RichReporter]:
    # Progress goes to stderr: stdout is for the result, which may be JSON.
    reporter = _RichReporter(_err)
    with reporter._progress:
        yield reporter
