"""MobileNetV2, dilated, with an FCN head (the papers' segMBNetV2); torchvision's models on V3."""

from __future__ import annotations

from typing import cast

from torch import nn
from torchvision.models import (
    MobileNet_V2_Weights,
    MobileNet_V3_Large_Weights,
    mobilenet_v2,
    segmentation,
)
from torchvision.models.segmentation.fcn import FCNHead

from mess.errors import ConfigError
from mess.networks.backbones.adapters import from_torchvision
from mess.networks.backbones.base import Backbone, load_pretrained

_STAGES = ((7, 14), (14, 18))
"""Inverted residuals after which the stride would become 16 and 32: first and one past the last."""


def segmentation_mobilenet_v2(
    num_classes: int, *, weights: str = "none", width: float = 1.0, output_stride: int = 8
) -> Backbone:
    """The 17 inverted residuals (the stem joins the first) at `output_stride` 8, 16 or 32.

    `width` is torchvision's multiplier of the channels. As torchvision does for ResNets, a stage
    that loses its stride keeps the old dilation in its first block and doubles it in the others.
    """
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"output_stride is 8, 16 or 32 for mobilenet_v2, got {output_stride}.")
    network = mobilenet_v2(width_mult=width)
    load_pretrained(
        network, weights, MobileNet_V2_Weights.IMAGENET1K_V2, ("classifier.", "features.18.")
    )
    features = list(network.features)
    stride, dilation = 8, 1
    for first, end in _STAGES:
        if stride < output_stride:
            stride *= 2
            continue
        for index in range(first, end):
            _dilate(features[index], dilation if index == first else 2 * dilation)
        dilation *= 2
    blocks: dict[str, nn.Module] = {"features.1": nn.Sequential(features[0], features[1])}
    blocks |= {f"features.{index}": features[index] for index in range(2, 18)}
    head = FCNHead(cast(int, features[17].out_channels), num_classes)
    return Backbone(blocks, head).name_after(network)


def deeplabv3_mobilenet_v3_large(num_classes: int, *, weights: str = "none") -> Backbone:
    """Torchvision's DeepLabV3 on MobileNetV3, at output stride 16.

    `weights` are ImageNet's, of MobileNetV3 alone. The 17 blocks "0" to "16" are the stem, the
    inverted residuals and the last 1×1 convolution.
    """
    model = segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=num_classes
    )
    return _on_mobilenet_v3(model, weights)


def lraspp_mobilenet_v3_large(num_classes: int, *, weights: str = "none") -> Backbone:
    """Torchvision's LR-ASPP on MobileNetV3: features at output stride 16, logits at 8.

    `weights` and blocks as of `deeplabv3_mobilenet_v3_large`; the head reads block "4", too.
    """
    model = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=num_classes
    )
    return _on_mobilenet_v3(model, weights)


def _on_mobilenet_v3(model: nn.Module, weights: str) -> Backbone:
    # The names that the layers have in torchvision's classifier, whose weights these are.
    classifier = nn.ModuleDict({"features": model.get_submodule("backbone")})
    download = MobileNet_V3_Large_Weights.IMAGENET1K_V1
    load_pretrained(classifier, weights, download, ("classifier.",))
    return from_torchvision(model)


def _dilate(block: nn.Module, dilation: int) -> None:
    for module in block.modules():
        # The depthwise one: the 1×1 convolutions around it have neither stride nor reach.
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.stride = (1, 1)
            module.dilation = module.padding = (dilation, dilation)
