"""Figures as a person reads them: amounts in their unit, intervals, counts."""

from __future__ import annotations

from typing import Any


def amount(value: float, unit: str) -> str:
    """A cost in `ms`, `MACs` or `parameters`."""
    scale, digits, words = {
        "ms": (1.0, 2, "ms"),
        "MACs": (1e-6, 1, "M MACs"),
        "parameters": (1e-3, 1, "k parameters"),
    }[unit]
    return f"{value * scale:,.{digits}f} {words}"


def ends(figure: dict[str, float], unit: str) -> str:
    """Both ends of an interval, in the unit that stands before them."""
    low, high = (amount(figure[end], unit).split(" ")[0] for end in ("low", "high"))
    return f"({low} to {high})"


def with_interval(figure: dict[str, float]) -> str:
    """A share, such as mIoU or error, and both ends of its interval."""
    return f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"


def counted(told: dict[str, Any]) -> str:
    """How many images, and in how many groups where they are in any."""
    count, groups = told["images"], told["groups"]
    return f"{count} images" if groups == count else f"{count} images in {groups} groups"
