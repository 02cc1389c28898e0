"""What intervals tell of all images like those that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mess.sentences.figures import amount, counted, ends, with_interval


def interval_lines(intervals: dict[str, Any]) -> list[str]:
    """What figures of some images tell of all images like them."""
    if intervals["strength"] is None:
        return [f"No intervals: {intervals['reason']}"]
    figures = [
        f"{name} {with_interval(figure)}"
        for name, figure in (("mIoU", intervals["miou"]), ("error", intervals["error"]))
        if figure is not None
    ]
    figures += [
        f"{amount(figure['value'], unit)} {ends(figure, unit)}"
        for name, unit in (("macs", "MACs"), ("latency_ms", "ms"))
        # Where every image takes the same way it costs the same, too.
        if (figure := intervals.get(name)) and figure["low"] < figure["high"]
    ]
    rates = [
        f"{100 * rate['value']:.1f}% ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
        for rate in intervals["exit_rates"]
        if rate is not None
    ]
    figures += [f"exit rates {', '.join(rates)}"] * bool(rates)
    confidence = f"{100 * intervals['confidence']:g}%"
    lines = [
        f"On all images like these {counted(intervals)}, at {confidence}: {', '.join(figures)}."
    ]
    # Those of earlier versions do not say.
    if intervals.get("skewed"):
        lines.append(
            "The error's interval is weak: most of what is lost lies in few images, and as many "
            "others may lose more."
        )
    lines += _weak(intervals) + rare_lines(intervals["rare"], "mIoU and error here leave them out")
    if intervals["searched"]:
        lines.append(
            f"{intervals['searched']} of these {intervals['images']} images chose the instance: on "
            "others it loses more."
        )
    return lines


def rare_lines(names: Sequence[str], consequence: str) -> list[str]:
    """The classes that too few groups have to say anything about."""
    if not names:
        return []
    return [f"Too rare to promise anything about: {', '.join(names)}; {consequence}."]


def against_best_lines(comparison: dict[str, Any]) -> list[str]:
    """Which policies cost or lose more than the best one, and which cannot be told from it."""
    intervals = comparison["intervals"]
    if intervals["strength"] is None:
        return [f"No intervals: {intervals['reason']}"]
    rows = [row for row in comparison["policies"] if "against_best" in row]
    if not rows:
        return []
    lines = [
        f"Against * on the same {counted(intervals)} (95%, not corrected for having searched):"
    ]
    for row in rows:
        paired, figures = row["against_best"], []
        for key, unit in (("latency_ms", "ms"), ("macs", "MACs")):
            if figure := paired.get(key):
                figures.append(f"{amount(figure['value'], unit)} more {ends(figure, unit)}")
        if paired["error"] is not None:
            figures.append(f"{with_interval(paired['error'])} mIoU lost")
        lines.append(f"  {policy_name(row)}: {', '.join(figures)}.")
    return lines + _weak(intervals) + rare_lines(intervals["rare"], "mIoU here leaves them out")


def policy_name(row: Mapping[str, Any]) -> str:
    """A policy of a comparison, and whether its exits share a threshold."""
    return f"{row['policy']}{', one threshold' * row['shared_threshold']}"


def _weak(intervals: dict[str, Any]) -> list[str]:
    if intervals["strength"] != "weak":
        return []
    return [f"The intervals are weak: {intervals['groups']} groups tell little about others."]
