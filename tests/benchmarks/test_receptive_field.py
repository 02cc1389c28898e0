"""What layers need, against NaNs put at every position of a network that really runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cascade.receptive_field import Reach, input_share, needs
from mess.exits import ExitArchitecture
from mess.networks import macs
from mess.networks.backbones.heads import HeadOptions
from mess.networks.backbones.mobilenet import (
    deeplabv3_mobilenet_v3_large,
    segmentation_mobilenet_v2,
)
from mess.networks.backbones.resnet import drn50
from mess.networks.backbones.small import ResidualBlock, small_resnet
from mess.networks.heads import build_exit
from tests.seeds import seeded


def reached(
    module: nn.Module, shape: tuple[int, int, int], change: float
) -> list[NDArray[np.bool_]]:
    """By brute force, (P, Q) of each layer in order of execution, and of the input at last.

    Q positions are changed one after the other, each in all its channels.
    """
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    image = torch.ones(1, *shape, dtype=torch.float64)
    layers: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda layer, *_: layers.append(layer))
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        before = module(image)
    for hook in hooks:
        hook.remove()
    # An identity in front makes the input an output, too.
    whole = nn.Sequential(nn.Identity(), module)
    return [_changed(whole, layer, image, before, change) for layer in [*layers, whole[0]]]


def _changed(
    module: nn.Module, layer: nn.Module, image: Tensor, before: Tensor, change: float
) -> NDArray[np.bool_]:
    """Which outputs of the module differ for a change at each output position of a layer."""
    columns, count = [], 1

    def spoil(layer: nn.Module, args: object, values: Tensor) -> Tensor:
        nonlocal count
        # Linear layers have their channels last.
        axis = values.dim() - 1 if isinstance(layer, nn.Linear) else 1
        moved = values.clone().movedim(axis, 1)
        flat = moved.flatten(2) if moved.dim() > 2 else moved[:, :, None]
        count = flat.shape[2]
        flat[:, :, len(columns)] += change
        return flat.view(moved.shape).movedim(1, axis)

    handle = layer.register_forward_hook(spoil)
    while len(columns) < count:
        with torch.inference_mode():
            columns.append((module(image) != before).any(1).flatten().numpy())
    handle.remove()
    return np.stack(columns, axis=1)


class Gated(nn.Module):
    """Squeeze and excitation by linear layers, around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.gate = nn.Linear(4, 4)

    def forward(self, features: Tensor) -> Tensor:
        found = self.inside(features)
        gate = self.gate(found.mean((2, 3))).sigmoid()
        return features + found * gate[:, :, None, None]


class Shuffled(nn.Module):
    """Groups with different receptive fields, so that a position's channels differ."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.apart = nn.Conv2d(4, 2, 3, padding=1, groups=2)
        self.last = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        narrow, wide = features.chunk(2, 1)
        apart = self.apart(torch.cat([self.narrow(narrow), self.wide(wide)], 1))
        return self.last(apart[:, :1])


class ChannelsLast(nn.Module):
    """Normalisation and a linear layer at each position, of which one channel goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(2, 4, 3), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, features: Tensor) -> Tensor:
        inside = self.norm(self.conv(features).permute(0, 2, 3, 1))
        return self.linear(inside).permute(0, 3, 1, 2)[:, :1]


class Resized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(2, 2, 3, stride=2), nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        up = F.interpolate(
            self.small(features), features.shape[2:], mode="bilinear", align_corners=False
        )
        return self.large(up)


