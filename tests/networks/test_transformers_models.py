"""SegFormer and UperNet of transformers as backbones: their blocks, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from mess.config import BackboneConfig
from mess.errors import ConfigError, WeightsError
from mess.networks.backbones import Backbone, build_backbone

CLASSES = 5
SIZES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 8,
    "num_heads": [1, 2, 2, 2],
    "depths": [2, 2, 1, 1],
}


def build(name: str, weights: str = "none", **options: Any) -> Backbone:
    with torch.device("meta"):
        config = BackboneConfig(name=name, weights=weights, options=options)
        return build_backbone(config, CLASSES).eval()


def test_every_transformer_layer_is_a_block_with_features() -> None:
    backbone = build("segformer", **SIZES, num_attention_heads=[1, 2, 3, 4])
    names = tuple(f"stages.{s}.blocks.{i}" for s, i in ((0, 0), (1, 0), (1, 1), (2, 0), (3, 0)))
    assert backbone.names == names
    # The last of each stage, which is normed.
    assert backbone.head_reads == (names[0], *names[2:])
    shapes, features = [], torch.empty(2, 3, 64, 96, device="meta")
    for block in backbone.blocks:
        features = block(features)
        shapes.append(tuple(features.shape[1:]))
    assert shapes == [(8, 16, 24), (16, 8, 12), (16, 8, 12), (24, 4, 6), (32, 2, 3)]


@pytest.mark.parametrize(
    "backbone_config",
    [
        {"model_type": "convnext", **SIZES},
        {"model_type": "convnextv2", **SIZES},
        {"model_type": "resnet", "embedding_size": 8, **SIZES},
    ],
    ids=lambda options: options["model_type"],
)
def test_upernet_reads_the_last_block_of_each_stage(backbone_config: dict[str, Any]) -> None:
    backbone = build("upernet", hidden_size=16, backbone_config=backbone_config)
    assert len(backbone.names) == 5
    assert backbone.head_reads == tuple(
        f"stages.{s}.layers.{i}" for s, i in ((0, 0), (1, 1), (2, 0), (3, 0))
    )


def test_stages_that_nobody_reads_are_left_out() -> None:
    inner = {**SWIN, "out_features": ["stage1", "stage3"]}
    backbone = build("upernet", hidden_size=16, use_auxiliary_head=False, backbone_config=inner)
    assert backbone.head_reads == ("stages.0.layers.1", "stages.2.layers.0")
    assert backbone.names[-1] == "stages.2.layers.0"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("segformer", {"hidden_size": 8}, "SegformerConfig has no option 'hidden_size'; .*sizes'"),
        ("segformer", {"num_labels": 8}, "SegformerConfig has no option 'num_labels'"),
        ("segformer", {"depths": "two"}, "SegformerConfig cannot be built: .*depths"),
        ("segformer", {"depths": [2]}, "SegformerForSemanticSegmentation cannot be built"),
        ("upernet", {}, "does not take the options {}: missing .*'backbone_config'"),
        ("upernet", {"backbone_config": {}}, "model_type None; known: convnext"),
        ("upernet", {"backbone_config": {"model_type": "dinat"}}, "model_type 'dinat'; known: con"),
        (
            "upernet",
            {"backbone_config": {**SWIN, "embed_dims": 8}},
            "backbone_config of swin has no option 'embed_dims'; .*did you mean 'embed_dim'",
        ),
        (
            "upernet",
            {
                "backbone_config": {**SWIN, "out_features": ["stem", "stage4"]},
                "use_auxiliary_head": False,
            },
            "out_features names 'stem', which is no stage; known: stage1",
        ),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(name, **options)


def test_there_are_no_weights_of_the_backbone_alone() -> None:
    with pytest.raises(WeightsError, match='segformer has no weights .* got "?.torchvision'):
        build("segformer", "torchvision")


@pytest.mark.parametrize("name", ["segformer", "upernet"])
def test_the_extra_to_install_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    options: dict[str, Any] = {"backbone_config": SWIN} if name == "upernet" else {}
    with pytest.raises(ConfigError, match=rf"'{name}' needs transformers.* mess\[transformers\]"):
        build(name, **options)
