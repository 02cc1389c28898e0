"""What every backbone promises, and weights that do not fit."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import WeightsEnum, mobilenet_v2
from torchvision.models.segmentation import (
    deeplabv3_resnet50,
    deeplabv3_resnet101,
    fcn_resnet50,
    fcn_resnet101,
)

from mess.config import BackboneConfig
from mess.errors import ConfigError, WeightsError
from mess.networks.backbones import BACKBONES, Backbone, build_backbone
from mess.testing import BackboneContract
from mess.testing.backbones import filled
from tests.seeds import seeded

CLASSES = 5

CUSTOM = """
    from torch import nn
    from mess.networks.backbones import Backbone

    def tiny(num_classes, *, weights="none", width=4):
        blocks = {
            "stem": nn.Conv2d(3, width, 3, stride=8, padding=1),
            "body": nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        }
        return Backbone(blocks, nn.Conv2d(width, num_classes, 1))

    def wrong(num_classes, *, weights="none"):
        return nn.Conv2d(3, num_classes, 1)
"""


@pytest.fixture(autouse=True)
def _own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_backbones.py").write_text(textwrap.dedent(CUSTOM))
    monkeypatch.syspath_prepend(tmp_path)


def build(name: str, weights: str = "none", **options: Any) -> Backbone:
    config = BackboneConfig(name=name, weights=str(weights), options=options)
    return build_backbone(config, CLASSES)


SMALL: dict[str, dict[str, Any]] = {
    "small_unet": {"width": 4},
    "mobilenet_v2": {"width": 0.25},
    "timm": {"model": "mobilenetv3_small_050"},
    "smp": {"model": "Unet", "encoder": "resnet18", "decoder_channels": [16, 16, 8, 8, 8]},
    "segformer": {
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 2, 3, 4],
        "depths": [1, 2, 1, 1],
        "decoder_hidden_size": 16,
    },
    "upernet": {
        "hidden_size": 16,
        "backbone_config": {
            "model_type": "convnext",
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 2, 1, 1],
        },
    },
}
"""Options of backbones that need some, or are large without."""

STRIDE = {
    "small_unet": 2,
    "deeplabv3_mobilenet_v3_large": 16,
    "smp": 1,
    "segformer": 4,
    "upernet": 4,
}
"""Output strides other than 8."""


def small(name: str) -> Backbone:
    return build(name, **SMALL.get(name, {}))


# ---- The contract suite: every backbone, one of one's own included

NAMES = [*BACKBONES, "own_backbones:tiny"]


class TestEveryBackbone(BackboneContract):
    @pytest.fixture(autouse=True, params=NAMES)
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param
        self.stride = STRIDE.get(self.name, 8)

    def build(self, num_classes: int) -> Backbone:
        assert num_classes == CLASSES
        return small(self.name)


@pytest.mark.parametrize("name", ["mobilenet_v2", "drn50", "deeplabv3_resnet101"])
def test_output_stride_can_be_chosen_and_others_are_refused(name: str) -> None:
    with torch.device("meta"):
        for stride in (8, 16, 32):
            backbone = build(name, output_stride=stride).eval()
            assert backbone(torch.empty(1, 3, 64, 96)).shape[2:] == (64 // stride, 96 // stride)
        with pytest.raises(ConfigError, match=r"8, 16 or 32 .* got 4"):
            build(name, output_stride=4)


def test_a_backbone_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one block"):
        Backbone({}, nn.Identity())


# ---- Against torchvision


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("deeplabv3_resnet50", deeplabv3_resnet50),
        ("deeplabv3_resnet101", deeplabv3_resnet101),
        ("drn50", fcn_resnet50),
        ("fcn_resnet101", fcn_resnet101),
    ],
)
def test_blocks_run_in_order_are_torchvisions_network_bit_for_bit(name: str, reference) -> None:
    with torch.device("meta"):
        ours, theirs = (
            build(name),
            reference(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False),
        )
    names = ours.original_names
    state = {names[name]: tensor for name, tensor in filled(ours).state_dict().items()}
    theirs.load_state_dict(state, assign=True)
    theirs.eval()
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(seeded(1)))
    with torch.inference_mode():
        features = image
        for block in ours.blocks:
            features = block(features)
        native = ours.head(features)
        found = F.interpolate(native, size=(32, 48), mode="bilinear", align_corners=False)
        expected = theirs(image)["out"]
    assert native.shape[2:] == (4, 6)
    assert expected.std() > 1e-3
    assert torch.equal(found, expected)


def test_mobilenet_at_its_own_stride_is_torchvisions() -> None:
    ours = filled(build("mobilenet_v2", width=0.25, output_stride=32))
    theirs = mobilenet_v2(width_mult=0.25).eval()
    own = cast(Backbone, ours)
    body = list(own.blocks.state_dict().values())
    names = [n for n in theirs.state_dict() if not n.startswith(("classifier.", "features.18."))]
    theirs.load_state_dict(dict(zip(names, body, strict=True)), strict=False)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seeded(1)))
    with torch.inference_mode():
        found, expected = image, image
        for block in own.blocks:
            found = block(found)
        for layer in theirs.features[:18]:
            expected = layer(expected)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_mobilenet_computes_the_strided_one_in_between(stride: int) -> None:
    """With dilation for stride, every n-th feature is the strided network's, borders included."""
    dense = cast(Backbone, filled(build("mobilenet_v2", width=0.25, output_stride=stride)))
    strided = cast(Backbone, build("mobilenet_v2", width=0.25, output_stride=32).eval())
    strided.load_state_dict(dense.state_dict())
    image = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(seeded(1)))
    with torch.inference_mode():
        every, few = image, image
        for dense_block, strided_block in zip(dense.blocks, strided.blocks, strict=True):
            every, few = dense_block(every), strided_block(few)
    step = 32 // stride
    assert few.shape[2:] == (3, 2)
    torch.testing.assert_close(every[:, :, ::step, ::step], few, rtol=1e-4, atol=1e-5)


