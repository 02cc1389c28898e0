"""The templates of the pages that are written."""

from __future__ import annotations

from pathlib import Path

import jinja2

from mess.sentences.accuracy import against


def templates() -> jinja2.Environment:
    """Templates beside this file; undefined names raise, text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["against"] = against
    return environment
