"""Any traceable model as a backbone: its graph (torch.fx), cut behind layers that are named.

What crosses a cut follows from the graph: each tensor that is made before it and read behind it.
Sizes are no tensors, so they are computed anew where they are read, from the tensor they are of.
"""

from __future__ import annotations

import copy
import inspect
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from mess.errors import ConfigError, nearest
from mess.networks.backbones.base import IMAGE, Backbone, Block
from mess.networks.backbones.checks import TRIAL, checked_backbone
from mess.networks.backbones.libraries import first_line

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_OTHERWISE = (
    "Name other layers with from_module(model, blocks=[...]), or write the factory by hand, see "
    "docs/own-backbone.md."
)


def from_module(model: nn.Module, blocks: Sequence[str]) -> Backbone:
    """A model of any make, from an image (B, 3, H, W) to logits, cut behind the layers `blocks`.

    `blocks` name layers from shallow to deep, such as "encoder.layer1" or "encoder.layer1.0"; what
    lies between two joins the second, and all behind the last is the head. Each returns features
    (B, C, h, w). A layer whose code cannot be traced, for its steps depend on values, is taken
    whole. The model returns its logits alone, as "out" of a dictionary, or first of several;
    bilinear upsampling to the image at the very end is left out, for label maps do it.

    The cut is checked, see `checked_backbone`. Raises ConfigError, with the layer and the reason,
    for what cannot be traced or cut. `model` is taken apart: the backbone consists of its modules.
    """
    title = type(model).__name__
    graph = _graph(model, title)
    known = _known(model, graph, title)
    result, logits = _logits(graph, known, title)
    nodes = _needed(graph, logits)
    parts = _parts(nodes, blocks, known, title)
    _require_apart(parts, title)

    def cut(module: nn.Module) -> Backbone:
        *body, head = (
            Block(part.module(module), tuple(part.inputs), part.further) for part in parts
        )
        return Backbone(dict(zip(blocks, body, strict=True)), Block(head.module, head.reads))

    def answer(module: nn.Module, image: Tensor) -> Tensor:
        return _chosen(module(image))

    def wide(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=TRIAL, mode="bilinear", align_corners=False)

    left_out = wide if result is not logits else None
    return checked_backbone(model, cut, answer, title, _OTHERWISE, left_out=left_out)


# ---- The graph


class _Tracer(fx.Tracer):
    """Takes some layers whole, and knows in which one it is."""

    def __init__(self, whole: Iterable[str]) -> None:
        super().__init__()
        self._whole = set(whole)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain = super().is_leaf_module(m, module_qualified_name)
        return plain or module_qualified_name in self._whole

    def get_fresh_qualname(self, prefix: str) -> str:
        # fx would keep it as an attribute of the user's model.
        raise ValueError(
            "a constant that it makes, such as torch.tensor(...), which a graph cannot hold; keep "
            "it as a buffer (register_buffer)"
        )

    @property
    def layer(self) -> str:
        """The innermost layer whose own code is being traced; "" for the model itself."""
        names = (name for name, _ in reversed(self.module_stack.values()))
        return next((n for n in names if not self.is_leaf_module(self._module(n), n)), "")

    def _module(self, name: str) -> nn.Module:
        assert isinstance(self.root, nn.Module)
        return self.root.get_submodule(name)


def _graph(model: nn.Module, title: str) -> fx.Graph:
    """The model's graph; what its layers do in training alone, between them, is not in it."""
    training = model.training
    try:
        in_training, in_use = (_traced(model.train(mode), title) for mode in (True, False))
    finally:
        model.train(training)
    for one, other in zip(in_training.nodes, in_use.nodes, strict=False):
        if (one.op, str(one.target), str(one.args), str(one.kwargs)) != (
            other.op, str(other.target), str(other.args), str(other.kwargs),
        ):  # fmt: skip
            raise ConfigError(
                f"{title}: {_place(other)} does something else in training than in use, as with "
                "F.dropout or a branch on self.training, which a graph cannot hold. Use layers "
                "that know their mode, such as nn.Dropout, or take the layer whole by naming no "
                "block inside of it."
            )
    return in_use


