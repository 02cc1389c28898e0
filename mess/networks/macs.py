"""Multiply-adds, counted once each, of convolution and linear layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def macs_and_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """MACs of one forward in eval mode on an input of `shape`, and the shape of its output.

    `module` lives on the meta device: nothing is computed. Normalisation, pooling and upsampling
    count 0 (the papers' tables agree within 0.7%).
    """
    # In training, normalisation refuses single values, and heads leave taps out that count.
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = module(torch.empty(shape, device="meta"))
    finally:
        module.train(training)
    # torch counts a multiply-add as two operations.
    return counter.get_total_flops() // 2, tuple(output.shape)


def parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters())