# ---- Names of tensors in the model they were taken from


@pytest.mark.parametrize(
    ("name", "first", "head"),
    [
        ("drn50", "backbone.conv1.weight", "classifier.0.weight"),
        ("deeplabv3_mobilenet_v3_large", "backbone.0.0.weight", "classifier.0.convs.0.0.weight"),
        ("mobilenet_v2", "features.0.0.weight", None),
        ("timm", "conv_stem.weight", None),
        ("small_resnet", None, None),
        ("own_backbones:tiny", None, None),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_keep_the_names_of_the_library_s_model(
    name: str, first: str | None, head: str | None, device: str
) -> None:
    """Where mess adds the head, or made all of the network, that has no other names."""
    with torch.device(device):
        backbone = small(name)
    ours = list(backbone.state_dict())
    assert backbone.original_names.get(ours[0]) == first
    of_head = [name for name in ours if name.startswith("head.")]
    assert backbone.original_names.get(of_head[0]) == head
    for prefix, named in (("blocks.", first), ("head.", head)):
        names = {name for name in ours if name.startswith(prefix)}
        assert len(names & set(backbone.original_names)) == (len(names) if named else 0)


# ---- Weights


def pretrained() -> dict[str, Tensor]:
    """Classification weights as a download would give them, a quarter wide."""
    with torch.random.fork_rng():
        torch.manual_seed(seeded(7))
        network = mobilenet_v2(width_mult=0.25)
    return network.state_dict()


def saved(tmp_path: Path, state: Mapping[str, Tensor]) -> str:
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return str(path)


def narrow(weights: str) -> Backbone:
    return build("mobilenet_v2", weights, width=0.25)


def body_of(state: Mapping[str, Tensor]) -> list[Tensor]:
    unused = ("classifier.", "features.18.")
    return [tensor for name, tensor in state.items() if not name.startswith(unused)]


def test_a_weights_file_fills_the_blocks(tmp_path: Path) -> None:
    state = pretrained()
    backbone = narrow(saved(tmp_path, state))
    loaded = list(backbone.blocks.state_dict().values())
    assert len(loaded) == len(body_of(state))
    assert all(torch.equal(a, b) for a, b in zip(loaded, body_of(state), strict=True))


def test_parts_that_segmentation_drops_may_be_absent(tmp_path: Path) -> None:
    kept = {
        name: tensor
        for name, tensor in pretrained().items()
        if not name.startswith(("classifier.", "features.18.", "features.0.1.num_batches"))
    }
    backbone = narrow(saved(tmp_path, kept))
    assert torch.equal(backbone.blocks.state_dict()["0.0.0.weight"], kept["features.0.0.weight"])


def test_half_precision_weights_load_as_single(tmp_path: Path) -> None:
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in pretrained().items()
    }
    loaded = list(narrow(saved(tmp_path, state)).blocks.state_dict().values())
    for found, expected in zip(loaded, body_of(state), strict=True):
        assert found.dtype in (torch.float32, torch.int64)
        assert torch.equal(found, expected.to(found.dtype))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"/nowhere\.safetensors does not exist"):
        narrow("/nowhere.safetensors")


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(WeightsError, match=r"weights\.pth is not safetensors"):
        narrow(str(path))