def _traced(model: nn.Module, title: str) -> fx.Graph:
    whole: list[str] = []
    while True:
        tracer = _Tracer(whole)
        try:
            return tracer.trace(model, _defaults(model, title))
        except Exception as error:  # whatever the model's code raises on a value it cannot know
            layer = tracer.layer
            if not layer:
                raise ConfigError(
                    f"{title} cannot be traced: its own forward fails with {first_line(error)}. "
                    f"Move the steps that depend on values into a layer. {_OTHERWISE}"
                ) from error
            whole.append(layer)


def _defaults(model: nn.Module, title: str) -> dict[str, Any]:
    """The arguments of the model's forward behind the image, at their defaults."""
    _, *others = inspect.signature(model.forward).parameters.values()
    needed = [each.name for each in others if each.default is each.empty and each.kind in _BY_NAME]
    if needed:
        raise ConfigError(
            f"{title}.forward needs {needed[0]!r} besides the image. Wrap it in a module whose "
            f"forward takes the image alone. {_OTHERWISE}"
        )
    return {each.name: each.default for each in others if each.kind in _BY_NAME}


def _known(model: nn.Module, graph: fx.Graph, title: str) -> dict[fx.Node, Any]:
    """The value of each node for a small image, on the meta device: shapes and sizes."""
    probe = copy.deepcopy(model).to("meta").eval()
    known: dict[fx.Node, Any] = {}

    class Values(ShapeProp):
        def run_node(self, n: fx.Node) -> Any:
            known[n] = fx.Interpreter.run_node(self, n)
            return known[n]

    try:
        Values(fx.GraphModule(probe, graph)).run(torch.empty(1, 3, *TRIAL, device="meta"))
    except Exception as error:  # whatever a layer raises
        raise ConfigError(
            f"{title} does not run on an image of {TRIAL[0]}×{TRIAL[1]} pixels: "
            f"{first_line(error)}. {_OTHERWISE}"
        ) from error
    return known


def _chosen(returned: Any) -> Any:
    """The logits of what a model returns: them alone, "out" of a dictionary, or the first."""
    if isinstance(returned, dict):
        return returned.get("out", next(iter(returned.values()), None))
    if isinstance(returned, list | tuple):
        return returned[0] if returned else None
    return returned


def _logits(graph: fx.Graph, known: dict[fx.Node, Any], title: str) -> tuple[fx.Node, fx.Node]:
    """The nodes of the model's answer, and of it before upsampling where that comes last."""
    result = _chosen(next(node for node in graph.nodes if node.op == "output").args[0])
    if not isinstance(result, fx.Node) or not _is_map(known[result]):
        raise ConfigError(
            f"{title} returns no logits (B, classes, h, w), but {_described(known, result)}. "
            f"Wrap it in a module that does. {_OTHERWISE}"
        )
    is_upsampling = (
        result.op == "call_function"
        and result.target is F.interpolate
        and result.kwargs.get("mode") == "bilinear"
        and not result.kwargs.get("align_corners")
        and not result.kwargs.get("antialias")
        and tuple(known[result].shape[2:]) == TRIAL
    )
    first = result.args[0] if is_upsampling and result.args else None
    return result, first if isinstance(first, fx.Node) else result


def _needed(graph: fx.Graph, logits: fx.Node) -> list[fx.Node]:
    """The nodes that the logits need, in order, the logits last."""
    needed, waiting = {logits}, [logits]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in needed:
                needed.add(node)
                waiting.append(node)
    return [node for node in graph.nodes if node in needed]


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def _described(known: dict[fx.Node, Any], result: Any) -> str:
    value = known.get(result, result) if isinstance(result, fx.Node) else result
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _layers(node: fx.Node) -> list[str]:
    """The layers that a node is in, the outermost first."""
    return [name for name, _ in node.meta.get("nn_module_stack", {}).values()]


def _place(node: fx.Node) -> str:
    """What a node is called in messages."""
    layers = _layers(node)
    return f"layer {layers[-1]!r}" if layers else f"its own step {node.name!r}"


# ---- The cut


@dataclass(frozen=True)
class _Part:
    """Nodes of a block or of the head, in order.

    inputs: the tensors that are read and made elsewhere, by name. results: those that it gives.
    """

    nodes: Sequence[fx.Node]
    inputs: Mapping[str, fx.Node]
    results: Mapping[str, fx.Node]

    @property
    def further(self) -> tuple[str, ...]:
        """Names of what it gives beside its features."""
        return tuple(self.results)[1:]

    def module(self, model: nn.Module) -> fx.GraphModule:
        """As a module that shares the layers of `model`."""
        graph = fx.Graph()
        copied = {
            node: graph.placeholder(f"input{number}")
            for number, node in enumerate(self.inputs.values())
        }
        for node in self.nodes:
            copied[node] = graph.node_copy(node, copied.__getitem__)
        results = tuple(copied[node] for node in self.results.values())
        graph.output(results if self.further else results[0])
        return fx.GraphModule(model, graph)


