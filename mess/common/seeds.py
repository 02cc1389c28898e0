"""Independent random streams from the one seed of the configuration."""

from __future__ import annotations

import hashlib


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for one use, such as `derive(seed, "exit", "p1-crm1-b0-fcn")`.

    It depends on nothing but its arguments: the order or division of work over processes does not
    change what is drawn.
    """
    # Not `hash`, which differs between processes. `repr` keeps ("a", "b") and ("ab",) apart.
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