def test_a_wrong_shape_names_the_key_and_both_shapes(tmp_path: Path) -> None:
    state = pretrained() | {"features.3.conv.0.0.weight": torch.zeros(2, 3, 1, 1)}
    with pytest.raises(WeightsError) as refusal:
        narrow(saved(tmp_path, state))
    assert "'features.3.conv.0.0.weight'" in str(refusal.value)
    assert "[2, 3, 1, 1]" in str(refusal.value)
    expected = list(pretrained()["features.3.conv.0.0.weight"].shape)
    assert str(expected) in str(refusal.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    state = pretrained()
    del state["features.5.conv.1.0.weight"]
    with pytest.raises(WeightsError, match=r"lack 'features\.5\.conv\.1\.0\.weight'"):
        narrow(saved(tmp_path, state))


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    state = pretrained() | {"features.99.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"hold 'features\.99\.weight'"):
        narrow(saved(tmp_path, state))


def test_torchvisions_download_is_checked_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    state = pretrained()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    loaded = list(narrow("torchvision").blocks.state_dict().values())
    assert torch.equal(loaded[0], state["features.0.0.weight"])
    with pytest.raises(WeightsError, match=r"torchvision: 'features\.0\.0\.weight' has shape \[8,"):
        build("mobilenet_v2", "torchvision")


def test_a_backbone_without_pretrained_weights_says_so() -> None:
    with pytest.raises(WeightsError, match="small_resnet has no pretrained weights, got 'torchv"):
        build("small_resnet", "torchvision")


# ---- Names and options


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mobilenet_v2'") as refusal:
        build("mobilenetv2")
    assert "'mobilenetv2'" in str(refusal.value)


@pytest.mark.parametrize("name", ["own_backbones:absent", "no_such_package:factory"])
def test_a_factory_that_cannot_be_imported_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name!r} cannot be imported"):
        build(name)


def test_a_factory_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="returned Conv2d"):
        build("own_backbones:wrong")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small_resnet", {"width": 0.5}),
        ("small_resnet", {"width": -1}),
        ("own_backbones:tiny", {"width": "wide"}),
        ("timm", {"model": "resnet10t", "head": ["fcn"]}),
        ("upernet", {"backbone_config": "swin"}),
    ],
)
def test_values_of_options_that_a_factory_fails_with_are_refused(
    name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(name, **options)
    assert f"{name!r} with the options {options} cannot be built: " in str(refusal.value)


def test_options_reach_the_factory_and_unknown_ones_are_refused() -> None:
    assert build("own_backbones:tiny", width=6).head.in_channels == 6
    with pytest.raises(ConfigError, match=r"does not take the options {'widht': 0.5}"):
        build("mobilenet_v2", widht=0.5)
