"""Reading and writing one Parquet file; the only import of pyarrow beside the schemas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mess.common.files import atomic_path
from mess.errors import CacheError

_FACTS = b"mess"

_NEXT_MOVE = "Delete it and repeat the command that wrote it (see docs/files.md)."


def write_rows(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    schema: pa.Schema,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write rows atomically; `facts` (JSON) go into the file's own metadata."""
    # Without the schema a column that is null in every row would be of type null.
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with atomic_path(path) as temporary:
        write_table(temporary, table, facts)


def write_table(
    path: Path,
    table: pa.Table,
    facts: Mapping[str, Any] | None = None,
    dictionary: Sequence[str] | None = None,
) -> None:
    """Write a table, not atomically; `dictionary` names the columns that repeat values, or all."""
    if facts is not None:
        table = table.replace_schema_metadata({_FACTS: json.dumps(facts).encode()})
    repeating = True if dictionary is None else list(dictionary)
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=repeating,  # pyright: ignore[reportArgumentType]
    )


def read_table(
    path: Path,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    later: Sequence[str] = (),
) -> pa.Table:
    """Read a file of `schema`, or some of its columns; raises CacheError that names the file.

    later: columns that earlier versions did not write, which a file may lack.
    """
    with _readable(path):
        found = pq.read_schema(path)
        absent = [name for name in later if name not in found.names]
        if not found.equals(pa.schema([field for field in schema if field.name not in absent])):
            raise CacheError(
                f"{path} has another schema than this version of mess writes. {_NEXT_MOVE}"
            )
        return pq.read_table(path, columns=list(columns) if columns else None, memory_map=True)


def read_rows(path: Path, schema: pa.Schema, later: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All rows of a small file; see `read_table`."""
    table = read_table(path, schema, later=later)
    # Texts are decoded here.
    with _readable(path):
        return table.to_pylist()


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that `write_rows` stored beside the rows."""
    facts = find_facts(path)
    if facts is None:
        raise CacheError(f"{path} lacks the facts about its making. {_NEXT_MOVE}")
    return facts


def find_facts(path: Path) -> dict[str, Any] | None:
    """The facts beside the rows; None where none were stored, as by earlier versions."""
    with _readable(path):
        metadata = pq.read_schema(path).metadata or {}
        # Not `read_table`: facts tell which version wrote a file, also where its columns differ.
        facts = json.loads(metadata[_FACTS]) if _FACTS in metadata else None
        if not isinstance(facts, dict | None):
            raise CacheError(f"{path} has facts that are no JSON object. {_NEXT_MOVE}")
        return facts


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    # Before OSError, of which it is a kind.
    except FileNotFoundError:
        raise CacheError(f"{path} does not exist. {_NEXT_MOVE}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CacheError(f"{path} is damaged: {error}. {_NEXT_MOVE}") from error
