"""Modules of other libraries that take their features together, as heads that take them apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ByName(nn.Module):
    """A head that takes a mapping of features: here one after another, in the order of `names`."""

    def __init__(self, head: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.head = head
        self._names = tuple(names)

    def forward(self, *features: Tensor) -> Tensor:
        return self.head(dict(zip(self._names, features, strict=True)))


class Listed(nn.Module):
    """A head that takes a list of features: here one after another."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *features: Tensor) -> Tensor:
        return self.head(list(features))
