"""A small residual network that learns from scratch in minutes, for trying things out."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from mess.errors import WeightsError
from mess.networks.backbones.base import Backbone

_BLOCKS = ((2, 2, 1), (4, 2, 1), (4, 1, 1), (6, 1, 2), (6, 1, 2), (6, 1, 4))
"""Channels in widths, stride and dilation of each block."""


def small_resnet(num_classes: int, *, weights: str = "none", width: int = 16) -> Backbone:
    """Six residual blocks of plain 3×3 convolutions at output stride 8, with an FCN head.

    Without pretraining, plain convolutions learn much faster than MobileNetV2's depthwise ones.
    There are no pretrained weights.
    """
    if weights != "none":
        raise WeightsError(f'small_resnet has no pretrained weights, got {weights!r}; use "none".')
    stem = nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
    blocks: dict[str, nn.Module] = {}
    channels = width
    for number, (widths, stride, dilation) in enumerate(_BLOCKS, start=1):
        block = ResidualBlock(channels, widths * width, stride, dilation)
        blocks[f"block{number}"] = nn.Sequential(stem, block) if number == 1 else block
        channels = widths * width
    return Backbone(blocks, FCNHead(channels, num_classes))


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
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        # In place on the sum, which is no one else's: exits read the block's input.
        return self.relu(self.body(features) + self.shortcut(features))
