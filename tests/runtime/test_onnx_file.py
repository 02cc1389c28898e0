"""Graphs that keep their weights elsewhere, told without ONNX's own library and held against it."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mess.errors import BundleError
from mess.runtime import onnx_file
from mess.runtime.onnx_file import require_own_weights
from tests.seeds import seeded


def tensor(name: str = "weight", *, external: bool = False) -> onnx.TensorProto:
    made = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), name)
    if external:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="../../secrets.bin")
    return made


def model(**parts: object) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph(
        nodes=[helper.make_node("Add", ["x", "weight"], ["y"])],
        name="g", inputs=[value], outputs=[], initializer=[tensor()], **parts,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return helper.make_model(graph)


def initializer(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    made.graph.initializer.append(bad)


def sparse(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    made.graph.sparse_initializer.add().indices.CopyFrom(bad)


def constant(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    made.graph.node.append(helper.make_node("Constant", [], ["c"], value=bad))


def several(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    attribute = made.graph.node[0].attribute.add(name="many")
    attribute.tensors.extend([tensor(), bad])


def sparse_attribute(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    made.graph.node[0].attribute.add(name="s").sparse_tensor.values.CopyFrom(bad)


def branch(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    """In a graph within a node of a graph within a node."""
    inner = made.graph.node[0].attribute.add(name="then").g.node.add(op_type="If")
    inner.attribute.add(name="else").graphs.add().initializer.append(bad)


def function(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    made.functions.add().node.append(helper.make_node("Constant", [], ["c"], value=bad))


def default(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    made.functions.add().attribute_proto.add(name="a").t.CopyFrom(bad)


def training(made: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    made.training_info.add().algorithm.initializer.append(bad)


PLACES = (
    initializer, sparse, constant, several, sparse_attribute, branch, function, default, training,
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_weights_elsewhere_are_refused_wherever_they_are(
    place: Callable[[onnx.ModelProto, onnx.TensorProto], None],
) -> None:
    for external in (False, True):
        made = model()
        place(made, tensor("loot", external=external))
        content = made.SerializeToString()
        if external:
            with pytest.raises(BundleError, match="values of 'loot' in another file"):
                require_own_weights(content, "a program")
        else:
            require_own_weights(content, "a program")


def test_a_location_without_data_is_refused_too() -> None:
    made = model()
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(BundleError, match="'weight' in another file"):
        require_own_weights(made.SerializeToString(), "a program")
    made.graph.initializer[0].data_location = TensorProto.DEFAULT
    require_own_weights(made.SerializeToString(), "a program")


def test_all_ways_to_a_tensor_are_known() -> None:
    """Against ONNX's own description of its format."""
    messages = {
        name: kind.DESCRIPTOR
        for name in dir(onnx)
        if isinstance(kind := getattr(onnx, name), type) and hasattr(kind, "DESCRIPTOR")
    }

    def leads(name: str, seen: frozenset[str]) -> bool:
        """Whether a message holds a tensor's values, at some depth."""
        if name == "TensorProto":
            return True
        if name in seen:
            return False
        inner = (f.message_type for f in messages[name].fields if f.message_type is not None)
        return any(leads(each.name, seen | {name}) for each in inner if each.name in messages)

    assert {"ModelProto", "GraphProto", "NodeProto"} <= set(messages)
    for name, parts in onnx_file._PARTS.items():
        if name == "TensorProto":
            continue
        expected = {
            field.number: field.message_type.name
            for field in messages[name].fields
            if field.message_type is not None
            and field.message_type.name in messages
            and leads(field.message_type.name, frozenset())
        }
        assert dict(parts) == expected


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff", "index out of"),
        (b"\x3a\xff\xff\xff\xff\x0f", "longer than the file"),
        (b"\x3b", "a field of type 3"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x38\x01", "field 7 of ModelProto is a number"),
    ],
)
def test_what_is_no_graph_is_refused(content: bytes, named: str) -> None:
    with pytest.raises(BundleError, match=f"is no ONNX graph: .*{named}"):
        require_own_weights(content, "a program")


def test_graphs_within_graphs_without_end_are_refused() -> None:
    content = b""
    for _ in range(60):
        for key in (b"\x32", b"\x2a", b"\x0a"):  # an attribute's graph, a node's attribute, a node
            content = key + helper_length(len(content)) + content
    with pytest.raises(BundleError, match="levels within each other"):
        require_own_weights(b"\x3a" + helper_length(len(content)) + content, "a program")


def helper_length(length: int) -> bytes:
    out = b""
    while length > 0x7F:
        out += bytes([length & 0x7F | 0x80])
        length >>= 7
    return out + bytes([length])


def test_damage_is_told_or_harmless() -> None:
    """Nothing but BundleError, and no weights elsewhere that ONNX's own library sees."""
    clean, rng = model().SerializeToString(), random.Random(seeded(0))
    for _ in range(2000):
        content = bytearray(clean)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            require_own_weights(bytes(content), "a program")
        except BundleError:
            continue
        found = onnx.ModelProto()
        try:
            found.ParseFromString(bytes(content))
        except Exception:  # damaged elsewhere than on the way to a tensor
            continue
        assert not any(t.external_data for t in found.graph.initializer)
