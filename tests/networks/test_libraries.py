"""Models of other libraries all the way: from their exits to a bundle that answers as they do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation

from mess.common.framing import Framing
from mess.common.progress import Silent
from mess.config import parse_config
from mess.exits import FINAL
from mess.export.bundle import PlannedExit, export_bundle
from mess.networks.backbones import Backbone
from mess.networks.backbones.checks import scatter
from mess.networks.backbones.heads import HEADS, HeadOptions
from mess.networks.candidates import candidates
from mess.networks.network import OverprovisionedNetwork, build_network, fast_layout
from mess.runtime.bundle import load_bundle
from mess.signals.builtin import ConfidentShare
from tests.seeds import seeded

# By name: pyright would read the whole library, which takes it minutes.
transformers: Any = import_module("transformers")

CLASSES = 7
"""No other layer has as many channels."""
SIZE = (64, 96)
OTHER_SIZE = (96, 64)


class WithHead(nn.Module):
    """A classifier of timm's, which has no segmentation models, with a head of ours."""

    def __init__(self, model: str, head: nn.Module, **options: Any) -> None:
        super().__init__()
        self.network: Any = timm.create_model(model, **options)
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.network.forward_features(image))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a library: how it is asked for here, and there."""

    backbone: str
    options: dict[str, Any] = field(default_factory=dict)
    original: Callable[[], nn.Module]
    logits: Callable[[Any], Tensor] = lambda answer: answer
    """Of what the original returns."""
    dropped: tuple[str, ...] = ()
    """Prefixes of what the original has besides."""


def torchvisions(backbone: str, name: str, **options: Any) -> Model:
    make = getattr(segmentation, name)
    kwargs = {"weights": None, "weights_backbone": None, "num_classes": CLASSES, "aux_loss": False}
    return Model(
        backbone=backbone, original=lambda: make(**kwargs), logits=lambda answer: answer["out"]
    )


def timms(name: str, channels: int, **options: Any) -> Model:
    options = {"model": name, "output_stride": 8, "dlb_channels": 16} | options
    # Not every model takes its own stride as an option.
    dilated = {"output_stride": 8} if options["output_stride"] == 8 else {}

    def original() -> nn.Module:
        head = HEADS[options.get("head", "fcn")](
            channels, CLASSES, HeadOptions(width=options["dlb_channels"])
        )
        return WithHead(name, head, **dilated)

    # What comes behind the features of a classifier.
    behind = ("classifier.", "fc.", "head.", "conv_head.", "norm_head.")
    return Model(backbone="timm", options=options, original=original, dropped=behind)


def smps(model: str, encoder: str, *, dropped: tuple[str, ...] = (), **options: Any) -> Model:
    def original() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            make = getattr(smp, model)
            return make(encoder, encoder_weights=None, classes=CLASSES, **options)

    return Model(
        backbone="smp",
        options={"model": model, "encoder": encoder, **options},
        original=original,
        dropped=dropped,
    )


def segformers(**options: Any) -> Model:
    def original() -> nn.Module:
        make: Any = transformers.SegformerConfig
        config = make(num_labels=CLASSES, **options)
        return transformers.SegformerForSemanticSegmentation(config)

    return Model(
        backbone="segformer",
        options=options,
        original=original,
        logits=lambda answer: answer.logits,
    )


def upernets(kind: str, **options: Any) -> Model:
    inner = {"model_type": kind, **options}

    def original() -> nn.Module:
        stages = ["stage1", "stage2", "stage3", "stage4"]
        make: Any = transformers.UperNetConfig
        config = make(
            num_labels=CLASSES, hidden_size=16, backbone_config=inner | {"out_features": stages}
        )
        return transformers.UperNetForSemanticSegmentation(config)

    return Model(
        backbone="upernet",
        options={"hidden_size": 16, "backbone_config": inner},
        original=original,
        logits=lambda answer: answer.logits,
        dropped=("auxiliary_head.", "backbone.swin.layernorm."),
    )


DECODER: dict[str, Any] = {"decoder_channels": [32, 32, 16, 16, 8]}
PYRAMID: dict[str, Any] = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
SMALL: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 2, 1, 1]}

MODELS = {
    "fcn": torchvisions("drn50", "fcn_resnet50"),
    "deeplabv3": torchvisions("deeplabv3_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"),
    "lraspp": torchvisions("lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_large"),
    "timm-resnet": timms("resnet10t", 512),
    "timm-convnext": timms("convnext_atto", 320),
    "timm-mobilenet": timms("mobilenetv3_small_050", 288, output_stride=32, head="dlb"),
    "unet": smps("Unet", "resnet18", **DECODER),
    "unet-mit": smps("Unet", "mit_b0", **DECODER),
    "manet": smps("MAnet", "tu-convnext_atto", **DECODER),
    "unetplusplus": smps("UnetPlusPlus", "timm-mobilenetv3_small_minimal_100", **DECODER),
    "fpn": smps("FPN", "mobilenet_v2", **PYRAMID),
    "fpn-efficientnet": smps(
        "FPN", "efficientnet-b0", dropped=("encoder._conv_head", "encoder._bn1"), **PYRAMID
    ),
    "deeplabv3plus": smps("DeepLabV3Plus", "resnet18", decoder_channels=32),
    "smp-segformer": smps("Segformer", "mit_b0", decoder_segmentation_channels=32),
    "segformer": segformers(
        **SMALL, num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=32,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    ),
    "upernet-convnext": upernets("convnext", **SMALL, drop_path_rate=0.1),
    "upernet-swin": upernets(
        "swin", embed_dim=8, num_heads=[1, 2, 2, 2], depths=[2, 2, 2, 1], window_size=4
    ),
}  # fmt: skip


ELSEWHERE = ("deeplabv3", "unet-mit", "unetplusplus", "upernet-swin")
"""Tested as on other processors, too: of each library, and each kind of layer and of wiring."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ELSEWHERE else pytest.mark.one_setting)
        for name in MODELS
    ],
)
def test_a_model_of_a_library_keeps_its_answers_to_the_end(name: str, tmp_path: Path) -> None:
    """Not in parts: each would build and load the same two networks."""
    model = MODELS[name]
    network, original = with_the_same_weights(model)
    for size in (SIZE, OTHER_SIZE):
        for training in (False, True):
            check_logits(model, network, original, size, training=training)
    check_bundle(model, network, original, tmp_path / "bundle")


