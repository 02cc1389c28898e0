"""What the comparison with Layer Cascade found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cascade.maps import LEVELS
from benchmarks.results import Row
from mess.exits import FINAL, parse_exit_id


def accuracy_table(rows: Sequence[Row]) -> str:
    lines = ["| exit | mIoU, nearest neighbour | bilinear logits |", "| --- | --- | --- |"]
    lines += [f"| `{r['exit']}` | {r['nearest']:.4f} | {r['bilinear']:.4f} |" for r in rows]
    return "\n".join(lines)


def gains_table(rows: Sequence[Row]) -> str:
    lines = [
        "| early heads | error ≤ | exits | LC | ours | LC if pixels needed only themselves "
        "| LC: pixels leaving | LC: images with a pixel that goes on | ours: images leaving |",
        "| --- |" + " --- |" * 8,
    ]
    for row in rows:
        pixels = np.array(row["lc_pixels"]) / sum(row["lc_pixels"])
        rates = [row["ours"]["exits"].get(exit_id, 0.0) for exit_id in row["exits"]]
        lines.append(
            f"| {row['head'].upper()} | {row['error']:.1%} | {_points(row['exits'])} "
            f"| {row['lc']:.2f}× | {row['ours']['gain']:.2f}× | {row['lc_active_alone']:.2f}× "
            f"| {_percent(pixels)} | {row['lc_images']:.0%} | {_percent(rates)} |"
        )
    return "\n".join(lines)


def bits_table(rows: Sequence[Row]) -> str:
    lines = [
        "| early heads | error ≤ | exits | thresholds | pixels that change exit | mIoU | MACs "
        "| LC | LC with 16 bits |",
        "| --- |" + " --- |" * 8,
    ]
    for row in rows:
        found = row["in_float"]
        thresholds = ", ".join(f"{t}/{LEVELS - 1}" for t in row["lc_thresholds"])
        again = f"{row['fine']['lc']:.3f}×" if "fine" in row else ""
        lines.append(
            f"| {row['head'].upper()} | {row['error']:.1%} | {_points(row['exits'])} "
            f"| {thresholds} | {found['moved']:.2%} | {found['miou']:+.5f} | {found['macs']:+.2%} "
            f"| {row['lc']:.3f}× | {again} |"
        )
    return "\n".join(lines)


def field_table(rows: Sequence[Row]) -> str:
    lines = [
        "| backbone | size | last head | features at E1 | at E3 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        shares = " | ".join(f"{share:.0%}" for share in row["shares"].values())
        size = "×".join(map(str, reversed(row["size"])))
        lines.append(f"| {row['backbone']} | {size} | {row['head'].upper()} | {shares} |")
    return "\n".join(lines)


def _points(exits: Sequence[str]) -> str:
    return ", ".join("E6" if e == FINAL else f"E{parse_exit_id(e)[0]}" for e in exits)


def _percent(shares: Any) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)
