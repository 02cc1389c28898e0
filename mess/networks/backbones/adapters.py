"""Models of torchvision's kind as backbones: cut into blocks by their layers, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from mess.errors import ConfigError, nearest
from mess.networks.backbones.base import Backbone, Block
from mess.networks.backbones.checks import BY_HAND, checked_backbone, output_of
from mess.networks.backbones.wiring import ByName

_OTHERWISE = (
    "Name other blocks with from_torchvision(model, blocks=[...]), choose another model, or write "
    "its factory by hand, see docs/own-backbone.md."
)


def from_torchvision(model: nn.Module, blocks: Sequence[str] | None = None) -> Backbone:
    """A model with a `backbone` and a `classifier`, as torchvision's have them.

    `blocks` name, from shallow to deep, the layers of `model.backbone` that end a block, such as
    "layer1.0" or "layer1"; those in between join the block that follows, those after the last are
    dropped. Where `blocks` is None, see `block_names`. Where the classifier reads several features
    by name, as LRASPP's does, the layers that give them end a block, too. An auxiliary classifier
    is dropped; upsampling after the classifier is no part of a backbone.

    The cut is checked, see `checked_backbone`. Raises ConfigError, with the reason, for a model
    that is no such chain. `model` is taken apart: the backbone consists of its modules.
    """
    title = type(model).__name__
    if blocks is None:
        network, _ = _parts(model, title)
        answers = getattr(network, "return_layers", {})
        last = next((layer for layer, answer in answers.items() if answer == "out"), None)
        blocks = block_names(network, title, last)
    return chain_of_layers(model, blocks, title)


def chain_of_layers(model: nn.Module, blocks: Sequence[str], title: str) -> Backbone:
    """The work of `from_torchvision`; errors call the model `title`."""

    def cut(model: nn.Module) -> Backbone:
        return _cut(model, blocks, title)

    def answer(model: nn.Module, image: Tensor) -> Tensor:
        _, classifier = _parts(model, title)
        return output_of(model, classifier, image, title)

    return checked_backbone(model, cut, answer, title, _OTHERWISE)


def plain_sequential(layer: nn.Module) -> bool:
    """Whether a layer is a list of others and no more; subclasses are layers of their own."""
    return type(layer) is nn.Sequential


def block_names(
    network: nn.Module,
    title: str,
    last: str | None = None,
    is_list: Callable[[nn.Module], bool] = plain_sequential,
) -> list[str]:
    """Names of the layers of `network` that end a block, in the order they are registered.

    Lists of layers are opened. A layer made of several with weights, such as a residual block, ends
    a block; single ones, such as a stem's convolution, do not. The last block ends with `last`, or
    with the last layer of all. Raises ConfigError, which calls the model `title`, for no block.
    """
    layers = dict(_layers(network, lambda _, layer: is_list(layer)))
    names = list(layers)
    if last is not None:
        names = names[: _ends(names, last) + 1]
    while names and type(layers[names[-1]]) is nn.Identity:
        names.pop()
    blocks = [name for name in names if is_composite(layers[name])]
    if not blocks:
        raise ConfigError(
            f"{title} has no layers of several parts, such as residual blocks, but "
            f"{', '.join(names) or f'none up to {last!r}'}. {_OTHERWISE}"
        )
    return [*blocks[:-1], names[-1]]


def _parts(model: nn.Module, title: str) -> tuple[nn.Module, nn.Module]:
    network, head = getattr(model, "backbone", None), getattr(model, "classifier", None)
    if not isinstance(network, nn.Module) or not isinstance(head, nn.Module):
        raise ConfigError(
            f"{title} has no modules `backbone` and `classifier`, as torchvision's models have "
            f"them. {BY_HAND}"
        )
    return network, head


def _layers(
    network: nn.Module, opens: Callable[[str, nn.Module], bool], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    # named_children() leaves out a layer's second occurrence.
    for name, layer in network._modules.items():
        if layer is None:
            continue
        path = f"{prefix}{name}"
        if opens(path, layer):
            yield from _layers(layer, opens, f"{path}.")
        else:
            yield path, layer


def is_composite(layer: nn.Module) -> bool:
    """Whether a layer is made of several with weights, such as a residual block."""
    return any(True for part in layer.children() for _ in part.parameters())


def _ends(names: Sequence[str], name: str) -> int:
    """Index of the layer called `name`, or of the last one inside of it; -1 where there is none."""
    inside = [index for index, each in enumerate(names) if f"{each}.".startswith(f"{name}.")]
    return inside[-1] if inside else -1


def _cut(model: nn.Module, ends: Sequence[str], title: str) -> Backbone:
    network, head = _parts(model, title)

    def opens(path: str, layer: nn.Module) -> bool:
        return plain_sequential(layer) or any(end.startswith(f"{path}.") for end in ends)

    layers = dict(_layers(network, opens))
    rest = list(layers)
    blocks: dict[str, nn.Module] = {}
    for end in ends:
        last = _ends(rest, end)
        if last < 0:
            before = f" behind {next(reversed(blocks))!r}" if blocks else ""
            raise ConfigError(
                f"{title} has no layer {end!r}{before}. Name layers that end a block once each, "
                f"from shallow to deep; {nearest(end, rest)}"
            )
        own, rest = rest[: last + 1], rest[last + 1 :]
        parts = [layers[name] for name in own]
        blocks[end] = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    return Backbone(blocks, _wired(network, head, ends, title))


def _wired(
    network: nn.Module, head: nn.Module, ends: Sequence[str], title: str
) -> nn.Module | Block:
    """The classifier, with the blocks that it reads where those are several."""
    answers = getattr(network, "return_layers", {})
    if not answers or "out" in answers.values():
        return head
    reads = []
    for layer, answer in answers.items():
        if (index := _ends(ends, layer)) < 0:
            raise ConfigError(
                f"the classifier of {title} reads the features of {layer!r} as {answer!r}, so that "
                "this layer ends a block: name it in `blocks`, too."
            )
        reads.append(ends[index])
    return Block(ByName(head, list(answers.values())), tuple(reads))
