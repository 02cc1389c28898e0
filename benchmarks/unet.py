"""A U-Net of segmentation_models.pytorch, cut by its graph: `benchmarks.unet:unet`."""

from __future__ import annotations

import segmentation_models_pytorch as smp

from mess.networks.backbones import Backbone
from mess.networks.backbones.base import load_pretrained
from mess.networks.backbones.traced import from_module

ENCODER = [f"encoder.features.{number}" for number in (1, 2, 3, 4, 6, 10, 13, 16, 18)]
DECODER = [f"decoder.blocks.{number}" for number in range(5)]


def unet(num_classes: int, *, weights: str = "none") -> Backbone:
    """U-Net on MobileNetV2 with a light decoder; `weights` are torchvision's of the classifier."""
    model = smp.Unet(
        "mobilenet_v2",
        encoder_weights=None,
        decoder_channels=(128, 64, 48, 32, 16),
        classes=num_classes,
    )
    load_pretrained(model.encoder, weights, None, ("classifier.",))
    return from_module(model, [*ENCODER, *DECODER])
