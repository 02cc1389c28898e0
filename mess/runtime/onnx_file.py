"""Whether an ONNX file holds all of its weights, told without a library that reads ONNX.

A graph may name another file, anywhere, for the values of a tensor, and runtimes open it. Of the
format (protocol buffers' wire format, ONNX's onnx.proto) only what leads to tensors is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mess.errors import BundleError

_MOST_DEPTH = 100
"""Of messages within messages; protocol buffers' own limit."""

_PARTS: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
"""By message, the numbers of the fields that hold tensors or what holds them."""

_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
"""Fields of a TensorProto."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Types of the wire format; 3 and 4, groups, are in no ONNX file."""


def require_own_weights(content: bytes, what: str) -> None:
    """Raise BundleError where the graph in `content` names other files, or is damaged."""
    try:
        for tensor in _tensors(memoryview(content), "ModelProto", 0):
            fields = dict(_fields(tensor))
            # 0 is the default location, the file itself, and writers may say so.
            if _EXTERNAL_DATA in fields or fields.get(_DATA_LOCATION, 0):
                name = bytes(fields.get(_NAME, b"")).decode(errors="replace")
                raise BundleError(
                    f"{what} has the values of {name!r} in another file, and a bundle's programs "
                    "hold all that they need."
                )
    except (ValueError, TypeError, IndexError) as error:
        raise BundleError(f"{what} is no ONNX graph: {error}.") from error


def _tensors(message: memoryview, kind: str, depth: int) -> Iterator[memoryview]:
    if depth > _MOST_DEPTH:
        raise ValueError(f"more than {_MOST_DEPTH} levels within each other")
    if kind == "TensorProto":
        yield message
        return
    parts = _PARTS[kind]
    for number, value in _fields(message):
        if number in parts:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {number} of {kind} is a number")
            yield from _tensors(value, parts[number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field of a message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of type {kind}")
        if at + length > len(message):
            raise ValueError("a field that is longer than the file")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
