"""What an adopted network reached before anything was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def adoption_lines(told: Mapping[str, Any]) -> list[str]:
    """What adopted.json says, and a warning where the network is hardly better than a guess."""
    classes = [row for row in told["classes"] if row["iou"] is not None]
    classes.sort(key=lambda row: row["iou"])
    worst = ", ".join(f"{row['class']} {row['iou']:.3f}" for row in classes)
    images = f"{told['images']} calibration image{'' if told['images'] == 1 else 's'}"
    lines = [
        f"Adopted {told['file']} (sha256 {told['sha256'][:12]}): mIoU {told['miou']:.4f} on "
        f"{images}. IoU, the worst class first: {worst}."
    ]
    if told["miou"] <= told["chance"]:
        lines.append(
            f"This is near chance: {told['chance']:.4f} is what a guess reaches, or one class "
            "everywhere. Are its channels the classes in this order (backbone.outputs), and does "
            "it take images as it is given them (data.mean, data.std, data.channels, data.range)? "
            "See docs/adopt.md."
        )
    return lines
