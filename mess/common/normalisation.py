"""From pixels to what a network takes, by the settings it was trained with. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

Channels = Literal["rgb", "bgr"]


def as_means(values: Sequence[float]) -> tuple[float, ...]:
    """Means as they are; raises ValueError for another number of them than there are channels."""
    return _three(values, "means")


def as_deviations(values: Sequence[float]) -> tuple[float, ...]:
    """Deviations as they are; raises ValueError for another number of them, and for 0 or less."""
    if any(value <= 0 for value in values):
        raise ValueError(
            f"channels are divided by them, so each is above 0, got {min(values):g}; 1.0 leaves a "
            "channel as it is"
        )
    return _three(values, "deviations")


def as_channels(value: str) -> Channels:
    """The order of channels; raises ValueError for one that is not known."""
    if value not in get_args(Channels):
        raise ValueError(f"is one of {', '.join(get_args(Channels))}, got {value!r}")
    return cast(Channels, value)


def as_range(value: float) -> float:
    """The largest value of a pixel; raises ValueError where it is not above 0."""
    if value <= 0:
        raise ValueError(
            f"pixels are scaled to 0..range, so it is above 0, got {value:g}; 1.0 and 255.0 are "
            "usual"
        )
    return value


def _three(values: Sequence[float], what: str) -> tuple[float, ...]:
    if len(values) != 3:
        raise ValueError(
            f"needs three {what}, one a channel in the order of `channels`, got {len(values)}; "
            "repeat the number where all channels have the same"
        )
    return tuple(values)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """(pixels scaled to 0..range - mean) / std, channel by channel.

    mean, std: three numbers each, in the order of the network's channels, which `channels` names.
    By default ImageNet's of RGB in [0, 1], which every torchvision backbone expects.
    Raises ValueError for what `as_means` and the functions after it refuse.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: Channels = "rgb"
    range: float = 1.0

    def __post_init__(self) -> None:
        as_means(self.mean)
        as_deviations(self.std)
        as_channels(self.channels)
        as_range(self.range)

    def apply(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB to the network's input, shape (3, H, W), float32."""
        # One division, so that 0..255 stays what it is and 0..1 is rounded once.
        scaled = image_HW3[..., self._order].astype(np.float32) / np.float32(255 / self.range)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, RGB in 0..255; normalised it is about 0."""
        levels = (255 / self.range * np.array(self.mean)).round().clip(0, 255)
        red, green, blue = map(int, levels[self._order])
        return red, green, blue

    @property
    def _order(self) -> slice:
        """From RGB to the network's order and back: either is its own inverse."""
        return slice(None, None, -1 if self.channels == "bgr" else 1)


IMAGENET = Normalisation()
"""What networks are trained with unless told otherwise."""
