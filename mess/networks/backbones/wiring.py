"""Features as modules of other libraries take them: by name, as a list, as tokens."""

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


def to_tokens(features: Tensor) -> Tensor:
    """(B, C, h, w) as the tokens of a transformer, (B, h·w, C)."""
    return features.flatten(2).transpose(1, 2)


def to_features(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, h·w, C) as features (B, C, h, w), in the same memory."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))
