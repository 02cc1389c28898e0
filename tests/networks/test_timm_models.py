"""Models of timm as backbones: which work, what they compute, their weights. Nothing is loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mess.config import BackboneConfig
from mess.errors import ConfigError, WeightsError
from mess.networks.backbones import Backbone, build_backbone
from mess.networks.backbones.heads import HeadOptions, deeplab_head
from tests.seeds import seeded

CLASSES = 5

BLOCKS = {
    "resnet10t": ("layer1.0", "layer2.0", "layer3.0", "layer4.0"),
    "mobilenetv3_small_050": ("blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0"),
    "efficientnet_lite0": ("blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0"),
    "regnetx_002": ("stem", "s1.b1", "s2.b1", "s3.b1"),
    "convnext_atto": (
        "stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0", "stages.1.blocks.1",
    ),
}  # fmt: skip
"""A small model of every family the errors recommend, and its first blocks."""


def build(model: str, weights: str = "none", **options: Any) -> Backbone:
    options = {"model": model, **options}
    config = BackboneConfig(name="timm", weights=weights, options=options)
    with torch.random.fork_rng():
        torch.manual_seed(seeded(0))
        return build_backbone(config, CLASSES).eval()


def features(backbone: Backbone, image: Tensor) -> Tensor:
    for block in backbone.blocks:
        image = block(image)
    return image


@pytest.mark.parametrize("model", BLOCKS)
@pytest.mark.parametrize("stride", [8, 32])
def test_blocks_compute_timm_s_own_features(model: str, stride: int) -> None:
    ours = build(model, output_stride=stride)
    theirs = timm.create_model(model, features_only=True, output_stride=stride).eval()
    generator = torch.Generator().manual_seed(seeded(1))
    for parameter in ours.parameters():  # scales that start at zero would hide whole branches
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.0, 1.0, generator=generator)
    # Both list their layers in the order of execution.
    state = ours.blocks.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state, strict=True)))
    image = torch.randn(2, 3, 64, 96, generator=generator)
    with torch.inference_mode():
        found, expected = features(ours, image), theirs(image)[-1]
        assert ours(image).shape == (2, CLASSES, 64 // stride, 96 // stride)
    assert expected.std() > 1e-3
    assert torch.equal(found, expected)


@pytest.mark.parametrize("model", BLOCKS)
def test_blocks_are_residual_blocks_and_known_without_memory(model: str) -> None:
    with torch.device("meta"):
        backbone = build(model)
    assert backbone.names[:4] == BLOCKS[model]
    assert backbone.names == build(model).names


def test_the_head_can_be_deeplab_s() -> None:
    with torch.device("meta"):
        backbone = build("mobilenetv3_small_050", head="dlb", dlb_channels=16)
    expected = deeplab_head(96, CLASSES, HeadOptions(width=16))
    assert list(backbone.head.state_dict()) == list(expected.state_dict())
    assert backbone(torch.empty(1, 3, 64, 96, device="meta")).shape == (1, CLASSES, 8, 12)
    with pytest.raises(ConfigError, match="no head is named 'unet'; known: dlb, fcn, lraspp, sdlb"):
        build("mobilenetv3_small_050", head="unet")


# ---- Refusals


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("resnet81", {}, "timm has no model 'resnet81'; did you mean 'resnet18'?"),
        ("hf-hub:timm/resnet18", {}, "timm has no model 'hf-hub:timm/resnet18'"),
        ("resnet18", {"output_stride": 4}, r"resnet18 does not come at output_stride 4.* own, 32"),
        ("densenet121", {}, r"densenet121 does not come at output_stride 8.* own, 32"),
        ("vit_tiny_patch16_224", {"output_stride": 16}, r"does not run on .* 64×96"),
        ("cspresnet50", {}, r"timm's cspresnet50 is no chain"),
        (
            "vgg11",
            {"output_stride": 32},
            r"timm's vgg11 has no layers of several parts.* but features.0,",
        ),
        (
            "twins_svt_small",
            {"output_stride": 32},
            r"timm's twins_svt_small has no layers of several",
        ),
        ("hrnet_w18_small", {"output_stride": 32}, r"timm's hrnet_w18_small does not run"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(
    model: str, options: dict[str, Any], reason: str
) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=reason):
        build(model, **options)


def test_a_model_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="'timm' does not take the options {}: missing .*'model'"):
        build_backbone(BackboneConfig(name="timm"), CLASSES)


def test_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm.* pip install mess\[timm\]"):
        build("resnet18")


# ---- Weights


def saved(tmp_path: Path, state: Mapping[str, Tensor]) -> str:
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return str(path)


@pytest.mark.parametrize(
    ("model", "first"),
    [("resnet10t", "conv1.0.weight"), ("mobilenetv3_small_050", "conv_stem.weight")],
)
def test_a_classifier_s_file_fills_the_blocks(tmp_path: Path, model: str, first: str) -> None:
    """As timm's pages have them: all layers, the classifier included."""
    with torch.random.fork_rng():
        torch.manual_seed(seeded(7))
        state = timm.create_model(model).state_dict()
    loaded = build(model, saved(tmp_path, state)).blocks.state_dict()
    kept = [state[name] for name in state][: len(loaded)]
    assert next(iter(state)) == first
    assert all(torch.equal(a, b) for a, b in zip(loaded.values(), kept, strict=True))


def test_weights_whose_statistics_are_far_from_new_ones_are_taken(tmp_path: Path) -> None:
    """The check puts other weights in: with the statistics of the old ones they overflow."""
    state = timm.create_model("resnet10t").state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "running_var")):
            tensor.fill_(-1e30 if name.endswith("mean") else 1e-12)
    assert build("resnet10t", saved(tmp_path, state))


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, timm.create_model("mobilenetv3_small_050").state_dict())
    with pytest.raises(WeightsError, match=r"'blocks\.0\.0\.conv_pw\.weight' has shape \[8, 16, "):
        build("mobilenetv3_small_075", file)
    with pytest.raises(WeightsError, match=r"lack 'conv1\.0\.weight'; they are of another"):
        build("resnet10t", file)


def test_torchvision_has_no_weights_of_timm_s_models() -> None:
    with pytest.raises(WeightsError, match='"none" or a safetensors file'):
        build("resnet10t", "torchvision")
