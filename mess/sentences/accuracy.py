"""What accuracy is measured against, wherever a text speaks of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mess.common.metrics import MASKS

_ACCURACY = re.compile(r"(?<![\w-])(mIoU|IoU|error)(?![\w-])(?! against the final exit)")
"""The words for what is measured, and no option such as --max-error."""


def against(text: str, labels: str) -> str:
    """A text in which no mIoU and no error stands alone that is not against masks.

    labels: what was counted against, `masks` or the exit whose label maps are in their place.
    Without masks a figure of 1 says that an instance answers as the whole network does, and nothing
    of how good either is: whoever reads one must not take it for accuracy.
    """
    return text if labels == MASKS else _ACCURACY.sub(rf"\1 against the {labels} exit", text)


def labels_of(result: Mapping[str, Any]) -> str:
    """What the accuracy in a search's result is measured against: `masks`, or an exit."""
    return result.get("cache", {}).get("labels", MASKS)
