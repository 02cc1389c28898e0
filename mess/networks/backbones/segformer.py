"""SegFormer of Hugging Face's transformers: a block for each transformer layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mess.networks.backbones.base import Backbone, Block
from mess.networks.backbones.checks import checked_backbone
from mess.networks.backbones.transformers_models import built_from, configured
from mess.networks.backbones.wiring import Listed, to_features, to_tokens


def segformer(num_classes: int, *, weights: str = "none", **options: Any) -> Backbone:
    """`SegformerForSemanticSegmentation` from a configuration; logits at output stride 4.

    `options` are those of `SegformerConfig`, such as `hidden_sizes` and `depths`; without any it is
    SegFormer-B0. The embedding of a stage joins its first layer, the norm its last one. Nothing is
    downloaded, and there are no `weights` to load. Raises ConfigError where transformers is not
    installed or has no such option.
    """
    config = configured("segformer", "SegformerConfig", num_classes, weights, options)
    model = built_from("SegformerForSemanticSegmentation", config, "segformer")
    return checked_backbone(model, _cut, lambda whole, image: whole(image).logits, "SegFormer")


def _cut(model: Any) -> Backbone:
    blocks: dict[str, nn.Module] = {}
    ends = []
    for number, stage in enumerate(model.segformer.stages):
        last = len(stage.blocks) - 1
        for index, layer in enumerate(stage.blocks):
            blocks[f"stages.{number}.blocks.{index}"] = _Layer(
                layer,
                stage.patch_embeddings if index == 0 else None,
                stage.layer_norm if index == last else None,
            )
        ends.append(f"stages.{number}.blocks.{last}")
    return Backbone(blocks, Block(Listed(model.decode_head), tuple(ends)))


class _Layer(nn.Module):
    """A transformer layer on features (B, C, h, w), with its stage's embedding or norm."""

    def __init__(
        self, layer: nn.Module, embedding: nn.Module | None, norm: nn.Module | None
    ) -> None:
        super().__init__()
        self.embedding, self.layer, self.norm = embedding, layer, norm

    def forward(self, features: Tensor) -> Tensor:
        if self.embedding is None:
            tokens, size = to_tokens(features), features.shape[2:]
        else:
            tokens, *size = self.embedding(features)
        tokens = self.layer(tokens, *size)
        if self.norm is None:
            return to_features(tokens, size)
        # As the library hands it to the next stage, whose convolution would round otherwise.
        return to_features(self.norm(tokens), size).contiguous()
