"""Models of torchvision's kind: cut where they can be, refused where they cannot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_large, segmentation

from mess.config import BackboneConfig
from mess.errors import ConfigError
from mess.networks.backbones import build_backbone
from mess.networks.backbones.adapters import block_names, from_torchvision
from mess.networks.backbones.resnet import drn50
from tests.seeds import seeded

CLASSES = 5


def torchvisions(name: str, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seeded(0))
        model = getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=CLASSES, **options
        )
    return model.eval()


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class Toy(nn.Module):
    """A backbone of `layers`, run as `run` does, and a classifier of `channels`."""

    def __init__(
        self,
        layers: dict[str, nn.Module],
        run: Callable[[nn.Module, Tensor], Tensor] | None = None,
        channels: int = 4,
    ) -> None:
        super().__init__()
        self.backbone = nn.Sequential(OrderedDict(layers))
        self.classifier = nn.Conv2d(channels, CLASSES, 1)
        self._run = run or (lambda network, image: network(image))

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self._run(self.backbone, image))


def pair() -> dict[str, nn.Module]:
    return {"first": convolution(3, 4, stride=2), "second": convolution(4, 4)}


def skipping(share: float) -> Callable[[nn.Module, Tensor], Tensor]:
    """Runs a pair with a connection around its second layer."""

    def run(network: Any, image: Tensor) -> Tensor:
        features = network.first(image)
        return network.second(features) + share * features

    return run


# ---- torchvision's own models


@pytest.mark.parametrize(
    ("name", "options", "blocks"),
    [
        ("fcn_resnet50", {}, None),
        ("fcn_resnet50", {"aux_loss": True}, ["layer1", "layer2.1", "layer3", "layer4"]),
        ("deeplabv3_resnet50", {"aux_loss": True}, None),
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}, None),
        ("deeplabv3_mobilenet_v3_large", {}, ["3", "6", "16"]),
        ("lraspp_mobilenet_v3_large", {}, None),
        ("lraspp_mobilenet_v3_large", {}, ["4", "8", "16"]),
    ],
)
def test_a_cut_model_answers_as_the_whole_one(
    name: str, options: dict[str, Any], blocks: list[str] | None
) -> None:
    model = torchvisions(name, **options)
    image = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(seeded(1)))
    with torch.inference_mode():
        expected = model(image)["out"]
        backbone = from_torchvision(model, blocks).eval()
        found = F.interpolate(backbone(image), size=(40, 56), mode="bilinear", align_corners=False)
    assert expected.std() > 1e-3
    assert torch.equal(found, expected)
    assert blocks is None or list(backbone.names) == blocks
    assert not [name for name, _ in backbone.named_modules() if "aux" in name]


def test_a_residual_block_is_a_block_and_the_stem_joins_the_first() -> None:
    with torch.device("meta"):
        found, expected = from_torchvision(torchvisions("fcn_resnet50")), drn50(CLASSES)
    assert found.names == expected.names
    assert [tensor.shape for tensor in found.state_dict().values()] == [
        tensor.shape for tensor in expected.state_dict().values()
    ]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_head_that_reads_two_features_names_their_blocks(device: str) -> None:
    with torch.device(device):
        backbone = from_torchvision(torchvisions("lraspp_mobilenet_v3_large"))
        assert backbone.head_reads == ("4", "16")
        with pytest.raises(ConfigError, match=r"LRASPP reads the features of '4' as 'low'.* too"):
            from_torchvision(torchvisions("lraspp_mobilenet_v3_large"), ["6", "16"])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_head_that_reads_features_of_unknown_layers_is_refused(device: str) -> None:
    with torch.device(device):
        model: Any = torchvisions("lraspp_mobilenet_v3_large")
        del model.backbone.return_layers
        model.backbone.forward = lambda image: {"low": image, "high": image}
        model.classifier = convolution(3, CLASSES)
        model.classifier.forward = lambda levels: levels["high"]
        with pytest.raises(ConfigError, match="no chain.* the head does not run on .*960, 4, 6"):
            from_torchvision(model)


def test_the_auxiliary_level_may_lie_behind_the_one_that_is_read() -> None:
    model: Any = torchvisions("fcn_resnet50", aux_loss=True)
    model.backbone.return_layers = {"layer3": "out", "layer4": "aux"}
    model.classifier, model.aux_classifier = model.aux_classifier, model.classifier
    assert from_torchvision(model).names[-1] == "layer3.5"


def test_deeplabv3_on_mobilenet_v3_takes_the_classifier_s_weights(tmp_path: Path) -> None:
    state = mobilenet_v3_large(weights=None).state_dict()
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    config = BackboneConfig(name="deeplabv3_mobilenet_v3_large", weights=str(file))
    blocks = build_backbone(config, CLASSES).blocks.state_dict()
    names = [name for name in state if name.startswith("features.")]
    assert len(blocks) == len(names)
    for name, tensor in zip(names, blocks.values(), strict=True):
        assert torch.equal(tensor, state[name]), name


# ---- The check


def test_the_check_changes_neither_the_model_nor_the_random_state() -> None:
    torch.manual_seed(seeded(5))
    model = torchvisions("deeplabv3_mobilenet_v3_large").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    backbone = from_torchvision(model)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert backbone.training
    assert not backbone.head._forward_hooks


@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_a_connection_around_a_block_is_found(share: float) -> None:
    with pytest.raises(ConfigError, match=r"Toy is no chain.* first, second .* off by up to \d"):
        from_torchvision(Toy(pair(), skipping(share)), ["first", "second"])
    assert from_torchvision(Toy(pair(), skipping(0.0)), ["first", "second"])


def test_scales_that_start_at_zero_hide_nothing() -> None:
    """Residual branches often start switched off: any cut through them would look right."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.ModuleDict(pair())
            self.backbone["scale"] = nn.Conv2d(4, 4, 1)
            for parameter in self.backbone["scale"].parameters():
                nn.init.zeros_(parameter)
            self.classifier = nn.Conv2d(4, CLASSES, 1)

        def forward(self, image: Tensor) -> Tensor:
            features = self.backbone["first"](image)
            switched = self.backbone["scale"](features)
            return self.classifier(self.backbone["second"](features) + switched)

    with pytest.raises(ConfigError, match="no chain"):
        from_torchvision(Scaled(), ["first", "second"])


