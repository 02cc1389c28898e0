"""Exits: a segmentation head and what comes before it (MESS paper, §4.2, Fig. 2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mess.exits import ExitArchitecture
from mess.networks.backbones.heads import HEADS, MIN_HEAD_CHANNELS, HeadOptions


class SkipExit(nn.Module):
    """An exit that reads shallower features, too: class scores of theirs are added to its own.

    From (B, C, h, w) and others, each finer than the one before, to logits of the size of the last,
    as in FCN-8s and LR-ASPP. Joining the features before the head, as DeepLabV3+ does, runs the
    head at the finer size, which costs 2 to 7 times as much.
    """

    def __init__(self, exit_: nn.Module, skips: Iterable[nn.Module]) -> None:
        super().__init__()
        self.exit, self.skips = exit_, nn.ModuleList(skips)

    def forward(self, features: Tensor, *finer: Tensor) -> Tensor:
        logits = self.exit(features)
        for skip, shallower in zip(self.skips, finer, strict=True):
            size = shallower.shape[2:]
            wide = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            logits = wide + skip(shallower)
        return logits


def build_exit(
    architecture: ExitArchitecture,
    channels: int,
    num_classes: int,
    options: HeadOptions,
    skip_channels: Sequence[int] = (),
) -> nn.Module:
    """One exit: features (B, channels, h, w) to logits (B, num_classes, h, w).

    Channel reduction, then the extra blocks at the reduced width, then the head. With rapid
    dilation the blocks dilate by 2, 4, 8; the first block doubles too, or one block with and
    without it would be the same network. With `skip` it takes shallower features of
    `skip_channels` as well, from coarse to fine, and its logits have the size of the last.
    """
    width = channels // architecture.crm
    if width < MIN_HEAD_CHANNELS:
        raise ValueError(
            f"channel reduction by {architecture.crm} leaves {width} of {channels} channels, "
            f"a head needs {MIN_HEAD_CHANNELS}"
        )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if architecture.crm > 1:
        parts["crm"] = _convolution(channels, width, kernel=1)
    for index in range(architecture.blocks):
        dilation = 2 ** (index + 1) if architecture.rdi else 1
        parts[f"block{index + 1}"] = _convolution(width, width, kernel=3, dilation=dilation)
    parts["head"] = HEADS[architecture.head](width, num_classes, options)
    exit_ = nn.Sequential(parts)
    if not architecture.skip:
        return exit_
    if not skip_channels:
        raise ValueError("an exit with skip needs the channels of the features it reads")
    return SkipExit(exit_, (nn.Conv2d(each, num_classes, 1) for each in skip_channels))


def _convolution(inputs: int, outputs: int, *, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
