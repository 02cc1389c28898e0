"""Images that are too much alike for what is said of new ones."""

from __future__ import annotations

from typing import Any


def near_identical_lines(told: dict[str, Any], images: int) -> list[str]:
    """What `near_identical` and `near_searched` of some images warn of."""
    lines = []
    if (found := told.get("near_identical")) and found["images"]:
        suggested = "data.groups says which belong together"
        if found["suggested"] is not None:
            groups = f"{found['groups']} group{'s' if found['groups'] != 1 else ''}"
            suggested = f"data.groups = {found['suggested']!r} would make {groups} of all images"
        lines.append(
            f"{_count_of(found, images)} nearly identical to one of another group, such as "
            f"{' and '.join(found['pair'])}. Frames of a video tell hardly more than one of them, "
            f"so they say less of new images than their number does. {suggested}; set it in the "
            "run's config.toml."
        )
    if (found := told.get("near_searched")) and found["images"]:
        lines.append(
            f"{_count_of(found, images)} nearly identical to one that was searched, such as "
            f"{' and '.join(found['pair'])}. They judge what they all but chose: certify on images "
            "of other scenes."
        )
    return lines


def _count_of(found: dict[str, Any], images: int) -> str:
    return f"{found['images']} of {images} images {'is' if found['images'] == 1 else 'are'}"
