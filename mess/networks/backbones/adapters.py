"""Segmentation models of other libraries as backbones: cut into blocks, and checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from mess.errors import ConfigError, nearest
from mess.networks.backbones.base import Backbone

_TRIAL = (64, 96)
"""Height and width of the image that a cut is tried on."""

_BY_HAND = "Write its factory by hand, see docs/own-backbone.md."
_OTHERWISE = (
    "Name other blocks with from_torchvision(model, blocks=[...]), choose another model, or write "
    "its factory by hand, see docs/own-backbone.md."
)


def from_torchvision(model: nn.Module, blocks: Sequence[str] | None = None) -> Backbone:
    """A model with a `backbone` and a `classifier`, as torchvision's FCN and DeepLabV3 have them.

    `blocks` name, from shallow to deep, the layers of `model.backbone` that end a block, such as
    "layer1.0" or "layer1"; those in between join the block that follows, those after the last are
    dropped. Where `blocks` is None, see `block_names`. An auxiliary classifier is dropped;
    upsampling after the classifier is no part of a backbone.

    A copy with random weights runs on a small image: the blocks in turn, then the head, give the
    model's own logits bit for bit, and no block changes its input in place. On the meta device
    shapes alone are compared. Raises ConfigError, with the reason, for a model that is no such
    chain. `model` is taken apart: the backbone consists of its modules.
    """
    title = type(model).__name__
    if blocks is None:
        network, _ = _parts(model, title)
        answers = getattr(network, "return_layers", {})
        last = next((layer for layer, answer in answers.items() if answer == "out"), None)
        blocks = block_names(network, title, last)
    return checked_backbone(model, blocks, title)


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
    blocks = [name for name in names if _is_composite(layers[name])]
    if not blocks:
        raise ConfigError(
            f"{title} has no layers of several parts, such as residual blocks, but "
            f"{', '.join(names) or f'none up to {last!r}'}. {_OTHERWISE}"
        )
    return [*blocks[:-1], names[-1]]


def checked_backbone(model: nn.Module, blocks: Sequence[str], title: str) -> Backbone:
    """The work of `from_torchvision`; errors call the model `title`."""
    # Tensors of the inference mode do not tell what changes them.
    with torch.inference_mode(False), torch.no_grad():
        probe = copy.deepcopy(model).eval()
        on_meta = any(parameter.is_meta for parameter in probe.parameters())
        device = torch.device("meta" if on_meta else "cpu")
        # A generator of its own leaves the global one alone. The CPU is named for factories that
        # are called under torch.device("meta").
        image = torch.rand(1, 3, *_TRIAL, generator=torch.Generator().manual_seed(0), device="cpu")
        if not on_meta:
            _scatter(probe.to(device))
        expected = _own_logits(probe, image.to(device), title)
        found = _run(_cut(probe, blocks, title), image.to(device), title)
    if found.shape != expected.shape:
        _refuse(title, blocks, f"of shape {list(found.shape)}, not {list(expected.shape)}")
    # No tolerance: the same layers in the same order round the same.
    if not on_meta and not torch.equal(found, expected):
        _refuse(title, blocks, f"that are off by up to {float((found - expected).abs().max()):.3g}")
    return _cut(model, blocks, title).name_after(model)


def first_line(error: Exception) -> str:
    """What a library's error says, short enough to quote."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _parts(model: nn.Module, title: str) -> tuple[nn.Module, nn.Module]:
    network, head = getattr(model, "backbone", None), getattr(model, "classifier", None)
    if not isinstance(network, nn.Module) or not isinstance(head, nn.Module):
        raise ConfigError(
            f"{title} has no modules `backbone` and `classifier`, as torchvision's FCN and "
            f"DeepLabV3 have them. {_BY_HAND}"
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


def _is_composite(layer: nn.Module) -> bool:
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
    return Backbone(blocks, head)


def _scatter(model: nn.Module) -> None:
    """Random parameters: fresh networks have scales of zero, behind which a wrong cut is hidden."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            # Uniform of variance 1 / inputs: sums of so many products do not vanish or overflow.
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            parameter.uniform_(0.0, 1.0, generator=generator)


def _own_logits(model: nn.Module, image: Tensor, title: str) -> Tensor:
    """What the model's classifier returns when the model runs by itself."""
    _, head = _parts(model, title)
    calls = []
    handle = head.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    try:
        model(image)
    except Exception as error:
        raise ConfigError(
            f"{title} does not run on an image of {_TRIAL[0]}×{_TRIAL[1]} pixels: "
            f"{first_line(error)}. {_BY_HAND}"
        ) from error
    finally:
        handle.remove()
    if len(calls) != 1:
        raise ConfigError(f"{title} runs its classifier {len(calls)} times, not once. {_BY_HAND}")
    inputs, logits = calls[0]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        levels = inputs[0] if inputs else ()
        names = f" ({', '.join(map(str, levels))})" if isinstance(levels, Mapping) else ""
        raise ConfigError(
            f"the classifier of {title} does not read the last features alone, but several feature "
            f"maps{names}: that is no chain of blocks and a head. Choose a model with an FCN or "
            "DeepLabV3 head."
        )
    return logits


def _run(backbone: Backbone, features: Tensor, title: str) -> Tensor:
    """The logits of blocks and head run in turn; refuses a block that changes what exits read."""
    parts = [*zip(backbone.names, backbone.blocks, strict=True), ("the classifier", backbone.head)]
    for name, part in parts:
        version = features._version
        try:
            output = part(features)
        except Exception as error:  # whatever another library's module raises
            raise ConfigError(
                f"{title} is no chain of its layers: {name!r} does not run on features of shape "
                f"{list(features.shape)}: {first_line(error)}. {_OTHERWISE}"
            ) from error
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise ConfigError(
                f"{title} is no chain of its layers: {name!r} does not return features "
                f"(B, C, h, w). {_OTHERWISE}"
            )
        # torch counts changes in place, on the meta device too, where values would not show them.
        if features._version != version:
            raise ConfigError(
                f"{title}: block {name!r} changes its input in place, which exits read too. Let "
                "the block before it end a layer later, or build the model with inplace=False."
            )
        features = output
    return features


def _refuse(title: str, blocks: Sequence[str], difference: str) -> NoReturn:
    raise ConfigError(
        f"{title} is no chain of its layers: the blocks {', '.join(blocks)} in turn, then the "
        f"classifier, give logits {difference}. {_OTHERWISE}"
    )
