"""Charts as SVG that stand on light and dark pages, the same file for the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

GREY = "#8a8f98"
"""Of middle lightness."""

_STYLE: dict[Any, Any] = {
    # Letters stay letters, in the reader's font; the identifiers of shapes hang on this salt.
    "svg.fonttype": "none",
    "svg.hashsalt": "mess",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.3,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    **{
        f"{part}color": GREY
        for part in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")
    },
}


@contextmanager
def styled() -> Iterator[None]:
    """A figure is made and written in this style, which leaves nothing behind."""
    with mpl.rc_context(_STYLE):
        yield


def svg(figure: Figure) -> str:
    """The figure as a file, of no date and no version."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()