def _parts(
    nodes: Sequence[fx.Node],
    blocks: Sequence[str],
    known: Mapping[fx.Node, Any],
    title: str,
) -> list[_Part]:
    """The parts of the blocks, then that of the head."""
    ends = [*_ends(nodes, blocks, known, title), len(nodes) - 1]
    owner = {node: bisect_left(ends, index) for index, node in enumerate(nodes)}
    names = {node: IMAGE for node in nodes if node.op == "placeholder"}
    names |= {nodes[end]: block for end, block in zip(ends, blocks, strict=False)}
    names |= {
        node: f"{blocks[owner[node]]}:{node.name}"
        for node in nodes
        if node not in names and owner[node] < len(blocks)
    }
    names[nodes[-1]] = "logits"
    parts: list[_Part] = []
    wanted: set[fx.Node] = set()
    # From the end: a part gives what those behind it read.
    for index in reversed(range(len(ends))):
        last = nodes[ends[index]]
        others = (n for n in nodes if n in wanted and owner[n] == index and n is not last)
        results = [last, *(node for node in others if node.op != "placeholder")]
        body, read = _body(results, owner, known)
        parts.append(
            _Part(
                [node for node in nodes if node in body],
                {names[node]: node for node in nodes if node in read},
                {names[node]: node for node in results},
            )
        )
        wanted |= read
    return parts[::-1]


def _ends(
    nodes: Sequence[fx.Node], blocks: Sequence[str], known: Mapping[fx.Node, Any], title: str
) -> list[int]:
    """Where each block ends."""
    ends: list[int] = []
    for block in blocks:
        inside = [index for index, node in enumerate(nodes) if block in _layers(node)]
        if not inside:
            layers = dict.fromkeys(layer for node in nodes for layer in _layers(node))
            raise ConfigError(
                f"{title} has no layer {block!r} on the way to its logits; "
                f"{nearest(block, list(layers))} A layer that cannot be traced is taken whole."
            )
        if ends and inside[-1] <= ends[-1]:
            raise ConfigError(
                f"{title}: {block!r} does not run behind the block before it. Name layers that end "
                "a block once each, from shallow to deep."
            )
        if not _is_map(value := known[nodes[inside[-1]]]):
            raise ConfigError(
                f"{title}: layer {block!r} does not end with features (B, C, h, w), but with "
                f"{_described({}, value)}. {_OTHERWISE}"
            )
        ends.append(inside[-1])
    if not ends:
        raise ConfigError(f"{title}: blocks is empty; name at least one layer that ends a block.")
    if ends[-1] == len(nodes) - 1:
        raise ConfigError(
            f"{title}: {blocks[-1]!r} gives the logits themselves, so that nothing is left for the "
            "head. Let the last block end a layer earlier."
        )
    return ends


def _body(
    results: Iterable[fx.Node], owner: Mapping[fx.Node, int], known: Mapping[fx.Node, Any]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes that a part runs for its results, and those that it reads from others."""
    waiting = list(results)
    part, body, read = owner[waiting[0]], set[fx.Node](), set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in body or node in read:
            continue
        # Sizes and parameters are not handed on: they are taken anew where they are needed.
        crosses = owner[node] != part and node.op != "get_attr" and isinstance(known[node], Tensor)
        if crosses or node.op == "placeholder":
            read.add(node)
            continue
        body.add(node)
        waiting += node.all_input_nodes
    return body, read


def _require_apart(parts: Sequence[_Part], title: str) -> None:
    """Refuse weights that two parts would share: each block has its own."""
    seen: dict[str, int] = {}
    for number, part in enumerate(parts):
        for node in part.nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            layer = str(node.target)
            if seen.setdefault(layer, number) != number:
                raise ConfigError(
                    f"{title}: {layer!r} runs in two of the parts, which would share its weights. "
                    f"Cut before it runs first or behind its last run. {_OTHERWISE}"
                )
