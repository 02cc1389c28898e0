"""The DeepLab head is torchvision's to the last parameter, whatever is left out of computing it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.lraspp import LRASPPHead

from mess.networks import macs
from mess.networks.backbones.heads import (
    PAPERS_RATES,
    HeadOptions,
    PooledContextHead,
    deeplab_head,
    rates_of_map,
    separable_deeplab_head,
)
from tests.seeds import seeded

CHANNELS, CLASSES, WIDTH = 16, 5, 8


def torchvisions(ours: nn.Module) -> nn.Module:
    """The head with torchvision's own ASPP and the same weights."""
    theirs = copy.deepcopy(ours)
    assert isinstance(theirs, nn.Sequential)
    theirs[0] = ASPP(CHANNELS, [12, 24, 36], WIDTH).to(torch.float64)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def head() -> nn.Module:
    torch.manual_seed(seeded(0))
    module = deeplab_head(CHANNELS, CLASSES, HeadOptions(width=WIDTH)).to(torch.float64)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


# Below 12, between the dilations on one axis or both, on them exactly, and beyond them all.
SIZES = [(6, 8), (9, 30), (21, 27), (12, 24), (13, 25), (36, 37), (40, 50)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [True, False])
def test_logits_and_gradients_are_those_of_torchvision(
    size: tuple[int, int], training: bool
) -> None:
    ours = head().train(training)
    theirs = torchvisions(ours).train(training)
    for part in theirs.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    features = torch.randn(2, CHANNELS, *size, dtype=torch.float64, requires_grad=True)
    expected, found = theirs(features), ours(features)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    step = torch.randn_like(expected)
    expected = torch.autograd.grad(expected, [features, *theirs.parameters()], step)
    found = torch.autograd.grad(found, [features, *ours.parameters()], step)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)


def test_the_state_dict_and_its_draws_are_torchvisions() -> None:
    torch.manual_seed(seeded(0))
    ours = deeplab_head(CHANNELS, CLASSES, HeadOptions(width=WIDTH))[0]
    torch.manual_seed(seeded(0))
    theirs = ASPP(CHANNELS, [12, 24, 36], WIDTH)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, wanted)


def test_every_tap_counts_as_it_does_in_the_papers() -> None:
    with torch.device("meta"):
        ours = deeplab_head(CHANNELS, CLASSES, HeadOptions(width=WIDTH))
        theirs = nn.Sequential(ASPP(CHANNELS, [12, 24, 36], WIDTH), *list(ours)[1:])
    shape = (1, CHANNELS, 9, 30)
    assert macs.macs_and_shapes(ours, shape) == macs.macs_and_shapes(theirs, shape)


# ---- Rates


def test_rates_follow_the_map() -> None:
    assert rates_of_map((64, 64)) == PAPERS_RATES
    # DeepLabV3 at stride 16, on half the positions.
    assert rates_of_map((32, 40)) == (6, 12, 18)
    assert rates_of_map((23, 30)) == (4, 9, 13)
    assert rates_of_map((1, 1)) == (1, 1, 1)


@pytest.mark.parametrize("build", [deeplab_head, separable_deeplab_head])
def test_heads_dilate_by_their_rates(build: Callable[..., nn.Module]) -> None:
    module = build(CHANNELS, CLASSES, HeadOptions(width=WIDTH, rates=(2, 3, 7)))
    found = [
        layer.dilation[0]
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
    ]
    assert found == [2, 3, 7, 1]


# ---- Lighter heads


def test_a_separable_head_is_one_depthwise_and_one_pointwise_convolution_for_each() -> None:
    options = HeadOptions(width=WIDTH)
    cost, _ = macs.macs_and_shapes(
        separable_deeplab_head(CHANNELS, CLASSES, options), (1, CHANNELS, 6, 8)
    )
    separable = 9 * WIDTH + WIDTH * WIDTH
    branches = WIDTH * WIDTH + 3 * separable
    joined = 5 * WIDTH * WIDTH + separable + WIDTH * CLASSES
    pooled = WIDTH * WIDTH
    assert cost == 48 * (CHANNELS * WIDTH + branches + joined) + pooled


@pytest.mark.parametrize("training", [False, True])
def test_the_pooled_context_head_is_torchvisions_without_finer_features(training: bool) -> None:
    torch.manual_seed(seeded(1))
    ours = PooledContextHead(CHANNELS, CLASSES).double().train(training)
    theirs = LRASPPHead(4, CHANNELS, CLASSES, PooledContextHead.WIDTH).double().train(training)
    pairs = {"features": "cbr", "scale": "scale", "classifier": "high_classifier"}
    for mine, name in pairs.items():
        theirs.get_submodule(name).load_state_dict(ours.get_submodule(mine).state_dict())
    nn.init.zeros_(theirs.low_classifier.weight)
    assert theirs.low_classifier.bias is not None
    nn.init.zeros_(theirs.low_classifier.bias)
    features = torch.randn(2, CHANNELS, 5, 7, dtype=torch.float64)
    expected = theirs({"low": torch.zeros(2, 4, 5, 7, dtype=torch.float64), "high": features})
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=1e-12)
