"""What of a split nobody labelled, and what of its folder nobody reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mess.common.metrics import VOID

_NAMED = 5


def absent_class_lines(where: str, names: Sequence[str], labelled: Sequence[int]) -> list[str]:
    """What to say of classes that no mask of a split holds.

    labelled: pixels of each class.
    """
    absent = [name for name, pixels in zip(names, labelled, strict=True) if not pixels]
    if not absent:
        return []
    more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    return [
        f"{where}: no mask holds {', '.join(map(repr, absent[:_NAMED]))}{more} ({len(absent)} of "
        f"{len(names)} classes), so nothing is learned or told of what there is none of. In masks "
        f"without `values` in classes.json {VOID} is void."
    ]


def left_out_lines(where: str, others: Sequence[Path]) -> list[str]:
    """What to say of files that lie with the images and are no part of them."""
    if not others:
        return []
    return [
        f"Left out, for name or place is not that of an image or mask: {len(others)} "
        f"file{'' if len(others) == 1 else 's'} in {where}, such as {others[0].name}."
    ]
