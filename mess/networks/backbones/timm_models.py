"""Image classifiers of timm, dilated, with a segmentation head."""

from __future__ import annotations

from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor, nn

from mess.errors import ConfigError, nearest
from mess.networks.backbones.adapters import block_names, chain_of_layers, plain_sequential
from mess.networks.backbones.base import Backbone, load_pretrained
from mess.networks.backbones.heads import HEADS, HeadOptions
from mess.networks.backbones.libraries import did_you_mean, first_line, library


def timm_model(
    num_classes: int,
    *,
    model: str,
    weights: str = "none",
    output_stride: int = 8,
    head: str = "fcn",
    dlb_channels: int = 256,
) -> Backbone:
    """The features of timm's `model` at `output_stride`, with a `head` of HEADS.

    For models that are a chain, such as ResNets, MobileNets, EfficientNets, RegNets and ConvNeXts;
    checked as in `from_torchvision`. Blocks are the residual blocks of its stages; dilation is
    timm's own. `weights` is "none" or a safetensors file of the whole classifier; `dlb_channels`
    is the width of the DeepLab head. Raises ConfigError where timm is not installed, has no such
    model, or not at this stride, for a model that is no chain, and for an unknown head.
    """
    if head not in HEADS:
        raise ConfigError(
            f"backbone.options.head: no head is named {head!r}; {nearest(head, HEADS)}"
        )
    timm = _library(model)
    # Only its stride and the names of its layers are asked for: no memory, no random numbers.
    with torch.device("meta"):
        plain = timm.create_model(model)
    network = _dilated(timm, model, plain, output_stride)
    last = network.feature_info[-1]
    load_pretrained(network, weights, None, _dropped(plain, last["module"]))
    classifier = HEADS[head](last["num_chs"], num_classes, HeadOptions(width=dlb_channels))
    title = f"timm's {model}"
    blocks = block_names(network, title, last["module"], is_list)
    whole = _Segmentation(network, last["module"], classifier)
    backbone = chain_of_layers(whole, blocks, title)
    # As in timm's own files, in which a head of ours has no names.
    return backbone.name_after(network)


class _Segmentation(nn.Module):
    """The features that leave the layer `last` of a classifier, and a head on them."""

    def __init__(self, network: nn.Module, last: str, head: nn.Module) -> None:
        super().__init__()
        self.backbone = network
        self.classifier = head
        self._last = last

    def forward(self, image_BCHW: Tensor) -> Tensor:
        seen: list[Tensor] = []
        layer = self.backbone.get_submodule(self._last)
        handle = layer.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            # A feature extractor has no other forward.
            getattr(self.backbone, "forward_features", self.backbone)(image_BCHW)
        finally:
            handle.remove()
        return self.classifier(seen[-1])


def _library(model: str) -> Any:
    timm = library("timm", "timm", "timm", "timm")
    if not timm.is_model(model):
        hint = did_you_mean(model, timm.list_models())
        raise ConfigError(f"timm has no model {model!r}{hint} timm.list_models() names them all.")
    return timm


def _dilated(timm: Any, model: str, plain: Any, output_stride: int) -> Any:
    """The classifier; its feature extractor where timm dilates that alone, as MobileNetV3's."""
    own = _stride(plain)
    if own == output_stride:  # many models have no such option
        return timm.create_model(model)
    try:
        try:
            network = timm.create_model(model, output_stride=output_stride)
        except TypeError:
            network = timm.create_model(model, output_stride=output_stride, features_only=True)
        reason = f"timm gives {_stride(network)}"
    except Exception as error:  # an assertion, a TypeError or others, from model to model
        network, reason = None, first_line(error)
    if network is None or _stride(network) != output_stride:
        raise ConfigError(
            f"timm's {model} does not come at output_stride {output_stride}: {reason}. Set "
            f"backbone.options.output_stride to its own, {own}, or choose a ResNet, MobileNet, "
            "EfficientNet, RegNet or ConvNeXt, which come at 8, 16 and 32."
        )
    return network


def _stride(network: Any) -> int:
    return network.feature_info[-1]["reduction"]


def _dropped(classifier: nn.Module, last: str) -> tuple[str, ...]:
    """Key prefixes of what a classifier has behind its features, which leave the layer `last`."""
    names = [name for name, _ in classifier.named_children()]
    last = last.partition(".")[0]
    return tuple(f"{name}." for name in list(dropwhile(lambda name: name != last, names))[1:])


def is_list(layer: nn.Module) -> bool:
    """Whether a layer is a list of others; timm's stages are, beside plain ones."""
    return plain_sequential(layer) or type(layer).__name__.endswith("Stage")
