"""UperNet of Hugging Face's transformers on ConvNeXt, Swin or ResNet: each layer is a block."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from mess.errors import ConfigError, nearest
from mess.networks.backbones.base import Backbone, Block
from mess.networks.backbones.checks import checked_backbone, output_of
from mess.networks.backbones.libraries import require_options
from mess.networks.backbones.transformers_models import built_from, configured
from mess.networks.backbones.wiring import to_features, to_tokens

Blocks = dict[str, nn.Module]

_STAGES = ("stage1", "stage2", "stage3", "stage4")

_SHARED = ("model_type", "out_features", "out_indices")
"""Keys that configurations of all backbones have."""


def upernet(
    num_classes: int, *, backbone_config: dict[str, Any], weights: str = "none", **options: Any
) -> Backbone:
    """`UperNetForSemanticSegmentation` from a configuration; logits at the finest features' size.

    `backbone_config` is transformers' own: `model_type` ("convnext", "convnextv2", "swin" or
    "resnet") and options of its class, such as `depths` and `hidden_sizes`, or `embed_dim` of Swin.
    `options` are those of `UperNetConfig`. Blocks are layers; what comes before the first of a
    stage joins it. The auxiliary head is dropped, as is the upsampling of the logits. Nothing is
    downloaded, and there are no `weights` to load. Raises ConfigError where transformers is not
    installed or has no such option, or the backbone is of another type.
    """
    kind = backbone_config.get("model_type")
    if kind not in _CUTS:
        raise ConfigError(
            f"upernet has no backbone_config.model_type {kind!r}; {nearest(str(kind), _CUTS)}"
        )
    inner = {"out_features": list(_STAGES), **backbone_config}
    config = configured(
        "upernet", "UperNetConfig", num_classes, weights, {"backbone_config": inner, **options}
    )
    own = config.backbone_config
    known = [*(n for n in inspect.get_annotations(type(own)) if n[0] != "_"), *_SHARED]
    require_options(backbone_config, known, f"backbone_config of {kind}")
    # The library joins them to a list, its own defaults are tuples.
    if hasattr(own, "hidden_sizes"):
        own.hidden_sizes = list(own.hidden_sizes)
    title = f"UperNet on {kind}"

    def cut(model: Any) -> Backbone:
        return _cut(model, _CUTS[kind](model.backbone))

    def answer(model: Any, image: Tensor) -> Tensor:
        return output_of(model, model.decode_head, image, title)

    model = built_from("UperNetForSemanticSegmentation", config, "upernet")
    return checked_backbone(model, cut, answer, title)


def _cut(model: Any, stages: Iterable[Blocks]) -> Backbone:
    backbone = model.backbone
    blocks: dict[str, nn.Module | Block] = {}
    ends: dict[str, str] = {}
    for name, stage in zip(backbone.stage_names[1:], stages, strict=True):
        if set(backbone.out_features) <= set(ends):
            break  # nobody reads what is deeper
        blocks |= stage
        ends[name] = next(reversed(stage))
    if unknown := [name for name in backbone.out_features if name not in ends]:
        raise ConfigError(
            f"upernet: backbone_config.out_features names {unknown[0]!r}, which is no stage; "
            f"{nearest(unknown[0], ends)}"
        )
    norms = dict(getattr(backbone, "hidden_states_norms", {}))
    own = [norms.get(name, nn.Identity()) for name in backbone.out_features]
    head = _Head(own, model.decode_head)
    return Backbone(blocks, Block(head, tuple(ends[name] for name in backbone.out_features)))


class _Head(nn.Module):
    """Each feature's own norm, and UperNet's decoder."""

    def __init__(self, norms: list[nn.Module], decoder: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms)
        self.decoder = decoder

    def forward(self, *features: Tensor) -> Tensor:
        pairs = zip(self.norms, features, strict=True)
        return self.decoder([_normed(norm, each) for norm, each in pairs])


def _normed(norm: nn.Module, features: Tensor) -> Tensor:
    if type(norm) is not nn.LayerNorm:
        return norm(features)  # ConvNeXt's takes features as they are
    tokens = norm(to_tokens(features))
    return to_features(tokens, features.shape[2:]).contiguous()


# ---- The backbones' stages as blocks


def _convnext(backbone: Any) -> Iterator[Blocks]:
    before: list[nn.Module] = [backbone.embeddings]
    for number, stage in enumerate(backbone.encoder.stages):
        before += stage.downsampling_layer
        yield _chained(f"stages.{number}", before, stage.layers)
        before = []


def _resnet(backbone: Any) -> Iterator[Blocks]:
    before: list[nn.Module] = [backbone.embedder]
    for number, stage in enumerate(backbone.encoder.stages):
        yield _chained(f"stages.{number}", before, stage.layers)
        before = []


def _chained(stage: str, before: list[nn.Module], layers: Iterable[nn.Module]) -> Blocks:
    """Layers that take and return features; what comes before them joins the first."""
    first, *others = layers
    if before:
        first = nn.Sequential(*before, first)
    return {f"{stage}.layers.{i}": layer for i, layer in enumerate([first, *others])}


def _swin(backbone: Any) -> Iterator[Blocks]:
    before: nn.Module | None = _SwinStem(backbone.swin.embeddings)
    for number, stage in enumerate(backbone.swin.encoder.layers):
        blocks: Blocks = {}
        for index, layer in enumerate(stage.blocks):
            blocks[f"stages.{number}.layers.{index}"] = _SwinLayer(
                layer, before if index == 0 else None
            )
        yield blocks
        before = None if stage.downsample is None else _SwinMerging(stage.downsample)


class _SwinStem(nn.Module):
    """The image to features (B, C, h, w)."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, image: Tensor) -> Tensor:
        tokens, size = self.embeddings(image)
        return to_features(tokens, size)


class _SwinMerging(nn.Module):
    """Features (B, C, h, w) to those of half the size, rounded up."""

    def __init__(self, merging: nn.Module) -> None:
        super().__init__()
        self.merging = merging

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[2:]
        tokens = self.merging(to_tokens(features), (height, width))
        return to_features(tokens, ((height + 1) // 2, (width + 1) // 2))


class _SwinLayer(nn.Module):
    """A layer on features (B, C, h, w), with what comes before its stage."""

    def __init__(self, layer: nn.Module, before: nn.Module | None) -> None:
        super().__init__()
        self.before, self.layer = before, layer

    def forward(self, features: Tensor) -> Tensor:
        if self.before is not None:
            features = self.before(features)
        size = tuple(features.shape[2:])
        # As the library's backbone does: windows keep their size on small features.
        tokens, _ = self.layer(to_tokens(features), size, always_partition=True)
        return to_features(tokens, size)


_CUTS: dict[str, Callable[[Any], Iterable[Blocks]]] = {
    "convnext": _convnext,
    "convnextv2": _convnext,
    "resnet": _resnet,
    "swin": _swin,
}
"""By the library's `model_type`: its backbone to the blocks of each stage."""
