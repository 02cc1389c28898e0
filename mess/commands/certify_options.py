"""What `mess certify` is asked for, refused early where it cannot be. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mess.errors import MessError
from mess.search.guarantees.confidence import require_confidence


@dataclass(frozen=True, kw_only=True)
class CertifyOptions:
    """What is certified, and on what.

    max_error, min_miou: by default those that the first bundle's search was asked for.
    split, root: of the images; root is another data set's, with the run's classes.
    trust: whether bundles may be of a format that is code.
    """

    max_error: float | None = None
    min_miou: float | None = None
    confidence: float = 0.95
    split: str = "test"
    root: Path | None = None
    threads: int = 1
    trust: bool = False

    def __post_init__(self) -> None:
        require_confidence(self.confidence)
        for name, value in self.limits.items():
            if not 0 <= value < 1:
                raise MessError(
                    f"{name} = {value:g} is no limit: both are in mIoU and lie between 0 and 1."
                )

    @property
    def limits(self) -> dict[str, float]:
        """Those that are given, by name."""
        named = {"max_error": self.max_error, "min_miou": self.min_miou}
        return {name: value for name, value in named.items() if value is not None}
