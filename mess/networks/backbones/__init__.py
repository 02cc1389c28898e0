"""Backbones as blocks in order, heads, and adapters that cut other libraries' models into blocks.

May import: errors, config, common.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from mess.common.plugins import imported
from mess.config import BackboneConfig
from mess.errors import ConfigError
from mess.networks.backbones.base import Backbone
from mess.networks.backbones.libraries import built
from mess.networks.backbones.mobilenet import (
    deeplabv3_mobilenet_v3_large,
    lraspp_mobilenet_v3_large,
    segmentation_mobilenet_v2,
)
from mess.networks.backbones.resnet import (
    deeplabv3_resnet50,
    deeplabv3_resnet101,
    drn50,
    fcn_resnet101,
)
from mess.networks.backbones.segformer import segformer
from mess.networks.backbones.small import small_resnet, small_unet
from mess.networks.backbones.smp_models import smp_model
from mess.networks.backbones.timm_models import timm_model
from mess.networks.backbones.upernet import upernet

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "small_resnet": small_resnet,
    "small_unet": small_unet,
    "mobilenet_v2": segmentation_mobilenet_v2,
    "drn50": drn50,
    "fcn_resnet101": fcn_resnet101,
    "deeplabv3_resnet50": deeplabv3_resnet50,
    "deeplabv3_resnet101": deeplabv3_resnet101,
    "deeplabv3_mobilenet_v3_large": deeplabv3_mobilenet_v3_large,
    "lraspp_mobilenet_v3_large": lraspp_mobilenet_v3_large,
    "timm": timm_model,
    "smp": smp_model,
    "segformer": segformer,
    "upernet": upernet,
}


def build_backbone(config: BackboneConfig, num_classes: int) -> Backbone:
    """The configured backbone for `num_classes` classes, or with a channel for each of `outputs`.

    Raises ConfigError for an unknown name, factory or option, and for values of options that the
    factory fails with; WeightsError for weights that do not fit.
    """
    factory = _factory(config.name)
    channels = config.channels(num_classes)
    try:
        inspect.signature(factory).bind(channels, weights=config.weights, **config.options)
    except TypeError as error:
        raise ConfigError(
            f"backbone {config.name!r} does not take the options {config.options}: {error}."
        ) from error
    backbone = built(
        lambda: factory(channels, weights=config.weights, **config.options),
        f"backbone {config.name!r} with the options {config.options}",
    )
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"backbone {config.name!r} returned {type(backbone).__name__}; a factory returns "
            "mess.networks.backbones.base.Backbone."
        )
    return backbone


def _factory(name: str) -> Callable[..., Backbone]:
    if name in BACKBONES:
        return BACKBONES[name]
    return imported(name, "backbone", "package.module:factory", BACKBONES)
