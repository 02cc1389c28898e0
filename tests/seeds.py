"""The one seed that every generated input of the tests hangs on."""

from __future__ import annotations

import os

SEED = int(os.environ.get("MESS_TEST_SEED", "0"))
"""With another one every test sees other numbers, and must pass all the same."""


def seeded(key: int) -> int:
    """The seed of one generator; `key` tells it from the others."""
    return key + 1_000_003 * SEED
