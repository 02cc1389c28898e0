"""Networks of segmentation_models.pytorch: encoder and decoder as blocks, or decoder as head."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mess.errors import ConfigError, nearest
from mess.networks.backbones.adapters import is_composite
from mess.networks.backbones.base import Backbone, Block, load_pretrained
from mess.networks.backbones.checks import TRIAL, checked_backbone
from mess.networks.backbones.libraries import (
    built,
    did_you_mean,
    first_line,
    keywords,
    library,
    on_default_device,
    require_options,
)
from mess.networks.backbones.recording import Ran, recorded
from mess.networks.backbones.timm_models import is_list

LADDERS = ("Unet", "MAnet", "Linknet")
"""Models whose decoder is a row of blocks, each of which reads a feature of the encoder."""

HEADS = ("UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer")
"""Models whose decoder reads several features at once, so that all of it is the head."""

_OURS = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")
"""Arguments that are no options: what they would change is not the user's, or no segmentation."""

_OTHERWISE = (
    "Choose another encoder, such as a ResNet, MobileNet, EfficientNet, MiT or one of timm's "
    "ConvNeXts."
)

_BEHIND = (
    "fc.", "_fc.", "classifier.", "last_linear.", "linear.", "head.", "conv_head.", "norm_head.",
    "bn2.",  # behind conv_head, of timm's EfficientNets
)  # fmt: skip
"""Key prefixes of what files of encoders have behind their features, in some networks."""


def smp_model(
    num_classes: int, *, model: str, encoder: str, weights: str = "none", **options: Any
) -> Backbone:
    """The `model` of segmentation_models.pytorch on an `encoder`, such as Unet on "resnet18".

    `options` are further arguments of the model's class. Blocks are the encoder's, its residual
    blocks where its stages are lists of them; and the decoder's, each of which reads the one before
    and the encoder's features of its size. Decoders of other models than `LADDERS` are the head.
    Logits have the size of the image where the library's have. `weights` is "none" or a safetensors
    file of the encoder. Nothing is downloaded. The cut is checked, see `checked_backbone`. Raises
    ConfigError where the library is not installed, or has no such model, encoder or option.
    """
    title = f"smp's {model} with {encoder}"
    network = _built(num_classes, model, encoder, options)
    own = network.encoder.get_submodule(_prefix(network))
    load_pretrained(own, weights, None, _lacked(own))
    plan = _planned(network, title)

    def cut(network: nn.Module) -> Backbone:
        return _cut(network, plan)

    return checked_backbone(network, cut, lambda whole, image: whole(image), title, _OTHERWISE)


def _built(num_classes: int, model: str, encoder: str, options: Mapping[str, Any]) -> Any:
    smp = library("smp", "segmentation_models_pytorch", "segmentation-models-pytorch", "smp")
    if model not in (*LADDERS, *HEADS):
        raise ConfigError(
            f"backbone.options.model: no {model!r} of smp is a backbone; "
            f"{nearest(model, (*LADDERS, *HEADS))}"
        )
    names = smp.encoders.get_encoder_names()
    of_timm = encoder.startswith(("tu-", "timm-"))
    if not of_timm and encoder not in names:
        raise ConfigError(
            f"smp has no encoder {encoder!r}{did_you_mean(encoder, names)} Those of timm are "
            "called 'tu-' and their name."
        )
    make = getattr(smp, model)
    known = [name for name in keywords(make.__init__) if name not in ("self", *_OURS)]
    # timm has arguments of its own for each network.
    require_options([n for n in options if not of_timm or n in _OURS], known, f"smp's {model}")

    def build() -> nn.Module:
        with warnings.catch_warnings():
            # It wants other names for some of timm's encoders; the ones given are fine.
            warnings.simplefilter("ignore", DeprecationWarning)
            return make(encoder_name=encoder, encoder_weights=None, classes=num_classes, **options)

    return built(lambda: on_default_device(build), f"smp's {model} with {encoder}")


def _prefix(network: Any) -> str:
    """Where timm's own network is inside of an encoder, so that files of timm fit; "" elsewhere."""
    return "model" if type(network.encoder).__name__ == "TimmUniversalEncoder" else ""


