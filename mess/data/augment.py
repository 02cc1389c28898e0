"""The augmentation of the papers: random scale, crop and flip; colour jitter where asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from mess.common.metrics import VOID
from mess.config import DataConfig


class ScaledCrop(v2.Transform):
    """Scale by a random factor, then crop at a random place; equal, but cropped before scaling.

    Factors are of `size`, height and width, that the whole image has in the run: a larger original
    is cut and scaled down, so that enlarged crops are as sharp as it is. Where the scaled image is
    smaller than the crop it lies at a random place in it, on the colour `fill` in the image (RGB in
    0..255) and on void in the mask. Images are bilinear with antialiasing, masks nearest: by pixel
    centres ("nearest-exact"), for plain "nearest" shifts a mask by up to half a pixel against its
    image.
    """

    def __init__(
        self,
        scale: tuple[float, float],
        crop_size: tuple[int, int],
        fill: tuple[int, int, int],
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.scale = scale
        self.size = size
        self.crop_size = crop_size
        self.fill = [float(level) for level in fill]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The box to cut from the source, the size to give it and the padding around it."""
        low, high = self.scale
        scale = low + (high - low) * torch.rand(()).item()
        box: list[tuple[int, int, int, int, int]] = []
        sides = zip(flat_inputs[0].shape[-2:], self.size, self.crop_size, strict=True)
        for source, side, crop in sides:
            # Only what the crop will show is cut out and scaled, at most a whole crop.
            target = min(max(round(side * scale), 1), crop)
            cut = min(max(round(target / (scale * side / source)), 1), source)
            offset = _randint(source - cut)
            before = _randint(crop - target)
            box.append((offset, cut, target, before, crop - target - before))
        (top, height, rows, above, below), (left, width, columns, before, after) = box
        return {
            "crop": (top, left, height, width),
            "size": [rows, columns],
            "padding": [before, above, after, below],
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            mask = functional.crop_mask(inpt.as_subclass(Tensor), *params["crop"])
            # As an image: older torchvision takes plain "nearest" for masks, whatever is asked for.
            mask = functional.resize_image(
                mask[None], params["size"], InterpolationMode.NEAREST_EXACT, antialias=False
            )
            mask = functional.pad_image(mask, params["padding"], fill=VOID)
            return tv_tensors.Mask(mask[0])
        image = functional.resized_crop(inpt, *params["crop"], size=params["size"], antialias=True)
        return functional.pad(image, params["padding"], fill=self.fill)


def augmentation(
    config: DataConfig, crop_size: tuple[int, int], size: tuple[int, int]
) -> v2.Compose:
    """Scale, crop, flip and jitter of an (Image, Mask) pair, at the strengths of `config`.

    `size` is what the whole of the pair has in the run.
    """
    crop = ScaledCrop(config.scale, crop_size, config.normalisation.fill, size)
    steps: list[Any] = [crop, v2.RandomHorizontalFlip(config.flip)]
    if config.jitter:
        strength = config.jitter
        # Hue a tenth: it makes another colour, where the others make another light.
        steps.append(v2.ColorJitter(strength, strength, strength, strength / 10))
    return v2.Compose(steps)


def _randint(high: int) -> int:
    """A random integer in 0..high."""
    # From torch's generator, the one that TrainingSet seeds for each item.
    return int(torch.randint(high + 1, ()).item())
