"""Compiled loops that Numba keeps beside the code, and when they are of other code."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

STATE = "compiled-from"
"""File in `__pycache__` that tells of which sources the compiled loops there are."""


def forget_outdated(folder: Path) -> None:
    """Delete the index of loops that were compiled from other sources than `folder` has now.

    Numba does so for each file, but only after it has read the types in the index, and fails where
    one of them was renamed or moved: every search would, after an upgrade. Where nothing can be
    written here, Numba keeps its loops elsewhere and nothing is done.
    """
    facts = [(file.name, file.stat()) for file in sorted(folder.glob("*.py"))]
    content = repr([(name, facts.st_size, facts.st_mtime_ns) for name, facts in facts])
    now, kept = hashlib.sha256(content.encode()).hexdigest(), folder / "__pycache__"
    with suppress(OSError):
        if (kept / STATE).is_file() and (kept / STATE).read_text() == now:
            return
        # Two processes may do this at once: what one deletes the other compiles again.
        for index in kept.glob("*.nbi"):
            index.unlink(missing_ok=True)
        kept.mkdir(exist_ok=True)
        (kept / STATE).write_text(now)
