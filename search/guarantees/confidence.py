"""What counts as a confidence, and as a limit on lost pixels.

Apart from what computes with them, which takes long to import.
"""

from __future__ import annotations

from mess.errors import ConfigError

LEAST_CONFIDENCE = 0.5
"""A bound that holds less often than not promises nothing."""

EXPECTED = 0.95
"""Of intervals where none was asked for."""


def require_confidence(confidence: float) -> None:
    """Raise ConfigError for what is no confidence, with what may have been meant."""
    if LEAST_CONFIDENCE < confidence < 1:
        return
    percent = confidence / 100
    meant = f"; did you mean {percent:g}?" if LEAST_CONFIDENCE < percent < 1 else ""
    raise ConfigError(
        f"a confidence lies between {LEAST_CONFIDENCE} and 1, got {confidence:g}{meant}"
    )


def require_max_lost(limit: float) -> None:
    """Raise ConfigError for what is no share to stay below, with what may have been meant."""
    if 0 < limit < 1:
        return
    meant = f"; did you mean {limit / 100:g}?" if 1 < limit < 100 else ""
    raise ConfigError(
        f"max_lost is a share of an image's labelled pixels, between 0 and 1, got {limit:g}{meant}"
    )