def test_shapes_are_checked_on_the_meta_device_too() -> None:
    def strided(network: Any, image: Tensor) -> Tensor:
        return network.second(network.first(image))[..., ::2, ::2]

    with torch.device("meta"):
        model = Toy(pair(), strided)
        with pytest.raises(ConfigError, match=r"\[1, 5, 32, 48\], not \[1, 5, 16, 24\]"):
            from_torchvision(model, ["first", "second"])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_block_that_changes_its_input_is_refused(device: str) -> None:
    layers = {"first": convolution(3, 4), "relu": nn.ReLU(inplace=True), **pair()}
    layers["second"] = convolution(4, 4)
    layers["first2"] = convolution(4, 4)
    with torch.device(device):
        model = Toy(layers)
        with pytest.raises(ConfigError, match="block 'second' changes its input in place"):
            from_torchvision(model, ["first", "second"])
        assert from_torchvision(model, ["relu", "second", "first2"]).names[0] == "relu"


def test_a_model_of_other_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match="Conv2d has no modules `backbone` and `classifier`"):
        from_torchvision(nn.Conv2d(3, CLASSES, 1))


def test_a_model_that_does_not_run_is_refused() -> None:
    model = Toy(pair(), lambda network, image: network(image[:, :2]))
    with pytest.raises(ConfigError, match=r"Toy does not run on an image of 64×96 .* 3 channels"):
        from_torchvision(model, ["first", "second"])


def test_blocks_return_feature_maps() -> None:
    layers = {"pool": nn.AvgPool2d(8), "flat": nn.Flatten(), "back": nn.Unflatten(1, (3, 8, 12))}
    with pytest.raises(ConfigError, match=r"'flat' does not return features \(B, C, h, w\)"):
        from_torchvision(Toy(layers, channels=3), list(layers))
    assert from_torchvision(Toy(layers, channels=3), ["pool", "back"])


def test_a_classifier_that_runs_twice_is_refused() -> None:
    class Twice(Toy):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) + super().forward(image.flip(-1))

    with pytest.raises(ConfigError, match="runs its classifier 2 times"):
        from_torchvision(Twice(pair()), ["second"])


# ---- Names of blocks


def test_single_layers_have_to_be_named() -> None:
    with pytest.raises(
        ConfigError, match="Toy has no layers of several parts.* but first, second. Name"
    ):
        from_torchvision(Toy(pair()))


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        (["layer9"], "no layer 'layer9'. .* did you mean"),
        (["layer2", "layer1", "layer4"], "no layer 'layer1' behind 'layer2'"),
        (["layer1", "layer1", "layer4"], "no layer 'layer1' behind 'layer1'"),
        (["layer1", "layer3"], r"the head does not run on .*\[1, 1024, 8, 12\]"),
        (["layer1.0.conv1", "layer4"], "no chain"),
    ],
)
def test_names_that_make_no_chain_are_refused(blocks: list[str], reason: str) -> None:
    with torch.device("meta"):
        model = torchvisions("fcn_resnet50")
    with pytest.raises(ConfigError, match=reason):
        from_torchvision(model, blocks)


def test_layers_without_weights_join_the_last_block() -> None:
    residual = nn.Sequential(nn.Sequential(convolution(4, 4), nn.ReLU()))
    residual[0].__class__ = type("Residual", (nn.Sequential,), {})
    network = nn.Sequential(OrderedDict(stem=convolution(3, 4), body=residual, act=nn.ReLU()))
    network.append(nn.Identity())
    assert block_names(network, "it") == ["act"]
    assert block_names(network, "it", "body") == ["body.0"]


def test_a_layer_used_twice_counts_twice() -> None:
    relu = nn.ReLU()
    model = Toy({"a": convolution(3, 4), "b": relu, "c": convolution(4, 4), "d": relu})
    backbone = from_torchvision(model, ["b", "d"])
    assert [len(list(block.children())) for block in backbone.blocks] == [2, 2]
