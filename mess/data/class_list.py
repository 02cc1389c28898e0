"""classes.json of a folder data set: the classes, and what stands for them in its masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mess.common.metrics import VOID
from mess.data.base import ClassTable
from mess.data.mask_encoding import MaskEncoding
from mess.errors import DataError

_Fault = Callable[[str], DataError]
"""Makes the error of a sentence about classes.json."""


def read_classes(path: Path) -> tuple[ClassTable, MaskEncoding]:
    """The classes in classes.json, and what of the masks stands for them.

    Raises DataError that names the file, the key and the value.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; it names the classes: "
            '{"num_classes": 2, "ignore_index": 255, "classes": '
            '[{"id": 0, "name": "road", "color": [128, 64, 128]}, ...]}.'
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; it should be an object.")
    table = _read_table(content, path)

    def fault(sentence: str) -> DataError:
        return DataError(f"{path}: {sentence}")

    encoding = _read_encoding(content, fault)
    if encoding is not None:
        return table, encoding
    return table, MaskEncoding.of_ids(table.num_classes, _ignore_index(content, path))


def _read_table(content: dict[str, Any], path: Path) -> ClassTable:
    entries = _key(content, "classes", list, path)
    num_classes = _key(content, "num_classes", int, path)
    if num_classes != len(entries) or not 1 <= num_classes <= VOID:
        raise DataError(
            f"{path}: num_classes is {num_classes} and `classes` has {len(entries)} entries; "
            f"both are the same number in 2..{VOID}."
        )
    names, colors = [], []
    for position, entry in enumerate(entries):
        where = f"entry {position} of `classes`"
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {where} is {entry!r}; it should have id, name and color.")
        if (class_id := _key(entry, "id", int, path, where)) != position:
            raise DataError(f"{path}: {where} has id {class_id}; ids count up from 0 in order.")
        names.append(_key(entry, "name", str, path, where))
        colors.append(_color(_key(entry, "color", list, path, where), path, where))
    if num_classes == 1:
        raise DataError(
            f"{path}: {names[0]!r} is the only class, and a network that knows one answer learns "
            "nothing. Make what is not of it a class, too, such as background."
        )
    return ClassTable(names=tuple(names), colors=tuple(colors))


def _ignore_index(content: dict[str, Any], path: Path) -> int:
    num_classes, ignore_index = content["num_classes"], content.get("ignore_index", VOID)
    if not isinstance(ignore_index, int) or not num_classes <= ignore_index <= VOID:
        raise DataError(
            f"{path}: ignore_index is {ignore_index!r}; it is a mask value in "
            f"{num_classes}..{VOID}, above the class ids. Others can be void by `void`, a list."
        )
    return ignore_index


def _read_encoding(content: dict[str, Any], fault: _Fault) -> MaskEncoding | None:
    """The encoding that `values`, `colors` and `void` in a checked classes.json give.

    None where there is none of these keys: masks hold class ids. Raises what `fault` makes.
    """
    entries: list[dict[str, Any]] = content["classes"]
    by_display = content.get("colors", False)
    if not isinstance(by_display, bool):
        raise fault(
            f"colors is {by_display!r}; true says that masks show each class in its `color`. "
            "Colours of a class are a key of its entry."
        )
    keys = {key for key in ("values", "colors") if any(key in entry for entry in entries)}
    in_colors = by_display or "colors" in keys
    if in_colors and "values" in keys:
        raise fault("there are `values` and colours; masks hold either numbers or colours.")
    if not keys and not in_colors and "void" not in content:
        return None
    key = "colors" if in_colors else "values"
    number = _color_number if in_colors else _value_number
    values: list[tuple[int, ...]] = []
    for position, entry in enumerate(entries):
        where = f"entry {position} of `classes`"
        if key not in entry and keys and not by_display:
            raise fault(f"{where} has no {key!r}, and others have; give them to every class.")
        default = [entry["color"]] if by_display else [position]
        values.append(_numbers(entry.get(key, default), f"{key} of {where}", number, fault))
        if not values[-1]:
            raise fault(f"{key} of {where} is empty; a class has at least one.")
    void = _numbers(content.get("void", []), "void", number, fault)
    encoding = MaskEncoding(values=tuple(values), void=void, in_colors=in_colors)
    _require_distinct(encoding, [entry["name"] for entry in entries], fault)
    return encoding


def _numbers(
    listed: Any, where: str, number: Callable[[Any, str, _Fault], int], fault: _Fault
) -> tuple[int, ...]:
    if not isinstance(listed, list):
        raise fault(f"{where} is {listed!r}; it should be a list.")
    return tuple(number(each, where, fault) for each in listed)


def _value_number(value: Any, where: str, fault: _Fault) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**31:
        raise fault(
            f"{where} has {value!r}; it lists whole numbers as masks hold them, or, where "
            "classes have colours, [r, g, b]."
        )
    return value


def _color_number(value: Any, where: str, fault: _Fault) -> int:
    whole = isinstance(value, list) and len(value) == 3
    if not whole or not all(type(part) is int and 0 <= part <= 255 for part in value):
        raise fault(f"{where} has {value!r}; it lists colours, each [r, g, b] in 0..255.")
    red, green, blue = value
    return red << 16 | green << 8 | blue


def _require_distinct(encoding: MaskEncoding, names: Sequence[str], fault: _Fault) -> None:
    owner: dict[int, str] = {}
    listed = [*zip(map(repr, names), encoding.values, strict=True), ("void", encoding.void)]
    for name, values in listed:
        for value in values:
            other = owner.setdefault(value, name)
            if other != name:
                raise fault(
                    f"{encoding.shown(value)} is of {other} and of {name}; a value has one meaning."
                )


def _key(content: dict[str, Any], key: str, kind: type, path: Path, where: str = "it") -> Any:
    if key not in content:
        found = ", ".join(content) or "none"
        raise DataError(f"{path}: {where} has no key {key!r}; the keys are: {found}.")
    value = content[key]
    # A bool is an int to Python: `true` would pass for 1.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(
            f"{path}: {key} of {where} is {value!r}; it should be of type {kind.__name__}."
        )
    return value


def _color(value: list[Any], path: Path, where: str) -> tuple[int, int, int]:
    if len(value) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in value):
        raise DataError(f"{path}: color of {where} is {value}; it should be [r, g, b] in 0..255.")
    red, green, blue = value
    return red, green, blue
