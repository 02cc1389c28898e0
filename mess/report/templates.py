"""The templates of the pages that are written."""

from __future__ import annotations

from pathlib import Path

import jinja2


def templates() -> jinja2.Environment:
    """Templates beside this file; undefined names raise, text is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
