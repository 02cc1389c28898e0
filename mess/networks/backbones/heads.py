"""Segmentation heads, of backbones and of exits (MESS paper, §4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead

MIN_HEAD_CHANNELS = 4
"""torchvision's FCN head has a quarter of its input's channels inside."""

PAPERS_RATES = (12, 24, 36)
"""Of DeepLabV3's ASPP, on maps of 64 and 65 positions a side (512 and 513 pixels at stride 8)."""

_PAPERS_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What a head hangs on besides channels and classes: of DeepLab heads width and dilations."""

    width: int = 256
    rates: tuple[int, ...] = PAPERS_RATES


def rates_of_map(native: tuple[int, int]) -> tuple[int, ...]:
    """Dilations that reach as much of an h×w map as the papers' do of theirs.

    On a map of 23×30 positions 48% to 11% of the taps at rates 12, 24 and 36 lie on it: the head is
    a 1×1 convolution and little else. DeepLabV3 itself halves the rates with the map.
    """
    side = min(native)
    return tuple(max(round(rate * side / _PAPERS_SIDE), 1) for rate in PAPERS_RATES)


def fcn_head(channels: int, num_classes: int, options: HeadOptions) -> nn.Module:
    """Torchvision's FCN head; `options` have no part in it."""
    del options
    return FCNHead(channels, num_classes)


def deeplab_head(channels: int, num_classes: int, options: HeadOptions) -> nn.Sequential:
    """Torchvision's DeepLabV3 head (ASPP), `options.width` wide; 256 is torchvision's own."""
    width = options.width
    return nn.Sequential(
        _lean(ASPP(channels, options.rates, width)),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, num_classes, 1),
    )


def separable_deeplab_head(channels: int, num_classes: int, options: HeadOptions) -> nn.Sequential:
    """A DeepLab head of depthwise and pointwise convolutions, as DeepLabV3+ has on small networks.

    Channels are reduced to `options.width` first: at those of a deep point, the pointwise parts
    would cost as much as the whole.
    """
    width = options.width
    aspp = _lean(ASPP(width, options.rates, width))
    for branch, rate in zip(list(aspp.convs)[1:-1], options.rates, strict=True):
        assert isinstance(branch, nn.Sequential)
        branch[0] = _separable(width, rate)
    return nn.Sequential(
        *_pointwise(channels, width),
        aspp,
        _separable(width),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, num_classes, 1),
    )


class PooledContextHead(nn.Module):
    """LR-ASPP's head (MobileNetV3): features scaled by what is in the whole image, one classifier.

    torchvision's adds the scores of shallower features, too; here exits with `skip` do.
    """

    WIDTH = 128

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*_pointwise(channels, self.WIDTH))
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, self.WIDTH, 1, bias=False), nn.Sigmoid()
        )
        self.classifier = nn.Conv2d(self.WIDTH, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.features(features) * self.scale(features))


def pooled_context_head(channels: int, num_classes: int, options: HeadOptions) -> nn.Module:
    """LR-ASPP's head at torchvision's width; `options` have no part in it."""
    del options
    return PooledContextHead(channels, num_classes)


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _separable(channels: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
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


HEADS: dict[str, Callable[[int, int, HeadOptions], nn.Module]] = {
    "fcn": fcn_head,
    "dlb": deeplab_head,
    "sdlb": separable_deeplab_head,
    "lraspp": pooled_context_head,
}
"""By the names in `exits.heads`; features (B, channels, h, w) to logits (B, classes, h, w)."""

DILATED = ("dlb", "sdlb")
"""Heads that have `HeadOptions.rates`."""
