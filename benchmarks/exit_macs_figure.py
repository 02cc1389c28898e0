"""Multiply-adds against the pixels of the image as a chart, a line an exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from figures import GREY, styled, svg
from matplotlib.figure import Figure

COLORS = (
    "#4a86d8", "#2f9e95", "#5da548", "#cf9f2e", "#dc7f3c", "#cf566c", "#a05fc0", GREY,
)  # fmt: skip
"""From the shallowest exit to the network's own head."""

TICKS = (256, 512, 768, 1024)
"""Sides of square images."""

Point = tuple[int, float]
"""Side of a square image in pixels, and multiply-adds."""


def draw(lines: Mapping[str, Sequence[Point]]) -> str:
    """The chart, with the points of every exit.

    Pixels, not sides, are equidistant, so that what is proportional to them is a straight line.
    """
    with styled():
        figure = Figure((8, 4.6), layout="constrained")
        plot = figure.subplots()
        for (name, line), color in zip(lines.items(), COLORS, strict=True):
            pixels = [side**2 for side, _ in line]
            gmacs = [macs / 1e9 for _, macs in line]
            plot.plot(pixels, gmacs, color=color, marker="o", markersize=3)
            plot.annotate(
                f"{name} {gmacs[-1]:.0f}", (pixels[-1], gmacs[-1]), color=color,
                xytext=(7, 0), textcoords="offset points", verticalalignment="center",
            )  # fmt: skip
        plot.set_xticks([side**2 for side in TICKS], [f"{side}×{side}" for side in TICKS])
        plot.set(xlim=0, ylim=0, xlabel="image, equidistant in pixels")
        plot.set_title("GMACs to reach the exit", loc="left")
        note = "DeepLabV3 on ResNet101 with seven side branches, 21 classes"
        figure.supxlabel(note, fontsize="medium")
        return svg(figure)
