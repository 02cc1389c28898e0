"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mess.runtime.program import MOST_THREADS
from mess.runtime.registry import FORMATS, RUNTIMES

# Written out, as a type checker needs it; a test holds them to what there is.
Setting = Literal["input-dependent", "anytime", "budgeted", "final-only"]
Target = Literal["latency", "macs", "params", "accuracy"]
Algorithm = Literal["exhaustive", "optuna"]
Sampler = Literal["tpe", "nsga2"]
LatencyStat = Literal["mean", "p90"]

if TYPE_CHECKING:  # which takes no computed choice
    RuntimeName = BundleFormat = str
else:
    RuntimeName, BundleFormat = Literal[tuple(RUNTIMES)], Literal[tuple(FORMATS)]


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

ImagesOption = Annotated[
    Path | None, typer.Option(help="Folder of pictures without masks; needs --labels final.")
]

LabelsOption = Annotated[
    str | None, typer.Option(help="final: the final exit's label maps in the place of masks.")
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

ThreadsOption = Annotated[
    int, typer.Option(min=1, max=MOST_THREADS, help="Threads within an operator.")
]

TrustOption = Annotated[
    bool, typer.Option("--trust", help="Run it even where its programs are code (torch).")
]

PublicKeyOption = Annotated[
    Path | None, typer.Option(help="PEM file: the bundle must be signed by its other half.")
]

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `360x480`; raises typer.BadParameter for anything else."""
    match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", text)
    if match is None:
        raise typer.BadParameter(f"--size takes HEIGHTxWIDTH in pixels, as 360x480, got {text!r}.")
    return int(match[1]), int(match[2])
