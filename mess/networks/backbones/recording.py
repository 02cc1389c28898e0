"""Which layers a network runs, in which order: what another library's `forward` does, observed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Ran:
    """A layer as it ran once: `name` leads to it, `further` are its arguments after the features.

    `made_contiguous` says that the network reordered what the layer returned before going on.
    """

    name: str
    further: tuple[Any, ...]
    made_contiguous: bool
    output: Tensor
    handed_on: Tensor
    """What the next layer took; of the last one, what the network returned of its shape."""


@dataclass(frozen=True)
class _Call:
    name: str
    inputs: tuple[Any, ...]
    output: Tensor


def recorded(
    network: nn.Module, image: Tensor, opens: Callable[[str, nn.Module], bool]
) -> tuple[list[Ran], list[Tensor]]:
    """The layers that `network` runs on `image`, in order, and the features that it returns.

    A layer is what is called, outside of other layers. Those that `opens` names, by path and
    module, are looked into instead, as is what is not called itself, such as a list. Raises
    ValueError for a layer that returns something else than one tensor.
    """
    calls: list[_Call] = []
    with _listening(network, opens, calls):
        features = list(network(image))
    taken = [*(call.inputs[0] for call in calls[1:]), features[-1]]
    ran = [
        Ran(
            name=call.name,
            further=call.inputs[1:],
            made_contiguous=call.output.shape == after.shape
            and after.is_contiguous()
            and not call.output.is_contiguous(),
            output=call.output,
            handed_on=after,
        )
        for call, after in zip(calls, taken, strict=True)
    ]
    return ran, features


@contextmanager
def _listening(
    network: nn.Module, opens: Callable[[str, nn.Module], bool], calls: list[_Call]
) -> Iterator[None]:
    inside: list[str] = []
    handles = []

    def listen(path: str, layer: nn.Module) -> None:
        def enter(*_: Any) -> None:
            inside.append(path)

        def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            inside.pop()
            if inside:
                return
            if not isinstance(output, Tensor):
                raise ValueError(f"layer {path!r} returns a {type(output).__name__}, no features")
            calls.append(_Call(path, inputs, output))

        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave))

    for path, layer in network.named_modules():
        if layer is not network and not opens(path, layer):
            listen(path, layer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
