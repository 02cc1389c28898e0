"""What a result says of new images: what is promised, what to expect, or how to have it told."""

from __future__ import annotations

from typing import Any

from mess.sentences.accuracy import against, labels_of
from mess.sentences.certificates import certificate_lines
from mess.sentences.figures import counted, with_interval
from mess.sentences.near_identical import near_identical_lines


def new_images_lines(result: dict[str, Any]) -> list[str]:
    """What is promised, or expected, of new images, or how to have it told."""
    return [against(line, labels_of(result)) for line in _new_images_lines(result)]


def _new_images_lines(result: dict[str, Any]) -> list[str]:
    if certificate := result.get("certificate"):
        lines = certificate_lines(certificate)
        lines += _compared_lines(certificate)
        return [*lines, *near_identical_lines(certificate, certificate["images"])]
    if not (expected := result.get("expected")):
        return [
            "All this is of the images that were searched, and new ones lose more: --expect tells "
            f"how much, --confidence 0.95 keeps the limits there.{_searched_interval(result)}"
        ]
    kept, error = expected["saving_kept"], with_interval(expected["error"])
    together = expected.get("confidence_together", expected["confidence"])
    keeps = "" if kept is None else f"; that would keep {100 * max(0.0, kept):.0f}% of the saving"
    return [
        f"On new images like these {expected['images']} expect an error of {error}. To hold the "
        f"limits there, too, add --confidence {together:g}{keeps}.",
        *_compared_lines(expected),
        *near_identical_lines(expected, expected["images"]),
    ]


def _compared_lines(told: dict[str, Any]) -> list[str]:
    """Where one of several answers is taken: what holds for whichever it is."""
    if "compared" not in told:
        return []
    each, together = (f"{100 * told[k]:.4g}%" for k in ("confidence", "confidence_together"))
    return [
        f"Each of {told['compared']} searches that were compared is told at {each}, so that all "
        f"hold together at {together}, whichever is taken."
    ]


def _searched_interval(result: dict[str, Any]) -> str:
    """How far the error is known at all; nothing where there is no interval."""
    intervals = result.get("intervals") or {}
    error = intervals.get("error")
    if error is None or error["low"] == error["high"]:
        return ""
    return (
        f" That there are {counted(intervals)} alone leaves the error between {error['low']:.4f} "
        f"and {error['high']:.4f} (95%, not corrected for having searched)."
    )