NARROW = HeadOptions(width=4)
DEEPLAB = ExitArchitecture(1, 0, False, "dlb")

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "dilated": (lambda: nn.Conv2d(2, 3, 3, padding=3, dilation=3), (2, 5, 7)),
    "strided": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 1, 1)), (2, 6, 7)),
    "holes": (lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, stride=2)), (2, 5, 6)),
    "same": (lambda: nn.Conv2d(2, 2, (3, 5), padding="same"), (2, 4, 6)),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4),
            nn.ReLU6(inplace=True), nn.Conv2d(4, 2, 3, padding=2, dilation=2),
        ),
        (4, 6, 5),
    ),
    "residual": (lambda: ResidualBlock(4, 6, 2, 2), (4, 9, 8)),
    "max pool": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 1)
        ),
        (2, 7, 6),
    ),
    "gated": (Gated, (4, 4, 5)),
    "groups": (Shuffled, (4, 7, 6)),
    "channels last": (ChannelsLast, (2, 6, 5)),
    "resized": (Resized, (2, 7, 8)),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 2, 1)
        ),
        (4, 4, 4),
    ),
    "fcn exit": (lambda: build_exit(ExitArchitecture(2, 2, True), 16, 3, NARROW), (16, 9, 8)),
    "dlb exit": (lambda: build_exit(DEEPLAB, 8, 3, NARROW), (8, 4, 15)),
    "a backbone": (lambda: small_resnet(3, width=4), (3, 32, 40)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_what_is_needed_is_what_a_nan_reaches(name: str) -> None:
    factory, shape = MODULES[name]
    module = factory()
    # Interpolation weighs some values with 0, and 0 times NaN is NaN.
    expected = reached(module, shape, 1.0 if name == "resized" else torch.nan)
    outputs = len(expected[-1])
    wanted = np.concatenate([np.eye(outputs), np.ones((1, outputs))]).astype(np.bool_)
    found = needs(module.float(), shape, wanted)
    assert len(found.layers) == len(expected) - 1
    all_found = [*(layer.positions for layer in found.layers), found.input]
    for positions, brute in zip(all_found, expected, strict=True):
        assert np.array_equal(positions, np.concatenate([brute, brute.any(0, keepdims=True)]))


def test_the_cases_are_not_all_or_nothing() -> None:
    dense = {name: _input(name).mean() for name in ("gated", "dlb exit", "norms")}
    assert dense == {"gated": 1.0, "dlb exit": 1.0, "norms": 1.0}
    assert all(0 < _input(name).mean() < 0.6 for name in ("groups", "residual", "resized"))


def _input(name: str) -> NDArray[np.bool_]:
    factory, shape = MODULES[name]
    return Reach.of(factory(), shape).input > 0


@pytest.mark.parametrize(
    ("factory", "size"),
    [
        (lambda: segmentation_mobilenet_v2(3, width=0.25), (44, 60)),
        (lambda: deeplabv3_mobilenet_v3_large(3), (40, 56)),
        (lambda: drn50(3), (33, 40)),
        (lambda: small_resnet(3), (45, 60)),
    ],
    ids=["mobilenet_v2", "deeplabv3_mobilenet_v3_large", "drn50", "small_resnet"],
)
def test_everything_wanted_costs_what_macs_counts(
    factory: Callable[[], nn.Module], size: tuple[int, int]
) -> None:
    module = factory()
    with torch.device("meta"):
        laid_out = factory()
    whole, (output,) = macs.macs_and_shapes(laid_out, (1, 3, *size))
    everything = np.ones((1, output[2] * output[3]), np.bool_)
    found = needs(module, (3, *size), everything)
    assert sum(layer.macs * layer.positions.sum() for layer in found.layers) == whole
    assert found.input.all()


def test_requests_are_followed_each_for_itself_and_together() -> None:
    module, shape = ResidualBlock(4, 6, 1, 2), (4, 9, 8)
    wanted = np.random.default_rng(seeded(0)).random((70, 72)) < 0.03
    wanted[0], wanted[1] = False, True
    found = needs(module, shape, wanted)
    total = sum(layer.macs * layer.positions.sum(1) for layer in found.layers)
    reach = Reach.of(module, shape)
    followed, features = reach.follow(wanted)
    assert reach.shape == (9, 8)
    assert np.array_equal(followed, total)
    assert np.array_equal(features, found.input)
    assert followed[0] == 0
    assert followed[1] == macs.macs_and_shapes(module.to("meta"), (1, *shape))[0]
    # The two 3×3 convolutions need the same as each other nowhere, the projection is of the last.
    assert len(reach.layers) == 2


def test_a_very_deep_network_neither_vanishes_nor_overflows() -> None:
    layers = [nn.Conv2d(1, 1, 3, padding=1) for _ in range(400)]
    found = needs(nn.Sequential(*layers), (1, 1, 401), np.eye(1, 401, dtype=np.bool_))
    assert found.layers[0].positions[0].sum() == 400
    assert found.input[0].tolist() == [True] * 401


def test_a_long_residual_chain_passes_a_clipping_activation() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(50))

        def forward(self, features: Tensor) -> Tensor:
            for layer in self.layers:
                features = features + layer(features)
            return F.relu6(features)

    assert needs(Chain(), (1, 1, 2), np.array([[True, False]])).input.tolist() == [[True, False]]


def test_scales_that_are_zero_or_negative_hide_nothing() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)
            self.scale = nn.Parameter(torch.tensor([0.0, -1.0])[:, None, None, None])

        def forward(self, features: Tensor) -> Tensor:
            return features + self.scale[0] * self.layer(features) + self.scale[1] * features

    module = Scaled()
    assert needs(module, (1, 1, 3), np.array([[False, True, False]])).input.all()
    assert module.scale.flatten().tolist() == [0.0, -1.0]


def test_layers_that_nothing_depends_on_are_needed_nowhere() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, features: Tensor) -> Tensor:
            self.unused(features)
            return self.used(features)

    found = needs(Unused(), (1, 2, 2), np.ones((3, 4), np.bool_))
    assert [layer.positions.sum() for layer in found.layers] == [0, 12]
    assert found.layers[0].positions.shape == (3, 4)


def test_a_layer_that_is_not_known_is_refused_with_the_macs() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ConvTranspose2d(2, 1, 2, stride=2))
    with pytest.raises(ValueError, match="Sequential has 40 MACs, .* 8:"):
        needs(module, (1, 2, 2), np.ones((1, 16), np.bool_))


def test_share_of_the_input_that_one_pixel_in_the_middle_needs() -> None:
    two = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=2, dilation=2))
    assert input_share(two, (2, 9, 11)) == 7 * 7 / 99
    assert input_share(build_exit(DEEPLAB, 8, 3, NARROW), (8, 9, 11)) == 1.0
