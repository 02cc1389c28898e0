"""Pieces of SVG pictures whose lines and letters stand on light and dark pages."""

from __future__ import annotations

import html
from collections.abc import Iterable

GREY = "#8a8f98"
"""Of middle lightness."""


def picture(width: int, height: int, title: str, body: Iterable[str]) -> str:
    """A whole SVG file; letters are grey unless they say otherwise."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="13" '
        f'fill="{GREY}" role="img">\n<title>{html.escape(title)}</title>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def segment(x1: float, y1: float, x2: float, y2: float, *, width: float, color: str = GREY) -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{width}"/>'
    )


def text(x: float, y: float, content: str, anchor: str) -> str:
    """One line; `content` is SVG, `anchor` start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{content}</text>'
