"""Small networks that learn from scratch in minutes, for trying things out."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.fcn import FCNHead

from mess.errors import WeightsError
from mess.networks.backbones.base import Backbone, Block

_BLOCKS = ((2, 2, 1), (4, 2, 1), (4, 1, 1), (6, 1, 2), (6, 1, 2), (6, 1, 4))
"""Channels in widths, stride and dilation of each block."""


def small_resnet(num_classes: int, *, weights: str = "none", width: int = 16) -> Backbone:
    """Six residual blocks of plain 3×3 convolutions at output stride 8, with an FCN head.

    Without pretraining, plain convolutions learn much faster than MobileNetV2's depthwise ones.
    There are no pretrained weights.
    """
    _require_none(weights, "small_resnet")
    stem = _convolution(3, width, stride=2)
    blocks: dict[str, nn.Module] = {}
    channels = width
    for number, (widths, stride, dilation) in enumerate(_BLOCKS, start=1):
        block = ResidualBlock(channels, widths * width, stride, dilation)
        blocks[f"block{number}"] = nn.Sequential(stem, block) if number == 1 else block
        channels = widths * width
    return Backbone(blocks, FCNHead(channels, num_classes))


def small_unet(num_classes: int, *, weights: str = "none", width: int = 16) -> Backbone:
    """A U-Net of residual blocks: four halvings of the image, and back up to half of its size.

    For small structures, which are lost on the coarse grids of other small networks.
    """
    _require_none(weights, "small_unet")
    channels = [each * width for each in (1, 2, 4, 6)]
    blocks: dict[str, nn.Module | Block] = {
        "down1": nn.Sequential(_convolution(3, width, stride=2), _convolution(width, width))
    }
    for number, (inputs, outputs) in enumerate(pairwise(channels), start=2):
        blocks[f"down{number}"] = ResidualBlock(inputs, outputs, stride=2, dilation=1)
    coarse = "down4"
    for number in (3, 2, 1):
        inputs, outputs = channels[number], channels[number - 1]
        blocks[f"up{number}"] = Block(
            JoinedBlock(inputs + outputs, outputs), reads=(coarse, f"down{number}")
        )
        coarse = f"up{number}"
    return Backbone(blocks, nn.Conv2d(width, num_classes, 1))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _require_none(weights: str, name: str) -> None:
    if weights != "none":
        raise WeightsError(f'{name} has no pretrained weights, got {weights!r}; use "none".')


class JoinedBlock(nn.Module):
    """Coarse features brought to the size of finer ones, and both through a residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, stride=1, dilation=1)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        wide = F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.block(torch.cat([wide, fine], dim=1))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside an identity, or a 1×1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU(inplace=True)
        self._stride = stride

    def forward(self, features: Tensor) -> Tensor:
        beside = features
        if self._stride > 1:
            # Not by the convolution: torch's backward of a 1×1 one at stride 2 from fewer than
            # eight channels ends the process (2.14, CPU, channels last).
            beside = features[:, :, :: self._stride, :: self._stride]
        # In place on the sum, which is no one else's: exits read the block's input.
        return self.relu(self.body(features) + self.shortcut(beside))
