"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


class Algorithm(StrEnum):
    exhaustive = "exhaustive"
    optuna = "optuna"


class Sampler(StrEnum):
    tpe = "tpe"
    nsga2 = "nsga2"


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


CacheArgument = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Cache, such as calibration; all by default.")
]


ConfigArgument = Annotated[
    str | None,
    typer.Argument(help="A shipped configuration, or a TOML file. [default: quickstart]"),
]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads within an operator.")]


DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
