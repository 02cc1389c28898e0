"""Multiply-adds of transformers by hand: linear layers, convolutions, attention's two products."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mess.config import BackboneConfig
from mess.networks import macs
from mess.networks.backbones import Backbone, build_backbone

CLASSES = 5
HEIGHT, WIDTH = 16, 24
"""Of the features that a layer of the first stage reads."""

CHANNELS, REDUCTION, RATIO = 32, 8, 4
"""SegFormer-B0's first stage: keys and values come from a map that is shorter by the reduction."""


def build(name: str, **options: Any) -> Backbone:
    with torch.device("meta"):
        return build_backbone(BackboneConfig(name=name, options=options), CLASSES)


def layer_macs() -> int:
    tokens = HEIGHT * WIDTH
    fewer = tokens // REDUCTION**2
    reduction = fewer * CHANNELS * CHANNELS * REDUCTION**2
    queries = outputs = tokens * CHANNELS**2
    keys = values = fewer * CHANNELS**2
    products = 2 * tokens * fewer * CHANNELS  # of all heads together
    inner = RATIO * CHANNELS
    feed_forward = 2 * tokens * CHANNELS * inner + tokens * inner * 9
    return reduction + queries + keys + values + products + outputs + feed_forward


@pytest.mark.parametrize(
    ("name", "options", "block"),
    [
        # torch's fused attention, and the same in plain products.
        ("segformer", {}, "stages.0.blocks.1"),
        ("smp", {"model": "Segformer", "encoder": "mit_b0"}, "encoder.norm1"),
    ],
)
def test_a_layer_of_segformer_counts_what_its_formula_says(
    name: str, options: dict[str, Any], block: str
) -> None:
    backbone = build(name, **options)
    module = backbone.blocks[backbone.names.index(block)]
    shape = (1, CHANNELS, HEIGHT, WIDTH)
    assert macs.macs_and_shapes(module, shape) == (layer_macs(), (shape,))