def _lacked(encoder: nn.Module) -> tuple[str, ...]:
    """Those of `_BEHIND` that an encoder lacks: in another network `bn2` is a stem's layer."""
    own = tuple(encoder.state_dict())
    return tuple(each for each in _BEHIND if not any(name.startswith(each) for name in own))


# ---- What the network does, seen once


@dataclass(frozen=True)
class _Plan:
    """How to cut a network: names of layers, and sizes in images and features."""

    blocks: Mapping[str, Sequence[Ran]]
    """The encoder's, by the layer that ends them."""
    features: Sequence[str | None]
    """Of the encoder from fine to coarse: the block that gives each; None for those not read."""
    scales: Sequence[int]
    """How many times smaller than the image each of them is."""
    multiple: int
    """Height and width of images are multiples of it."""
    title: str


def _planned(network: Any, title: str) -> _Plan:
    with torch.inference_mode(False), torch.no_grad():
        # Without memory, and without a trace in the network itself.
        probe = copy.deepcopy(network).to("meta").eval()
        image = torch.empty(1, 3, *TRIAL, device="meta")
        try:
            ran, features = recorded(probe.encoder, image, _opens)
            read = _read(probe, features)
        except Exception as error:  # whatever another library's module raises
            raise ConfigError(
                f"{title} is no chain of its layers: {first_line(error)}. {_OTHERWISE}"
            ) from error
    taps = {i: _tap(feature, ran) for i, feature in enumerate(features) if i in read}
    lost = [i for i, tap in taps.items() if tap is None]
    if lost:
        raise ConfigError(
            f"{title} is no chain of its layers: feature {lost[0]} of the encoder is none of "
            f"theirs. {_OTHERWISE}"
        )
    blocks = _blocks(probe.encoder, ran, sorted(tap for tap in taps.values() if tap is not None))
    scales = [TRIAL[0] // feature.shape[2] for feature in features]
    named = [
        None if (tap := taps.get(i)) is None else f"encoder.{ran[tap].name}"
        for i in range(len(features))
    ]
    if network.requires_divisible_input_shape:
        multiple = network.encoder.output_stride
    else:
        # Each step without features of the encoder doubles what it has.
        multiple = min(scales[i] for i in read)
    return _Plan(blocks, named, scales, multiple, title)


def _opens(path: str, layer: nn.Module) -> bool:
    # timm's network, and a second shell around some of them.
    return path in ("model", "model.body") or is_list(layer)


def _read(network: Any, features: Sequence[Tensor]) -> set[int]:
    """Indices of the features that the decoder computes with: their gradients tell."""
    with torch.enable_grad():
        leaves = [feature.detach().requires_grad_() for feature in features]
        answer = network.decoder(list(leaves)).sum()
        gradients = torch.autograd.grad(answer, leaves, allow_unused=True)
    return {
        i
        for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True))
        # Encoders without features of half the size return some without channels.
        if gradient is not None and leaf.shape[1] > 0
    }


def _tap(feature: Tensor, ran: Sequence[Ran]) -> int | None:
    """Index of the last layer after which the network has `feature`."""
    at = [i for i, each in enumerate(ran) if feature is each.output or feature is each.handed_on]
    return at[-1] if at else None


def _blocks(encoder: nn.Module, ran: Sequence[Ran], taps: Sequence[int]) -> dict[str, list[Ran]]:
    """Layers by the one that ends their block: each of several parts, and each that is tapped.

    Single layers behind the last one of several parts, such as a stage's norm, join it.
    """
    blocks: dict[str, list[Ran]] = {}
    start = 0
    for tap in taps:
        stage = range(start, tap + 1)
        composite = [i for i in stage if is_composite(encoder.get_submodule(ran[i].name))]
        for end in [*composite[:-1], tap]:
            blocks[f"encoder.{ran[end].name}"] = list(ran[start : end + 1])
            start = end + 1
    return blocks


# ---- The cut


