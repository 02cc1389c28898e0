"""Where a command speaks: stdout for results, stderr for the rest."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

out = Console()


err = Console(stderr=True)


def be_quiet() -> None:
    """Say nothing but errors."""
    # rich looks sys.stdout up whenever it prints, so `out` is quiet from here on as well.
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good


def complain(text: str) -> None:
    """Say an error on stderr."""
    err.print(f"Error: {text}", markup=False, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """Say a line, word for word."""
    # rich takes [brackets] for markup and breaks long lines: paths would lose parts of themselves.
    out.print(text, markup=False, soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Write JSON to stdout, alone."""
    # Not by rich, which breaks lines. Without NaN, which JSON does not have.
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def note(text: str) -> None:
    err.print(text, markup=False, soft_wrap=True, highlight=False)
