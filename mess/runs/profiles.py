"""Latency profiles: what was measured of the parts of a network, and that it is still that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mess.cache.parquet import find_facts, read_rows, write_rows
from mess.cache.schema import LATENCY
from mess.common.records import DIGEST, digest_of
from mess.errors import CacheError


def write_profile(path: Path, rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write the rows of a profile, the facts about it and a digest of both, atomically."""
    rows = [dict(row) for row in rows]
    write_rows(path, rows, LATENCY, {**facts, DIGEST: _digest(rows, facts)})


def read_profile(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts of a profile; raises CacheError where they are not those that were written.

    Parquet tells little of that: most flipped bits only make another number.
    """
    rows, facts = read_rows(path, LATENCY), find_facts(path)
    if facts is None or facts.pop(DIGEST, None) != _digest(rows, facts):
        raise CacheError(
            f"{path} was altered, or an earlier version of mess wrote it. Delete it and measure "
            "again with `mess profile`."
        )
    return rows, facts


def _digest(rows: list[dict[str, Any]], facts: Mapping[str, Any]) -> str:
    return digest_of({"rows": rows, "facts": dict(facts)})
