"""Multiply-adds, counted once each: of convolutions, linear layers and attention's products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]

# Subclasses may do more, so types are compared exactly.
_FREE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Dropout2d)
"""Layers that count 0 and keep the shape. Going through them takes three quarters of the time."""


def macs_and_shapes(module: nn.Module, *inputs: Shape) -> tuple[int, tuple[Shape, ...]]:
    """MACs of one forward in eval mode on inputs of these shapes, and the shapes of its outputs.

    `module` lives on the meta device: nothing is computed. Normalisation, pooling and upsampling
    count 0 (the papers' tables agree within 0.7%); the two products of attention count.
    """
    # In training, heads leave taps out that count.
    training = module.training
    module.eval()
    try:
        with _passing_on(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
            found = module(*(torch.empty(shape, device="meta") for shape in inputs))
    finally:
        module.train(training)
    outputs = (found,) if isinstance(found, Tensor) else found
    # torch counts a multiply-add as two operations.
    return counter.get_total_flops() // 2, tuple(tuple(each.shape) for each in outputs)


@contextmanager
def _passing_on(module: nn.Module) -> Iterator[None]:
    """Layers that count 0 hand their input on."""
    free = [
        each for each in module.modules() if type(each) in _FREE and "forward" not in vars(each)
    ]
    for layer in free:
        layer.forward = _same
    try:
        yield
    finally:
        for layer in free:
            # The class's own is behind it.
            del layer.forward


def _same(values: Tensor) -> Tensor:
    return values


def parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters())
