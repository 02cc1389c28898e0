"""Errors a user can act on.

Each message names the value, the limit it broke and the next move. The command line prints the
message alone and exits with 1; a traceback would hide the one sentence that matters.

May import: nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MessError(Exception):
    """A refused or failed request; base of everything `mess` raises on purpose."""


class ConfigError(MessError):
    """A configuration that cannot be used."""


class DataError(MessError):
    """A data set with a missing, unreadable or inconsistent part."""


class WeightsError(MessError):
    """Weights that are missing or do not fit the network."""


class InterruptedWork(MessError):
    """Work that a signal stopped; what was done is kept."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class TrainingError(MessError):
    """Training that cannot go on, such as a loss that is not finite."""


class CacheError(MessError):
    """A prediction cache that is missing, incomplete, stale or damaged."""


class InfeasibleError(MessError):
    """No configuration meets the constraints: an answer, not a fault."""


class BundleError(MessError):
    """A bundle that is incomplete or was altered after its export."""


def nearest(value: str, known: Iterable[str]) -> str:
    """A closing clause that lists `known` and, where one is close, suggests it."""
    names = sorted(known)
    close = difflib.get_close_matches(value, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"known: {', '.join(names)}{hint}"
