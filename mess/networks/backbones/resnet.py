"""Dilated ResNets with an FCN head (the papers' DRN) or a DeepLabV3 head."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models import ResNet, ResNet50_Weights, ResNet101_Weights, WeightsEnum
from torchvision.models.resnet import resnet50, resnet101
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from mess.errors import ConfigError
from mess.networks.backbones.base import Backbone, load_pretrained

_DILATED_STAGES = {8: [False, True, True], 16: [False, False, True], 32: [False, False, False]}
_CHANNELS = 2048


def drn50(num_classes: int, *, weights: str = "none", output_stride: int = 8) -> Backbone:
    """Torchvision's FCN on ResNet50, dilated to `output_stride` 8, 16 or 32."""
    network = _resnet(resnet50, weights, ResNet50_Weights.IMAGENET1K_V1, output_stride)
    return _segmentation(network, FCNHead(_CHANNELS, num_classes))


def fcn_resnet101(num_classes: int, *, weights: str = "none", output_stride: int = 8) -> Backbone:
    """Torchvision's FCN on ResNet101; its FCN on ResNet50 is `drn50`."""
    network = _resnet(resnet101, weights, ResNet101_Weights.IMAGENET1K_V1, output_stride)
    return _segmentation(network, FCNHead(_CHANNELS, num_classes))


def deeplabv3_resnet50(
    num_classes: int, *, weights: str = "none", output_stride: int = 8
) -> Backbone:
    """Torchvision's DeepLabV3 on ResNet50; `weights` are ImageNet's, of the ResNet alone."""
    network = _resnet(resnet50, weights, ResNet50_Weights.IMAGENET1K_V1, output_stride)
    return _segmentation(network, DeepLabHead(_CHANNELS, num_classes))


def deeplabv3_resnet101(
    num_classes: int, *, weights: str = "none", output_stride: int = 8
) -> Backbone:
    """Torchvision's DeepLabV3 on ResNet101; `weights` are ImageNet's, of the ResNet alone."""
    network = _resnet(resnet101, weights, ResNet101_Weights.IMAGENET1K_V1, output_stride)
    return _segmentation(network, DeepLabHead(_CHANNELS, num_classes))


def _resnet(
    factory: Callable[..., ResNet], weights: str, download: WeightsEnum, output_stride: int
) -> ResNet:
    if output_stride not in _DILATED_STAGES:
        raise ConfigError(f"output_stride is 8, 16 or 32 for a ResNet, got {output_stride}.")
    network = factory(replace_stride_with_dilation=_DILATED_STAGES[output_stride])
    load_pretrained(network, weights, download, ("fc.",))
    return network


def _segmentation(network: ResNet, head: nn.Module) -> Backbone:
    # The names that torchvision's segmentation models have.
    original = nn.ModuleDict({"backbone": network, "classifier": head})
    return Backbone(_blocks(network), head).name_after(original)


def _blocks(network: ResNet) -> dict[str, nn.Module]:
    blocks: dict[str, nn.Module] = {}
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(network, stage)):
            blocks[f"{stage}.{index}"] = block
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    # A key that is there keeps its place: it stays the first block.
    blocks["layer1.0"] = nn.Sequential(stem, blocks["layer1.0"])
    return blocks
