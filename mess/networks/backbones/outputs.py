"""Networks whose outputs are not the classes of the data set: which channel is which class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mess.errors import ConfigError, nearest


class SelectedChannels(nn.Module):
    """Logits (B, outputs, h, w) to those of `channels`, in this order; it has no weights."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        # With the module to its device, but in no state dict: weights have the user's own names.
        self.register_buffer("_index", torch.tensor(self.channels), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        first, last = self.channels[0], self.channels[-1]
        if self.channels == tuple(range(first, last + 1)):
            # No copy: the usual case is a channel for void behind the classes.
            return logits[:, first : last + 1]
        return logits.index_select(1, self.get_buffer("_index"))


class SelectedHead(nn.Module):
    """A head, of which some channels are the logits."""

    def __init__(self, head: nn.Module, selection: SelectedChannels) -> None:
        super().__init__()
        self.head, self.selection = head, selection

    def forward(self, *features: Tensor) -> Tensor:
        return self.selection(self.head(*features))


def channels_of(outputs: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """For each of the data set's `classes` the channel of the network that has it.

    `outputs` is `backbone.outputs`, the names of the network's channels in order. Those that are no
    class are left out. Raises ConfigError for a class that none or several of them name.
    """
    for name in classes:
        at = [channel for channel, output in enumerate(outputs) if output == name]
        if classes.count(name) > 1:
            raise ConfigError(
                f"backbone.outputs names channels by class, and the data set has "
                f"{classes.count(name)} classes named {name!r}. Rename them in its class list."
            )
        if not at:
            raise ConfigError(
                f"backbone.outputs names {len(outputs)} channels, none of them {name!r}, which is "
                f"a class of the data set; {nearest(name, outputs)}"
            )
        if len(at) > 1:
            raise ConfigError(
                f"backbone.outputs names {name!r} at {' and '.join(map(str, at))}, counted from 0; "
                "a class has one channel. Give those that are to be left out other names."
            )
    return tuple(outputs.index(name) for name in classes)