def check_logits(
    model: Model,
    network: OverprovisionedNetwork,
    original: nn.Module,
    size: tuple[int, int],
    *,
    training: bool,
) -> None:
    """Blocks and head are the library's network, dropout and batch statistics included."""
    answers = []
    for whole in (network.backbone, original):
        # Batch statistics move.
        whole = copy.deepcopy(whole).train(training)
        # The same dropout, in the same order.
        torch.manual_seed(seeded(1))
        with torch.no_grad():
            answers.append(whole(images(size)))
    found, expected = full_size(answers[0], size), full_size(model.logits(answers[1]), size)
    assert found.shape == (2, CLASSES, *size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))


def check_bundle(
    model: Model, network: OverprovisionedNetwork, original: nn.Module, path: Path
) -> None:
    """Exported with an early exit, its final label maps are those of the library's network."""
    early = next(iter(network.exits))
    signal = ConfidentShare("top1", 0.5, edge_enhanced=False)
    # No signal reaches the threshold: without `until`, every image goes on to the end.
    planned = [planned_exit(network, early, signal, 2.0), planned_exit(network, FINAL, None, None)]
    export_bundle(
        network,
        planned,
        path,
        framing=Framing(size=SIZE),
        format_="onnx",
        facts={},
        reporter=Silent(),
    )
    bundle = load_bundle(path)
    batch = images(SIZE)
    with torch.inference_mode():
        shallow = network.logits(early, network.features(batch))
        expected = (shallow, model.logits(original(batch)))
    for number, image in enumerate(batch.numpy()):
        for until, logits in enumerate(expected):
            answer = bundle.answer(image, until=until)
            assert answer.exit_index == until
            label_map = full_size(logits, SIZE)[number].argmax(0).numpy()
            assert np.bincount(label_map.ravel()).max() < 0.9 * label_map.size
            # Runtimes round otherwise, which shows where two classes are equal.
            assert (answer.label_map == label_map).mean() >= 0.999


def planned_exit(
    network: OverprovisionedNetwork,
    exit_id: str,
    signal: ConfidentShare | None,
    threshold: float | None,
) -> PlannedExit:
    return PlannedExit(
        exit_id=exit_id, point=network.point(exit_id), macs=1.0, signal=signal,
        threshold=threshold, exit_rate=None, calibration_signal=None,
    )  # fmt: skip


# ---- The same weights twice


def with_the_same_weights(model: Model) -> tuple[OverprovisionedNetwork, nn.Module]:
    """A network with an early exit, and the library's own model."""
    config = parse_config(
        {
            "data": {"kind": "shapes", "size": SIZE, "crop": 1.0},
            "backbone": {"name": model.backbone, "options": model.options},
            "exits": {
                "points": 2, "crm": [1], "blocks": [0], "rdi": [False], "heads": ["fcn"],
                "max_exit_cost": 99,
            },
        }
    )  # fmt: skip
    # What `mess exits` lists, from the meta device.
    network = build_network(config, candidates(config, CLASSES), CLASSES).eval()
    with torch.no_grad():
        scatter(network)
        spread(network)
    # The layout that networks have here: another one rounds otherwise.
    original = fast_layout(model.original()).eval()
    give(original, model, network.backbone)
    return network, original


def spread(network: OverprovisionedNetwork) -> None:
    """Let scores of all classes have one mean and deviation, so that label maps show several."""

    def scale(conv: nn.Module, _: Any, scores: Tensor) -> Tensor:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        std, mean = torch.std_mean(scores, dim=(0, 2, 3), keepdim=True)
        conv.weight /= std.view(-1, 1, 1, 1)
        conv.bias.sub_(mean.flatten()).div_(std.flatten())
        return (scores - mean) / std

    last = [
        each
        for each in network.modules()
        if isinstance(each, nn.Conv2d) and each.out_channels == CLASSES
    ]
    handles = [each.register_forward_hook(scale) for each in last]
    features = network.features(images(SIZE))
    for exit_id in (*network.exits, FINAL):
        network.logits(exit_id, features)
    for handle in handles:
        handle.remove()


def give(original: nn.Module, model: Model, backbone: Backbone) -> None:
    """The backbone's weights to the original, by the names that they have there."""
    state = backbone.state_dict()
    renamed = {theirs: state[ours] for ours, theirs in backbone.original_names.items()}
    if isinstance(original, WithHead):
        original.head.load_state_dict(backbone.head.state_dict())
        original = original.network
    else:
        assert len(renamed) == len(state)
    missing, unexpected = original.load_state_dict(renamed, strict=False)
    assert unexpected == []
    assert [name for name in missing if not name.startswith(model.dropped)] == []


def images(size: tuple[int, int]) -> Tensor:
    """Two, with some structure."""
    generator = torch.Generator().manual_seed(seeded(0))
    coarse = torch.randn(2, 3, size[0] // 8, size[1] // 8, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic")


def full_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
