"""What a network has to compute for some of its output positions: layer by layer, and in MACs.

A position is a place on a map, with all of its channels. Shapes: B requests, P positions of a map
(row by row), Q those of another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mess.networks import macs
from mess.networks.network import OverprovisionedNetwork

_VALUE = 2.0**-6
"""What every layer puts out. Above 0, where ReLU passes a gradient, and so small that sums over
long residual chains stay below 6, from where ReLU6 passes none."""

_REQUESTS = 32
"""Requests that are followed at once."""


Shape = tuple[int, int, int]
"""Channels, rows and columns."""


class LayerNeeds(NamedTuple):
    """One call of a convolution or linear layer.

    macs: multiply-adds of one output position. positions: shape (B, P), bool: those needed.
    """

    macs: int
    positions: NDArray[np.bool_]


class Needs(NamedTuple):
    """What B requests need: of each layer in order of execution, and of the input, (B, P) bool."""

    layers: list[LayerNeeds]
    input: NDArray[np.bool_]


def needs(module: nn.Module, shape: Shape, wanted_BP: NDArray[np.bool_]) -> Needs:
    """What the `wanted` positions of a module's output depend on, for an input of (C, h, w).

    Any graph of convolutions, linear and normalisation layers, pooling, interpolation and
    elementwise operations, in eval mode. The output is a map (C, h, w). A layer is taken to use
    each of its weights, whatever their values. Raises ValueError for other layers that have MACs,
    such as transposed convolutions or attention.
    """
    twin = copy.deepcopy(module).cpu().float().eval()
    for parameter in twin.parameters():
        # Of scales between layers nothing may be 0 or cancel out.
        parameter.requires_grad_(False).fill_(1.0)
    parts = [_needs(twin, shape, some) for some in torch.from_numpy(wanted_BP).split(_REQUESTS)]
    layers = [
        LayerNeeds(calls[0].macs, np.concatenate([call.positions for call in calls]))
        for calls in zip(*(part.layers for part in parts), strict=True)
    ]
    counted = sum(layer.macs * layer.positions.shape[1] for layer in layers)
    whole, _ = macs_on_map(module, shape)
    if counted != whole:
        raise ValueError(
            f"{type(module).__name__} has {whole} MACs, convolutions and linear layers {counted}: "
            "the receptive field of the others is not known"
        )
    return Needs(layers, np.concatenate([part.input for part in parts]))


def input_share(module: nn.Module, shape: Shape) -> float:
    """Share of the input in the receptive field of one pixel, in the middle of the output.

    The share of the volume, since a position counts with all channels (MESS paper, §6.2: up to 45%
    from the first exit to the output with an FCN head, 100% with a DeepLab head).
    """
    _, (_, height, width) = macs_on_map(module, shape)
    wanted = np.zeros((1, height, width), np.bool_)
    wanted[0, height // 2, width // 2] = True
    return float(needs(module, shape, wanted.reshape(1, -1)).input.mean())


def chain(network: OverprovisionedNetwork, start: int, end: int) -> nn.Sequential:
    """The blocks after point `start` up to point `end` of a network without skip connections."""
    if not network.backbone.is_chain:
        raise ValueError("a cascade is of a chain of blocks; this backbone has skip connections")
    return nn.Sequential(*network.span(start, end).blocks)


def macs_on_map(module: nn.Module, shape: Shape) -> tuple[int, Shape]:
    """MACs of a module on one map, (C, h, w) on any device, and the shape of its output."""
    total, ((_, *output),) = macs.macs_and_shapes(copy.deepcopy(module).to("meta"), (1, *shape))
    channels, height, width = output
    return total, (channels, height, width)


@dataclass(frozen=True)
class Reach:
    """What each output position of a module depends on, ready to be added up quickly.

    layers: MACs of an output position, and which ones each of the P positions of the module's
    output needs, (P, Q) as 0 and 1; layers with the same needs are one. input: (P, Q), the same for
    positions of the input. shape: rows and columns of the output.
    """

    layers: tuple[tuple[int, NDArray[np.float32]], ...]
    input: NDArray[np.float32]
    shape: tuple[int, int]

    @classmethod
    def of(cls, module: nn.Module, shape: Shape) -> Reach:
        """The reach of a module on inputs (C, h, w); a Sequential of nothing is allowed."""
        _, (_, height, width) = macs_on_map(module, shape)
        found = needs(module, shape, np.eye(height * width, dtype=np.bool_))
        merged: dict[tuple[tuple[int, ...], bytes], int] = {}
        for layer in found.layers:
            key = layer.positions.shape, np.packbits(layer.positions).tobytes()
            merged[key] = merged.get(key, 0) + layer.macs
        layers = tuple((total, _unpacked(*key)) for key, total in merged.items())
        return cls(layers, found.input.astype(np.float32), (height, width))

    def follow(self, wanted_BP: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """MACs of what the wanted output positions need, (B,), and the input positions, (B, Q)."""
        wanted = wanted_BP.astype(np.float32)
        total = np.zeros(len(wanted), np.int64)
        for macs_a_position, reached in self.layers:
            total += macs_a_position * (wanted @ reached > 0).sum(1, dtype=np.int64)
        return total, wanted @ self.input > 0


class _Counter(TorchFunctionMode):
    """Puts `_Layer` in the place of every layer, and collects what a backward pass needs of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.positions: list[Tensor] = []
        self._layers: dict[Any, Callable[..., Any]] = {
            torch.conv2d: self._convolution,
            F.linear: self._linear,
            F.batch_norm: lambda input, *_, **__: input.clone(),
            F.layer_norm: _layer_norm,
            F.group_norm: _group_norm,
            F.max_pool2d: _max_pool,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stand_in = self._layers[func] if func in self._layers else func  # noqa: SIM401
        return stand_in(*args, **(kwargs or {}))

    def _convolution(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        del bias
        one = weight.new_ones(groups, 1, *weight.shape[2:])
        size = input.shape[2:]

        def spread(maps: Tensor) -> Tensor:
            count = maps.shape[1]
            return torch.conv2d(maps, one[:count], None, stride, padding, dilation, count)

        output = spread(input.new_zeros(1, 1, *size)).shape[2:]
        note = self._note(weight.numel(), output.numel())

        def pull(needed: Tensor) -> Tensor:
            by_group = needed.unflatten(1, (groups, -1)).any(2)
            note(by_group.any(1).flatten(1))
            if bool((by_group == by_group[:, :1]).all()):
                by_group = by_group[:, :1]  # as nearly always, and much less work
            start = torch.zeros(len(needed), by_group.shape[1], *size, requires_grad=True)
            with torch.enable_grad():
                (found,) = torch.autograd.grad(spread(start), start, by_group.float())
            return found.repeat_interleave(input.shape[1] // found.shape[1], 1)

        return _Layer.apply(input, (len(input), len(weight), *output), pull)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        del bias
        note = self._note(weight.numel(), input[0, ..., 0].numel())

        def pull(needed: Tensor) -> Tensor:
            needed = needed.any(-1, keepdim=True)
            note(needed.flatten(1))
            return needed.float().expand(input.shape)

        return _Layer.apply(input, (*input.shape[:-1], len(weight)), pull)

    def _note(self, cost: int, positions: int) -> Callable[[Tensor], None]:
        index = len(self.calls)
        self.calls.append(cost)
        # Stays so where nothing that is wanted depends on the layer.
        self.positions.append(torch.zeros(0, positions, dtype=torch.bool))

        def note(needed_BP: Tensor) -> None:
            self.positions[index] = needed_BP

        return note


class _Layer(torch.autograd.Function):
    """A layer of which only is known what its outputs depend on; its output is constant.

    Backward takes any gradient but 0 as "needed" and begins again with 0 and 1: nothing can vanish
    or overflow over many layers.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, shape: tuple[int, ...], pull: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.pull = pull
        return input.new_full(shape, _VALUE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pull(gradients[0] != 0), None, None


def _layer_norm(input: Tensor, normalized_shape: Any, *_: Any, **__: Any) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _mixing(input, input.shape, dims)


def _group_norm(input: Tensor, num_groups: int, *_: Any, **__: Any) -> Tensor:
    grouped = torch.Size([len(input), num_groups, input[0].numel() // num_groups])
    return _mixing(input, grouped, (-1,))


def _mixing(input: Tensor, view: torch.Size, dims: tuple[int, ...]) -> Tensor:
    """Every value depends on all along `dims` of the input seen as `view`."""

    def pull(needed: Tensor) -> Tensor:
        any_of = needed.reshape(view).float().amax(dims, keepdim=True)
        return any_of.expand(view).reshape(input.shape)

    return _Layer.apply(input, input.shape, pull)


def _max_pool(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    # The gradient of a maximum goes to one value of the window, that of the mean to all.
    if dilation not in (1, (1, 1)) or return_indices:
        raise ValueError("the receptive field of dilated or indexed max pooling is not known")
    return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode)


def _needs(module: nn.Module, shape: Shape, wanted_BP: Tensor) -> Needs:
    start = torch.full((len(wanted_BP), *shape), _VALUE, requires_grad=True)
    counter = _Counter()
    with counter:
        output = module(start.clone())
    gradient = wanted_BP.float().view(len(output), 1, *output.shape[2:]).expand(output.shape)
    output.backward(gradient)
    assert start.grad is not None
    layers = [
        LayerNeeds(cost, (found if len(found) else _none(found, len(wanted_BP))).numpy())
        for cost, found in zip(counter.calls, counter.positions, strict=True)
    ]
    return Needs(layers, (start.grad != 0).any(1).flatten(1).numpy())


def _none(found: Tensor, requests: int) -> Tensor:
    return found.new_zeros(requests, found.shape[1])


def _unpacked(shape: tuple[int, ...], bits: bytes) -> NDArray[np.float32]:
    flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=int(np.prod(shape)))
    return flat.reshape(shape).astype(np.float32)