def _cut(network: Any, plan: _Plan) -> Backbone:
    blocks: dict[str, nn.Module | Block] = {}
    for name, layers in plan.blocks.items():
        parts = [part for layer in layers for part in _parts(network.encoder, layer)]
        if not blocks:
            parts.insert(0, _Multiples(plan.multiple, plan.title))
        blocks[name] = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    if type(network).__name__ in LADDERS:
        return Backbone(blocks | _steps(network, plan), network.segmentation_head)
    head = _Decoder(network.decoder, network.segmentation_head, plan)
    return Backbone(blocks, Block(head, tuple(name for name in plan.features if name)))


def _parts(encoder: nn.Module, layer: Ran) -> list[nn.Module]:
    module = encoder.get_submodule(layer.name)
    parts = [_With(module, layer.further) if layer.further else module]
    return [*parts, _Contiguous()] if layer.made_contiguous else parts


def _steps(network: Any, plan: _Plan) -> dict[str, nn.Module | Block]:
    """The decoder's blocks; what is finer than the encoder's features is twice what was before."""
    # The first feature is the image, or has its size, and is read by no decoder.
    below, *skips = reversed(plan.features[1:])
    assert below is not None
    blocks: dict[str, nn.Module | Block] = {}
    center = getattr(network.decoder, "center", nn.Identity())
    if not isinstance(center, nn.Identity):
        blocks["decoder.center"] = Block(center, (below,))
        below = "decoder.center"
    for index, step in enumerate(network.decoder.blocks):
        skip = skips[index] if index < len(skips) else None
        without = index < len(skips) and skip is None
        module = _Step(step, sized=type(network).__name__ == "Unet", without_channels=without)
        name = f"decoder.blocks.{index}"
        blocks[name] = Block(module, (below,) if skip is None else (below, skip))
        below = name
    return blocks


class _Step(nn.Module):
    """A decoder's block: features (B, C, h, w), and shallower ones of twice the size if there are.

    `sized`: it is told the size. `without_channels`: it joins shallower ones that have none.
    """

    def __init__(self, step: nn.Module, *, sized: bool, without_channels: bool) -> None:
        super().__init__()
        self.step = step
        self._sized, self._without_channels = sized, without_channels

    def forward(self, features: Tensor, shallower: Tensor | None = None) -> Tensor:
        batch, _, height, width = features.shape
        size = (2 * height, 2 * width) if shallower is None else shallower.shape[2:]
        if self._without_channels:
            shallower = features.new_empty(batch, 0, *size)
        return self.step(features, *(size if self._sized else ()), shallower)


class _Decoder(nn.Module):
    """Decoder and head: those features of the encoder that are read, from fine to coarse."""

    def __init__(self, decoder: nn.Module, head: nn.Module, plan: _Plan) -> None:
        super().__init__()
        self.decoder, self.head = decoder, head
        self._read = [name is not None for name in plan.features]
        self._scales = list(plan.scales)

    def forward(self, *features: Tensor) -> Tensor:
        finest = features[0]
        scale = self._scales[self._read.index(True)]
        height, width = (scale * side for side in finest.shape[2:])
        given = iter(features)
        # Of the others decoders ask for the size alone.
        every = [
            next(given)
            if read
            else finest.new_empty(finest.shape[0], 0, height // scale, width // scale)
            for read, scale in zip(self._read, self._scales, strict=True)
        ]
        return self.head(self.decoder(every))


class _With(nn.Module):
    """A layer with the further arguments that its network gives it, such as a rate of dropout."""

    def __init__(self, layer: nn.Module, further: tuple[Any, ...]) -> None:
        super().__init__()
        self.layer = layer
        self._further = further

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features, *self._further)


class _Contiguous(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.contiguous()


class _Multiples(nn.Module):
    """An image of a size that the network takes, as it is."""

    def __init__(self, multiple: int, title: str) -> None:
        super().__init__()
        self._multiple, self._title = multiple, title

    def forward(self, image: Tensor) -> Tensor:
        size = list(image.shape[2:])
        if any(side % self._multiple for side in size):
            height, width = (-(-side // self._multiple) * self._multiple for side in size)
            raise ConfigError(
                f"{self._title} takes images whose height and width are multiples of "
                f"{self._multiple}, got {size[0]}×{size[1]}; the next size is {height}×{width}. "
                "Set data.size to such, and data.crop to 1: training crops then have it, too."
            )
        return image
