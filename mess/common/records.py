"""JSON files with named keys, held against the `TypedDict` that names them when they are read."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    NotRequired,
    TypedDict,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from mess.errors import MessError

_Record = TypeVar("_Record")

DIGEST = "digest"
"""Key of the digest of results and bundles' manifests."""


class Figures(TypedDict):
    """What an instance reaches and costs, as result.json and a bundle's manifest hold it."""

    miou: float
    macs: float
    latency_ms: float | None
    params: float


def read_record(
    path: Path, kind: type[_Record], again: str, error: type[MessError] = MessError
) -> _Record:
    """The content of a JSON file as `kind`; further keys are left as they are.

    Raises `error`, which names the file and the key and ends with `again`, where the file is
    damaged, lacks a key or has a value of another type; FileNotFoundError where there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise error(f"{path} is damaged: {fault}. {again}") from fault
    return as_record(content, kind, path, again, error)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log of JSON lines: `stage`, `iteration` and finite figures by name.

    A line that is none, such as one that a kill or a bad disk left, is passed over: a log tells
    what happened, and nothing is computed from what it lacks.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            # Without its end a line is still being written.
            if not line.endswith("\n"):
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _fault(row, _LogRow, "") is None and all(map(_is_figure, _figures(row))):
                yield row


class _LogRow(TypedDict):
    stage: str
    iteration: int


def _figures(row: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in row.items() if name != "stage"]


def _is_figure(value: object) -> bool:
    return _is_plain(value, float) and abs(cast(float, value)) <= sys.float_info.max


def read_strictly(
    path: Path, most_bytes: int, again: str, error: type[MessError] = MessError
) -> dict[str, Any]:
    """The object in a JSON file that nobody vouches for.

    Raises `error` for a file that is larger, or no JSON object, or that readers could understand
    differently: with a key twice, NaN or infinity; FileNotFoundError where there is none.
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise error(f"{path} is larger than {most_bytes:,} bytes. {again}")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_distinct_keys,
            parse_constant=_refused_constant,
            parse_float=_finite,
        )
    # Deep nesting exhausts the parser's recursion.
    except (ValueError, RecursionError) as fault:
        raise error(f"{path} is damaged: {fault}. {again}") from fault
    if not isinstance(value, dict):
        raise error(f"{path} is damaged: it is no JSON object. {again}")
    return value


def _distinct_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return value


def _refused_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is larger than any number")
    return value


def as_record(
    content: object,
    kind: type[_Record],
    path: Path,
    again: str,
    error: type[MessError] = MessError,
) -> _Record:
    """What was read from `path`, as `kind`; raises as `read_record` does."""
    fault = _fault(content, kind, "")
    if fault is not None:
        raise error(f"{path} {fault}. {again}")
    return cast(_Record, content)


def require_unaltered(
    content: Mapping[str, Any], path: Path, again: str, error: type[MessError] = MessError
) -> None:
    """Raise `error` where a file that was written `with_digest` has another content by now.

    Someone changed a figure, and what was proven or certified of the old one does not hold for the
    new. A file without a digest is of an earlier version, and nothing tells.
    """
    if DIGEST in content and with_digest(content) != content:
        raise error(
            f"{path} was altered after it was written: its digest is not of what it says. {again}"
        )


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with the digest of all the rest, by which a change is noticed.

    It guards against accidents and careless edits, not against who computes a digest, too.
    """
    # Through JSON and back: what is read has lists for tuples.
    rest = json.loads(json.dumps({key: content[key] for key in content if key != DIGEST}))
    return {**rest, DIGEST: digest_of(rest)}


def digest_of(content: Mapping[str, Any]) -> str:
    """sha256 over JSON content, whatever the order of its keys and the file's layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def unknown_key(value: object, kind: Any, where: str = "") -> str | None:
    """The first key of a record that `kind` does not name, such as "exits[0].speed"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        parts = [(item, hints.get(key), f"{where}.{key}") for key, item in value.items()]
    elif origin is dict and isinstance(value, dict):
        parts = [(item, arguments[-1], f"{where}.{key}") for key, item in value.items()]
    elif origin is list and isinstance(value, list):
        parts = [(item, arguments[-1], f"{where}[{i}]") for i, item in enumerate(value)]
    else:
        return None
    for item, inner, place in parts:
        unknown = place if inner is None else unknown_key(item, inner, place)
        if unknown:
            return unknown.removeprefix(".")
    return None


def _fault(value: object, kind: Any, where: str) -> str | None:
    """The first thing that is not as `kind` says, such as "lacks exits[0].macs"."""
    if kind is Any:
        return None
    if is_typeddict(kind):
        return _fault_of_record(value, kind, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        # Of a value that fits none, the first kind's fault is told: None is written last.
        faults = [_fault(value, one, where) for one in arguments]
        return None if None in faults else faults[0]
    # Lists have one argument and dicts two, of which keys are strings in JSON: the last counts.
    if origin is list and isinstance(value, list):
        parts = [(item, f"{where}[{index}]") for index, item in enumerate(value)]
    elif origin is dict and isinstance(value, dict):
        parts = [(item, f"{where}.{key}") for key, item in value.items()]
    else:
        return None if _is_plain(value, origin or kind) else f"has {where} = {value!r}"
    faults = (_fault(item, arguments[-1], place) for item, place in parts)
    return next((fault for fault in faults if fault), None)


def _fault_of_record(value: object, kind: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return f"has {where} = {value!r}" if where else "is no JSON object"
    # Without extras the hints would come without their NotRequired.
    for name, hint in get_type_hints(kind, include_extras=True).items():
        place = f"{where}.{name}" if where else name
        if name not in value:
            if get_origin(hint) is not NotRequired:
                return f"lacks {place}"
            continue
        inner = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        fault = _fault(value[name], inner, place)
        if fault is not None:
            return fault
    return None


def _is_plain(value: object, kind: Any) -> bool:
    """Whether a value is of a type; JSON has one type of numbers, and a truth is none of them."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is None or kind is NoneType:
        return value is None
    return isinstance(value, int | float if kind is float else kind)
