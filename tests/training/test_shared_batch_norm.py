"""Batch normalisation over processes; with one process it must be torch's own.

With several, tests/workflow/test_processes.py holds a divided batch against a whole one.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mess.compute.processes import ALONE
from mess.errors import ConfigError
from mess.training.shared_batch_norm import normalise_apart, normalise_together
from tests.seeds import seeded


def pair(**options: float) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """Torch's, and the same over the processes."""
    torch.manual_seed(seeded(0))
    theirs = nn.BatchNorm2d(8, **options).double()  # pyright: ignore[reportArgumentType]
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = copy.deepcopy(theirs)
    normalise_together(ours, ALONE)
    return theirs, ours


@pytest.mark.parametrize("shape", [(4, 8, 5, 7), (2, 8, 1, 1), (1, 8, 3, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_outputs_gradients_and_statistics_are_torchs(
    shape: tuple[int, ...], layout: torch.memory_format, mean: float
) -> None:
    theirs, ours = pair(momentum=0.3, eps=1e-3)
    for number in range(3):
        generator = torch.Generator().manual_seed(seeded(number))
        images = torch.randn(shape, generator=generator, dtype=torch.float64) + mean
        images = images.contiguous(memory_format=layout).requires_grad_()
        step = torch.randn(shape, generator=generator, dtype=torch.float64)
        expected, found = theirs(images), ours(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        expected = torch.autograd.grad(expected, [images, *theirs.parameters()], step)
        found = torch.autograd.grad(found, [images, *ours.parameters()], step)
        for mine, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-6)
    for name, buffer in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer, rtol=1e-9, atol=1e-9)


def test_evaluation_and_what_comes_after_are_torchs() -> None:
    theirs, ours = pair()
    images = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
    normalise_apart(ours)
    assert torch.equal(ours.train()(images), theirs.train()(images))


def test_reduced_precision_keeps_its_type() -> None:
    layer = nn.BatchNorm2d(8)
    expected = copy.deepcopy(layer)
    normalise_together(layer, ALONE)
    images = torch.randn(4, 8, 5, 5).bfloat16().requires_grad_()
    output = layer(images)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected(images), rtol=0.02, atol=0.02)
    (gradient,) = torch.autograd.grad(output.float().square().sum(), [images])
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()


def test_the_cumulative_mean_is_kept_without_a_momentum() -> None:
    theirs = nn.BatchNorm2d(8, momentum=None)
    ours = copy.deepcopy(theirs)
    normalise_together(ours, ALONE)
    for _ in range(3):
        images = torch.randn(4, 8, 5, 5) + 3
        for layer in (ours, theirs):
            layer(images)
    for name, buffer in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer)


def test_what_a_layer_does_after_normalising_is_done_too() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.layers.BatchNormAct2d(8, act_layer=nn.ReLU)
    ours = copy.deepcopy(theirs)
    normalise_together(ours, ALONE)
    images = torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(ours(images), theirs(images))
    assert ours(images).min() == 0


@pytest.mark.parametrize(
    "layer",
    [
        type("Unknown", (nn.BatchNorm2d,), {})(8),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, track_running_stats=False),
    ],
)
def test_layers_of_another_kind_are_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"'1'.* training\.batch_norm = \"process\""):
        normalise_together(nn.Sequential(nn.ReLU(), layer), ALONE)
