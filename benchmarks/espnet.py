"""ESPNet as a backbone of one's own: a trained network with skip connections, taken apart.

    mess train-overprovisioned espnet-camvid.toml --adopt FILE   # backbone.name below

`backbone.name = "benchmarks.espnet:espnet"`. ESPNet (Mehta et al., ECCV 2018) with p = 2 blocks at
a quarter and q = 8 at an eighth of the image; parts are named as in its authors' weights. Its
decoder reads three depths: the end of the encoder, and what enters its two down-samplings.

Shapes: (B, C, h, w); the comments give channels, and the size as a share of the image's.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mess.networks.backbones import Backbone
from mess.networks.backbones.base import Block, load_pretrained

DILATIONS = (1, 2, 4, 8, 16)


def espnet(num_classes: int, *, weights: str = "none", p: int = 2, q: int = 8) -> Backbone:
    """ESPNet for `num_classes` outputs; `weights` is "none" or a safetensors file."""
    network = ESPNet(num_classes, p, q)
    load_pretrained(network, weights, None, ())
    encoder = network.encoder
    blocks: dict[str, nn.Module | Block] = {
        "level1": Block(First(encoder), gives=("pooled",)),
        "level2_0": encoder.level2_0,
        **{f"level2.{number}": block for number, block in enumerate(encoder.level2)},
        "level3_0": Block(
            Second(encoder),
            reads=(f"level2.{p - 1}", "level2_0", "pooled"),
            gives=("joined",),
        ),
        **{f"level3.{number}": block for number, block in enumerate(encoder.level3)},
    }
    reads = (f"level3.{q - 1}", "level3_0", "joined", "level1")
    # So that weights under the authors' names are found.
    return Backbone(blocks, Block(Decoder(network), reads=reads)).name_after(network)


class ESPNet(nn.Module):
    """The network as its authors' weights name it: an encoder and a light decoder."""

    def __init__(self, outputs: int, p: int, q: int) -> None:
        super().__init__()
        self.encoder = Encoder(outputs, p, q)
        self.br = _norm(outputs)
        self.up_l3 = nn.Sequential(_doubling(outputs))
        self.level3_C = _named(conv=nn.Conv2d(131, outputs, 1, bias=False))
        combined = Pyramid(2 * outputs, outputs, residual=False)
        self.combine_l2_l3 = nn.Sequential(_activated(2 * outputs), combined)
        self.up_l2 = nn.Sequential(_doubling(outputs), _activated(outputs))
        self.conv = _convolution(outputs + 19, outputs)
        self.classifier = _doubling(outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's size."""
        encoder = self.encoder
        level1, pooled = First(encoder)(image)
        level2_0 = encoder.level2_0(level1)
        level3_0, joined = Second(encoder)(encoder.level2(level2_0), level2_0, pooled)
        return Decoder(self)(encoder.level3(level3_0), level3_0, joined, level1)


class Encoder(nn.Module):
    """Three levels, each of which sees the pooled image, too."""

    def __init__(self, outputs: int, p: int, q: int) -> None:
        super().__init__()
        self.level1 = _convolution(3, 16, stride=2)
        self.b1 = _activated(19)
        self.level2_0 = DownPyramid(19, 64)
        self.level2 = nn.Sequential(*(Pyramid(64, 64) for _ in range(p)))
        self.b2 = _activated(131)
        self.level3_0 = DownPyramid(131, 128)
        self.level3 = nn.Sequential(*(Pyramid(128, 128) for _ in range(q)))
        self.b3 = _activated(256)
        self.classifier = _named(conv=nn.Conv2d(256, outputs, 1, bias=False))


class First(nn.Module):
    """The first convolution beside the pooled image, and the image pooled once more."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.level1, self.b1 = encoder.level1, encoder.b1

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        half = _pooled(image)
        return self.b1(torch.cat([self.level1(image), half], 1)), _pooled(half)  # 19, 3: 1/2, 1/4


class Second(nn.Module):
    """What level 2 made, its input and the pooled image, joined; and the step down from there."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.b2, self.level3_0 = encoder.b2, encoder.level3_0

    def forward(self, level2: Tensor, before: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        joined = self.b2(torch.cat([level2, before, pooled], 1))  # 131: 1/4
        return self.level3_0(joined), joined  # 128: 1/8


class Decoder(nn.Module):
    """From class scores at an eighth up to the image, with finer features at each step."""

    def __init__(self, network: ESPNet) -> None:
        super().__init__()
        self.b3, self.scores = network.encoder.b3, network.encoder.classifier
        self.br, self.up_l3, self.level3_C = network.br, network.up_l3, network.level3_C
        self.combine_l2_l3, self.up_l2 = network.combine_l2_l3, network.up_l2
        self.conv, self.classifier = network.conv, network.classifier

    def forward(self, level3: Tensor, before: Tensor, joined: Tensor, level1: Tensor) -> Tensor:
        deep = self.b3(torch.cat([before, level3], 1))  # 256: 1/8
        scores = self.up_l3(self.br(self.scores(deep)))  # outputs: 1/4
        both = self.combine_l2_l3(torch.cat([self.level3_C(joined), scores], 1))
        return self.classifier(self.conv(torch.cat([self.up_l2(both), level1], 1)))


class _Pyramid(nn.Module):
    """Reduction, parallel dilated convolutions, and their running sums side by side."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = outputs // len(DILATIONS)
        first = outputs - (len(DILATIONS) - 1) * width
        reduction = nn.Conv2d(inputs, width, kernel, stride, padding=kernel // 2, bias=False)
        self.c1 = _named(conv=reduction)
        for dilation in DILATIONS:
            channels = first if dilation == 1 else width
            branch = nn.Conv2d(width, channels, 3, padding=dilation, dilation=dilation, bias=False)
            self.add_module(f"d{dilation}", _named(conv=branch))

    def spread(self, features: Tensor) -> Tensor:
        """All branches, (B, outputs, h, w)."""
        reduced = self.c1(features)
        plain, total, *others = (self.get_submodule(f"d{d}")(reduced) for d in DILATIONS)
        parts = [plain, total]
        for other in others:
            # Sums of more and more dilations, against the pattern that one alone would leave.
            total = total + other
            parts.append(total)
        return torch.cat(parts, 1)


class Pyramid(_Pyramid):
    """An ESP block."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool = True) -> None:
        super().__init__(inputs, outputs, kernel=1, stride=1)
        self.bn = _activated(outputs)
        self._residual = residual

    def forward(self, features: Tensor) -> Tensor:
        found = self.spread(features)
        return self.bn(features + found if self._residual else found)


class DownPyramid(_Pyramid):
    """An ESP block that halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel=3, stride=2)
        self.bn, self.act = _norm(outputs), nn.PReLU(outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.bn(self.spread(features)))


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules in turn, by name."""
    return nn.Sequential(OrderedDict(modules))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _activated(channels: int) -> nn.Sequential:
    return _named(bn=_norm(channels), act=nn.PReLU(channels))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return _named(conv=convolution, bn=_norm(outputs), act=nn.PReLU(outputs))


def _doubling(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)


def _pooled(image: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(image, 3, stride=2, padding=1)
