"""What counts as a confidence. Apart from what computes with it, which takes long to import."""

from __future__ import annotations

from mess.errors import ConfigError

LEAST_CONFIDENCE = 0.5
"""A bound that holds less often than not promises nothing."""


def require_confidence(confidence: float) -> None:
    """Raise ConfigError for what is no confidence, with what may have been meant."""
    if LEAST_CONFIDENCE < confidence < 1:
        return
    percent = confidence / 100
    meant = f"; did you mean {percent:g}?" if LEAST_CONFIDENCE < percent < 1 else ""
    raise ConfigError(
        f"a confidence lies between {LEAST_CONFIDENCE} and 1, got {confidence:g}{meant}"
    )
