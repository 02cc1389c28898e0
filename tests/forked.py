"""A small network with skip connections, as a plain module and as a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mess.networks.backbones import Backbone
from mess.networks.backbones.base import IMAGE, Block

WIDTH = 8


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class First(nn.Module):
    """Features, and beside them the pooled image, which a later block reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _convolution(3, WIDTH, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(image), F.avg_pool2d(image, 4)


class Joined(nn.Module):
    """Features with others beside them, brought to one size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = _convolution(inputs, outputs)

    def forward(self, features: Tensor, other: Tensor) -> Tensor:
        size = other.shape[2:]
        wide = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return self.body(torch.cat([wide, other], 1))


class Forked(nn.Module):
    """Half, quarter and eighth of the image, then back to half; the head reads the image, too."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = First()
        self.quarter = _convolution(WIDTH, 2 * WIDTH, 2)
        self.beside = Joined(2 * WIDTH + 3, 2 * WIDTH)
        self.eighth = _convolution(2 * WIDTH, 4 * WIDTH, 2)
        self.up = Joined(6 * WIDTH, 2 * WIDTH)
        self.top = Joined(3 * WIDTH, WIDTH)
        self.head = Joined(WIDTH + 3, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        half, pooled = self.first(image)
        beside = self.beside(self.quarter(half), pooled)
        up = self.up(self.eighth(beside), beside)
        return self.head(self.top(up, half), image)


def forked(num_classes: int, *, weights: str = "none") -> Backbone:
    """Its blocks, which share its modules."""
    assert weights == "none"
    return backbone_of(Forked(num_classes))


def backbone_of(plain: Forked) -> Backbone:
    """The same network as blocks."""
    return Backbone(
        {
            "half": Block(plain.first, gives=("pooled",)),
            "quarter": plain.quarter,
            "beside": Block(plain.beside, reads=("quarter", "pooled")),
            "eighth": plain.eighth,
            "up": Block(plain.up, reads=("eighth", "beside")),
            "top": Block(plain.top, reads=("up", "half")),
        },
        Block(plain.head, reads=("top", IMAGE)),
    )


class Added(nn.Module):
    """Features beside deeper ones at twice their size, which only fit where nothing was rounded."""

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        return shallow + F.interpolate(deep, scale_factor=2.0)


def strict(num_classes: int, *, weights: str = "none") -> Backbone:
    """Takes images whose sides are multiples of 8 alone, and fails on others, as most decoders."""
    assert weights == "none"
    blocks = {
        "stem": _convolution(3, 4, 2),
        "down": _convolution(4, 4, 2),
        "deep": _convolution(4, 4, 2),
        "skip": Block(Added(), reads=("down", "deep")),
    }
    return Backbone(blocks, nn.Conv2d(4, num_classes, 1))


def too_few(num_classes: int, *, weights: str = "none") -> Backbone:
    """Logits of one class less than there are."""
    return strict(num_classes - 1, weights=weights)


def changing(num_classes: int, *, weights: str = "none") -> Backbone:
    """A block that begins with a rectifier in place, as in networks of pre-activation blocks."""
    assert weights == "none"
    second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
    blocks = {"first": nn.Conv2d(3, 4, 3, stride=2, padding=1), "second": second}
    return Backbone(blocks, nn.Conv2d(4, num_classes, 1))


def dropping(num_classes: int, *, weights: str = "none") -> Backbone:
    """A block that begins with dropout in place, which leaves features alone but in training."""
    assert weights == "none"
    second = nn.Sequential(nn.Dropout2d(0.5, inplace=True), nn.Conv2d(4, 4, 1))
    blocks = {"first": nn.Conv2d(3, 4, 3, stride=2, padding=1), "second": second}
    return Backbone(blocks, nn.Conv2d(4, num_classes, 1))


class Naming(nn.Module):
    """Logits in a dictionary."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(4, num_classes, 1)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"out": self.body(features)}


def naming(num_classes: int, *, weights: str = "none") -> Backbone:
    """A head that returns no tensor."""
    assert weights == "none"
    return Backbone({"first": nn.Conv2d(3, 4, 3, stride=2, padding=1)}, Naming(num_classes))


class Sized(nn.Module):
    """Features, and their size."""

    def forward(self, features: Tensor) -> tuple[Tensor, torch.Size]:
        return features, features.shape


def sized(num_classes: int, *, weights: str = "none") -> Backbone:
    """A block that gives something else than tensors."""
    assert weights == "none"
    return Backbone({"first": Block(Sized(), gives=("size",))}, nn.Conv2d(3, num_classes, 1))


class Alone(nn.Module):
    """Features in a tuple."""

    def forward(self, features: Tensor) -> tuple[Tensor]:
        return (features,)


def alone(num_classes: int, *, weights: str = "none") -> Backbone:
    """A block that gives a tuple of one."""
    assert weights == "none"
    return Backbone({"first": Alone()}, nn.Conv2d(3, num_classes, 1))


class Looking(nn.Module):
    """Features plus rows of a table, by indices that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 4))
        self.register_buffer("at", torch.tensor([[2, 0, 1, 2]]), persistent=False)
        self.register_buffer("kept", torch.tensor([[0, 1], [2, 2]]))

    def forward(self, features: Tensor) -> Tensor:
        rows = self.table[self.get_buffer("at")].mean(1) + self.table[self.get_buffer("kept")].sum()
        return features + rows[..., None, None]


def looking(num_classes: int, *, weights: str = "none") -> Backbone:
    """A block with indices among its buffers."""
    assert weights == "none"
    blocks = {"first": nn.Conv2d(3, 4, 3, stride=8, padding=1), "second": Looking()}
    return Backbone(blocks, nn.Conv2d(4, num_classes, 1))


class Deciding(nn.Module):
    """A step that depends on a value, which runs everywhere and can be written as no program."""

    def forward(self, features: Tensor) -> Tensor:
        return features if features.is_meta or float(features.mean()) > 0 else -features


def deciding(num_classes: int, *, weights: str = "none") -> Backbone:
    """A block that no program can hold."""
    assert weights == "none"
    blocks = {"first": nn.Conv2d(3, 4, 3, stride=2, padding=1), "second": Deciding()}
    return Backbone(blocks, nn.Conv2d(4, num_classes, 1))
