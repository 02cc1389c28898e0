"""Segmentation heads, of backbones and of exits (MESS paper, §4.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead

MIN_HEAD_CHANNELS = 4
"""torchvision's FCN head has a quarter of its input's channels inside."""

_ATROUS_RATES = (12, 24, 36)


def fcn_head(channels: int, num_classes: int, dlb_channels: int) -> nn.Module:
    """Torchvision's FCN head; `dlb_channels` has no part in it."""
    del dlb_channels
    return FCNHead(channels, num_classes)


def deeplab_head(channels: int, num_classes: int, dlb_channels: int) -> nn.Sequential:
    """Torchvision's DeepLabV3 head (ASPP), `dlb_channels` wide; 256 is torchvision's own width."""
    return nn.Sequential(
        _lean(ASPP(channels, _ATROUS_RATES, dlb_channels)),
        nn.Conv2d(dlb_channels, dlb_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(dlb_channels),
        nn.ReLU(),
        nn.Conv2d(dlb_channels, num_classes, 1),
    )


def _lean(aspp: ASPP) -> ASPP:
    """The same network and names, without the work that comes to nothing."""
    for branch in aspp.convs:
        assert isinstance(branch, nn.Sequential)
        if isinstance(conv := branch[0], nn.Conv2d) and conv.kernel_size == (3, 3):
            branch[0] = ReachableConv2d.of(conv)
    aspp.convs[-1] = _Pooling(*aspp.convs[-1].children())
    return aspp


class ReachableConv2d(nn.Conv2d):
    """A 3×3 convolution at stride 1 that in training leaves out taps which only meet padding.

    ASPP's dilations exceed the feature maps of small images, and the backward pass of CPUs spends
    as long on such taps as on any. Their gradient is 0 either way.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> ReachableConv2d:
        """With the weight of `conv`, which has no bias and is padded by its dilation."""
        (dilation, _) = conv.dilation
        # On the meta device no random numbers are drawn for a weight that is not kept: exits start
        # as with torchvision's own module.
        made = cls(
            conv.in_channels, conv.out_channels, 3, padding=dilation, dilation=dilation,
            bias=False, device="meta",
        )  # fmt: skip
        made.weight = conv.weight
        return made

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            # What is counted and exported is the whole convolution.
            return super().forward(input)
        weight, padding = self.weight, [0, 0]
        for axis, dilation in enumerate(self.dilation):
            # An outer tap is `dilation` away from the middle one, so it meets a map that is longer.
            if dilation < input.shape[2 + axis]:
                padding[axis] = dilation
            else:
                # The outer taps lie beyond the map from every position: the middle one is left.
                weight = weight.narrow(2 + axis, 1, 1)
        return F.conv2d(input, weight, padding=padding, dilation=self.dilation)


class _Pooling(nn.Sequential):
    """ASPP's image pooling: one value a channel, everywhere."""

    def forward(self, input: Tensor) -> Tensor:
        pooled, size = super().forward(input), input.shape[2:]
        if not self.training:
            # torchvision's operation, as it is exported; of one value it is that value everywhere.
            return F.interpolate(pooled, size=size, mode="bilinear", align_corners=False)
        # In the layout of the maps it is joined with, or the join would have another one.
        plain = input.is_contiguous()
        layout = torch.contiguous_format if plain else torch.channels_last
        return pooled.expand(-1, -1, *size).contiguous(memory_format=layout)


HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {"fcn": fcn_head, "dlb": deeplab_head}
