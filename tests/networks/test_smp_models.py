"""Networks of segmentation_models.pytorch as backbones: how they are cut, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mess.config import BackboneConfig
from mess.errors import ConfigError, WeightsError
from mess.networks.backbones import Backbone, build_backbone
from mess.networks.backbones.recording import recorded
from tests.seeds import seeded

CLASSES = 5


def build(model: str, encoder: str, weights: str = "none", **options: Any) -> Backbone:
    config = BackboneConfig(
        name="smp", weights=weights, options={"model": model, "encoder": encoder, **options}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seeded(0))
        return build_backbone(config, CLASSES).eval()


def on_meta(model: str, encoder: str, **options: Any) -> Backbone:
    with torch.device("meta"):
        return build(model, encoder, **options)


# ---- Blocks


def test_a_decoder_s_blocks_read_the_one_before_and_their_skip() -> None:
    backbone = on_meta("Unet", "resnet18")
    assert backbone.names[:3] == ("encoder.relu", "encoder.layer1.0", "encoder.layer1.1")
    reads = dict(zip(backbone.names, backbone.reads, strict=True))
    assert [reads[f"decoder.blocks.{index}"] for index in range(5)] == [
        ("encoder.layer4.1", "encoder.layer3.1"),
        ("decoder.blocks.0", "encoder.layer2.1"),
        ("decoder.blocks.1", "encoder.layer1.1"),
        ("decoder.blocks.2", "encoder.relu"),
        ("decoder.blocks.3",),
    ]
    assert backbone.head_reads == ("decoder.blocks.4",)


def test_a_center_is_a_block_where_it_does_something() -> None:
    assert "decoder.center" in on_meta("MAnet", "resnet18").names
    assert "decoder.center" not in on_meta("Unet", "resnet18").names


@pytest.mark.parametrize(
    ("model", "encoder", "reads"),
    [
        ("FPN", "resnet18", ("layer1.1", "layer2.1", "layer3.1", "layer4.1")),
        ("DeepLabV3Plus", "mobilenet_v2", ("features.3", "features.18")),
        ("DeepLabV3", "resnet18", ("layer4.1",)),
        ("PSPNet", "resnet18", ("layer2.1",)),
        ("Segformer", "resnet18", ("relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1")),
        ("Segformer", "mit_b0", ("norm1", "norm2", "norm3", "norm4")),
        ("UPerNet", "tu-resnet10t", tuple(f"model.layer{stage}.0" for stage in (1, 2, 3, 4))),
    ],
)
def test_a_decoder_that_is_the_head_reads_what_it_computes_with(
    model: str, encoder: str, reads: tuple[str, ...]
) -> None:
    backbone = on_meta(model, encoder)
    assert backbone.head_reads == tuple(f"encoder.{name}" for name in reads)
    # What is deeper would be computed for nobody.
    assert backbone.names[-1] == backbone.head_reads[-1]


def test_a_stage_whose_layers_are_single_is_a_block() -> None:
    assert on_meta("Unet", "vgg11_bn").names[:5] == tuple(
        f"encoder.features.{index}" for index in (6, 13, 20, 27, 28)
    )


@pytest.mark.parametrize(
    "encoder", ["timm-efficientnet-b0", "tu-mobilenetv3_small_050", "xception", "mobileone_s0"]
)
def test_other_encoders_are_cut_alike_with_memory_and_without(encoder: str) -> None:
    assert build("Unet", encoder).names == on_meta("Unet", encoder).names


# ---- Sizes


@pytest.mark.parametrize(
    ("encoder", "size"), [("resnet18", (36, 54)), ("resnet18", (34, 50)), ("mit_b0", (36, 52))]
)
def test_unet_takes_sizes_that_its_first_features_divide(
    encoder: str, size: tuple[int, int]
) -> None:
    backbone = build("Unet", encoder)
    theirs = smp.Unet(encoder, encoder_weights=None, classes=CLASSES).eval()
    state = backbone.state_dict()
    theirs.load_state_dict({t: state[o] for o, t in backbone.original_names.items()})
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seeded(1)))
    with torch.inference_mode():
        assert torch.equal(backbone(image), theirs(image))


@pytest.mark.parametrize(
    ("model", "encoder", "size", "reason"),
    [
        (
            "FPN",
            "resnet18",
            (90, 120),
            r"32, got 90×120. the next size is 96×128",
        ),
        ("Unet", "resnet18", (33, 48), r"of 2, got 33×48. the next size is 34×48"),
        ("Unet", "mit_b0", (34, 48), r"of 4, got 34×48. the next size is 36×48"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    model: str, encoder: str, size: tuple[int, int], reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"smp's {model} with {encoder} takes .*{reason}"):
        on_meta(model, encoder)(torch.empty(1, 3, *size, device="meta"))


# ---- Refusals


@pytest.mark.parametrize(
    ("model", "encoder", "options", "reason"),
    [
        ("Unt", "resnet18", {}, "no 'Unt' of smp is a backbone; .*did you mean 'Unet'"),
        ("DPT", "tu-vit_tiny_patch16_224", {}, "no 'DPT' of smp is a backbone"),
        ("Unet", "resnet19", {}, "no encoder 'resnet19'; did you mean 'resnet18'"),
        ("Unet", "tu-resnet19", {}, "cannot be built: Unknown model .resnet19"),
        (
            "Unet",
            "resnet18",
            {"decoder_channel": [8]},
            "no option 'decoder_channel'; .*did you mean 'decoder_channels'",
        ),
        ("Unet", "tu-resnet10t", {"classes": 3}, "smp's Unet has no option 'classes'"),
        ("Unet", "resnet18", {"aux_params": {}}, "smp's Unet has no option 'aux_params'"),
        ("Unet", "resnet18", {"decoder_channels": [8]}, "cannot be built: Model depth is 5"),
        ("FPN", "dpn68", {}, "no chain .*'features.conv2_1' returns a tuple"),
        ("Unet", "tu-hrnet_w18_small", {}, "no chain .*returns a list"),
        ("Unet", "tu-pvt_v2_b0", {}, "no chain .* Choose another encoder"),
    ],
)
def test_what_cannot_be_is_refused(
    model: str, encoder: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(model, encoder, **options)


def test_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ConfigError, match=r"needs segmentation-models-pytorch.* mess\[smp\]"):
        build("Unet", "resnet18")


# ---- Weights


def saved(tmp_path: Path, network: nn.Module) -> str:
    path = tmp_path / "weights.safetensors"
    save_file({name: each.contiguous() for name, each in network.state_dict().items()}, path)
    return str(path)


def test_an_encoder_s_file_fills_it(tmp_path: Path) -> None:
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    backbone = build("FPN", "resnet18", saved(tmp_path, encoder))
    names = {theirs: ours for ours, theirs in backbone.original_names.items()}
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(backbone.state_dict()[names[f"encoder.{name}"]], tensor), name


def test_a_stem_named_like_another_network_s_last_layers_is_filled(tmp_path: Path) -> None:
    """`bn2` is behind the features of timm's EfficientNets, and in the stem of Xception."""
    encoder = smp.encoders.get_encoder("xception", weights=None)
    generator = torch.Generator().manual_seed(seeded(2))
    for tensor in encoder.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    backbone = build("Unet", "xception", saved(tmp_path, encoder))
    for name, theirs in backbone.original_names.items():
        if theirs.startswith("encoder."):
            own = encoder.state_dict()[theirs.removeprefix("encoder.")]
            assert torch.equal(backbone.state_dict()[name], own), theirs
    del encoder.bn2
    with pytest.raises(WeightsError, match=r"lack 'bn2\.weight'"):
        build("Unet", "xception", saved(tmp_path, encoder))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet10t", "layer3.0.conv1"), ("efficientnet_lite0", "blocks.6.0.conv_pw")],
)
def test_a_file_of_timm_fills_timm_s_encoder(tmp_path: Path, name: str, layer: str) -> None:
    network = timm.create_model(name)
    backbone = build("FPN", f"tu-{name}", saved(tmp_path, network))
    names = {theirs: ours for ours, theirs in backbone.original_names.items()}
    weight = network.state_dict()[f"{layer}.weight"]
    found = backbone.state_dict()[names[f"encoder.model.{layer}.weight"]]
    assert torch.equal(found, weight)
    with pytest.raises(WeightsError, match=r"lack 'conv1\.weight'"):
        build("FPN", "resnet18", saved(tmp_path, network))


# ---- What a network runs, in order


class Odd(nn.Module):
    """Layers in another order than they are named, inside of a list and of a layer, with a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 4, 1)
        self.layers = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())})
        self.scaled = Scaled()
        self.never = nn.Conv2d(4, 4, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.layers["a"](image)
        scaled = self.scaled(first, 0.5).transpose(2, 3).contiguous().transpose(2, 3)
        return [first, self.last(scaled.contiguous())]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, features: Tensor, rate: float) -> Tensor:
        scaled = rate * self.inner(features)
        return scaled.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_are_seen_in_the_order_they_run(device: str) -> None:
    with torch.device(device):
        ran, features = recorded(
            Odd(), torch.zeros(1, 3, 4, 6), lambda _, layer: type(layer) is nn.Sequential
        )
    assert [each.name for each in ran] == ["layers.a.0", "layers.a.1", "scaled", "last"]
    assert [each.further for each in ran] == [(), (), (0.5,), ()]
    assert [each.made_contiguous for each in ran] == [False, False, True, False]
    assert features[0] is ran[1].output
    assert features[1] is ran[3].output
