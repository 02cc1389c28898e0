"""The one seed that every generated input of the tests hangs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np

T = TypeVar("T")

SEED = int(os.environ.get("MESS_TEST_SEED", "0"))
"""With another one every test sees other numbers, and must pass all the same."""


def seeded(key: int) -> int:
    """The seed of one generator; `key` tells it from the others."""
    return key + 1_000_003 * SEED


def first_drawn(
    key: int, draw: Callable[[np.random.Generator], T], wanted: Callable[[T], bool]
) -> T:
    """The first that is as wanted of what is drawn: tests of a case need one, whatever the seed."""

    def each() -> Iterator[T]:
        rng = np.random.default_rng(seeded(key))
        while True:
            yield draw(rng)

    return next(drawn for drawn in islice(each(), 100) if wanted(drawn))
