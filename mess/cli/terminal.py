"""Where a command speaks: stdout for results, stderr for the rest."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

# All but tab and line feed; surrogates stand for the bytes of names that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class _Plain(Console):
    """Shows strings word for word, in tables too: names come from files and may hold anything."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def printable(text: str) -> str:
    """`text` with a question mark for each character that would steer or break a terminal."""
    return _UNPRINTABLE.sub("?", text)


out = _Plain()


err = _Plain(stderr=True)


def be_quiet() -> None:
    """Say nothing but errors."""
    # rich looks sys.stdout up whenever it prints, so `out` is quiet from here on as well.
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good


def complain(text: str) -> None:
    """Say an error on stderr."""
    err.print(f"Error: {text}", soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """Say a line, word for word."""
    # rich breaks long lines: paths could not be copied.
    out.print(text, soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Write JSON to stdout, alone."""
    # Not by rich, which breaks lines. Without NaN, which JSON does not have.
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def note(text: str) -> None:
    err.print(text, soft_wrap=True, highlight=False)
