"""Weights of trained networks: which files are read, under which names, and what is refused."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from mess.config import BackboneConfig
from mess.errors import WeightsError
from mess.networks.adoption import adopt_weights
from mess.networks.backbones import Backbone, build_backbone
from mess.networks.weight_files import read_weights
from mess.testing.backbones import filled
from tests.seeds import seeded

CLASSES = 4
FILE = Path("theirs.pth")

State = dict[str, Tensor]


def small() -> Backbone:
    return build_backbone(BackboneConfig(name="small_resnet", options={"width": 4}), CLASSES)


@pytest.fixture
def state() -> State:
    """Of a trained network; every number is another one's."""
    generator = torch.Generator().manual_seed(seeded(1))
    return {
        name: torch.randint(0, 100, (), generator=generator)
        if name.endswith("num_batches_tracked")
        else torch.randn(tensor.shape, generator=generator)
        for name, tensor in small().state_dict().items()
    }


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def holds(backbone: Backbone, state: Mapping[str, Tensor]) -> bool:
    found = backbone.state_dict()
    return all(torch.equal(found[name], state[name]) for name in found)


# ---- Files


def test_every_kind_of_file_gives_the_same(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "c.pt")
    torch.save({"model": state, "lr": 0.1}, tmp_path / "d.pth")
    torch.save({"model": {"model_state_dict": state}}, tmp_path / "e.pth")
    torch.save({**state, "epoch": 3}, tmp_path / "f.pth")
    torch.save(
        {n: nn.Parameter(t, requires_grad=False) for n, t in state.items()}, tmp_path / "g.pt"
    )
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for file in files:
        found = read_weights(file)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("content", [nn.Conv2d(1, 1, 1), {"args": argparse.Namespace(lr=0.1)}])
def test_a_file_that_holds_code_is_not_run_and_says_how_to_convert_it(
    content: object, tmp_path: Path
) -> None:
    file = tmp_path / "model.pth"
    torch.save(content, file)
    message = refused(lambda: read_weights(file))
    assert "model.pth holds more than tensors" in message
    assert f'found = torch.load("{file}", weights_only=False)' in message
    assert "torch.save(found.state_dict()" in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pth", b"no archive", r"a\.pth is damaged, or not what torch\.save writes"),
        ("a.pth", b"", r"a\.pth is damaged, or not what torch\.save writes"),
        ("a.pth", b"error 404", r"a\.pth is damaged, or not what torch\.save writes"),
        ("a.safetensors", b"no header", r"a\.safetensors is not safetensors"),
        ("a.onnx", b"", r"a\.onnx is of no kind that is read: \.safetensors, or \.pth and \.pt"),
    ],
)
def test_a_file_of_another_kind_is_named(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search(words, refused(lambda: read_weights(tmp_path / name)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "gone.pth does not exist" in refused(lambda: read_weights(tmp_path / "gone.pth"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "best": 0.5}, "has the keys epoch, best, and no tensors by name"),
        ({"state_dict": {}, "epoch": 3}, "has the keys state_dict, epoch, and no tensors by name"),
        ([torch.zeros(1)], "has no names, and no tensors by name"),
    ],
)
def test_a_file_without_tensors_by_name_says_what_it_has(
    content: Any, words: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert words in refused(lambda: read_weights(tmp_path / "a.pth"))


def test_a_file_that_holds_itself_has_no_tensors(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = {"state_dict": content}
    torch.save(content, tmp_path / "a.pth")
    words = "has the keys epoch, model, and no tensors by name"
    assert words in refused(lambda: read_weights(tmp_path / "a.pth"))


# ---- Names


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "model.backbone."])
def test_our_own_names_with_any_prefix(prefix: str, state: State) -> None:
    backbone = small()
    adopt_weights(backbone, prefixed(state, prefix), FILE)
    assert holds(backbone, state)


def test_the_exits_of_a_run_are_left_out(state: State) -> None:
    backbone = small()
    exits = {"exits.p1-crm1-b0-fcn.head.0.weight": torch.zeros(1)}
    adopt_weights(backbone, prefixed(state, "backbone.") | exits, FILE)
    assert holds(backbone, state)


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "net.model."])
def test_names_of_the_original_with_or_without_a_prefix_of_all(prefix: str, state: State) -> None:
    """The original calls all its parts net.model.*; files may lack that, or part of it."""
    backbone = small()
    own = nn.ModuleDict({"body": backbone.blocks, "top": backbone.head})
    backbone.name_after(nn.ModuleDict({"net": nn.ModuleDict({"model": own})}))
    theirs = {
        prefix + backbone.original_names[name].removeprefix("net.model."): tensor
        for name, tensor in state.items()
    }
    assert f"{prefix}top.0.weight" in theirs
    adopt_weights(backbone, theirs, FILE)
    assert holds(backbone, state)


def test_a_head_that_mess_added_has_its_own_names(state: State) -> None:
    backbone = small().name_after(nn.ModuleDict())
    backbone.original_names = {n: f"trunk.{n}" for n in state if n.startswith("blocks.")}
    theirs = {backbone.original_names.get(name, name): tensor for name, tensor in state.items()}
    adopt_weights(backbone, prefixed(theirs, "module."), FILE)
    assert holds(backbone, state)


def test_a_model_of_torchvision_answers_as_before(tmp_path: Path) -> None:
    """Saved from parallel training, with the auxiliary classifier."""
    with torch.device("meta"):
        theirs = deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
        )
    theirs = filled(theirs)
    assert any(name.startswith("aux_classifier.") for name in theirs.state_dict())
    torch.save({"state_dict": prefixed(theirs.state_dict(), "module.")}, tmp_path / "theirs.pth")
    ours = build_backbone(BackboneConfig(name="deeplabv3_mobilenet_v3_large"), CLASSES).eval()
    adopt_weights(ours, read_weights(tmp_path / "theirs.pth"), FILE)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seeded(2)))
    with torch.inference_mode():
        found = F.interpolate(ours(image), size=(64, 96), mode="bilinear", align_corners=False)
        expected = theirs(image)["out"]
    assert expected.std() > 1e-3
    assert torch.equal(found, expected)


def test_files_may_lack_the_number_of_batches(state: State) -> None:
    backbone = small()
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    adopt_weights(backbone, old, FILE)
    assert holds(backbone, {**backbone.state_dict(), **old})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_over_as_it_is(dtype: torch.dtype, state: State) -> None:
    backbone = small()
    half = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    adopt_weights(backbone, half, FILE)
    assert holds(backbone, {n: t.float() if t.dtype == dtype else t for n, t in half.items()})


def test_float64_that_float32_holds_is_taken_over(state: State) -> None:
    backbone = small()
    adopt_weights(backbone, {n: t.double() for n, t in state.items()}, FILE)
    assert holds(backbone, state)


# ---- What is refused


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as caught:
        call()
    return str(caught.value)


def adopted(state: Mapping[str, Tensor]) -> str:
    """Why weights are refused; the network keeps its own."""
    backbone = small()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    message = refused(lambda: adopt_weights(backbone, state, FILE))
    assert holds(backbone, before)
    assert "theirs.pth" in message
    return message


def test_a_tensor_that_is_missing_is_named(state: State) -> None:
    shape = list(state.pop("head.1.running_var").shape)
    message = adopted(prefixed(state, "module."))
    assert f"lacks 'module.head.1.running_var' of layer head.1, of shape {shape}" in message
    assert f"it has {len(state)} of the network's {len(state) + 1} tensors" in message
    assert "Set backbone.name and backbone.options" in message


def test_another_shape_is_named_with_both(state: State) -> None:
    state["blocks.1.body.0.weight"] = torch.zeros(16, 8, 5, 5)
    message = adopted(state)
    assert "'blocks.1.body.0.weight' of layer blocks.1.body.0 has shape [16, 8, 5, 5]" in message
    assert "the network needs [16, 8, 3, 3]" in message
    assert "backbone.options" in message
    assert "backbone.outputs" not in message


def test_other_channels_are_to_be_named(state: State) -> None:
    state["head.4.weight"] = torch.zeros(CLASSES + 1, 6, 1, 1)
    message = adopted(state)
    assert "has shape [5, 6, 1, 1], the network needs [4, 6, 1, 1]" in message
    assert "name all of them in order in backbone.outputs" in message


def test_a_tensor_without_a_use_is_named(state: State) -> None:
    state |= {"neck.weight": torch.zeros(2, 3), "neck.bias": torch.zeros(2)}
    message = adopted(state)
    assert "holds 'neck.weight', of shape [2, 3], which the network has not (2 such" in message


def test_exits_of_something_else_are_not_left_out(state: State) -> None:
    assert "holds 'exits.a'" in adopted({**state, "exits.a": torch.zeros(1)})


def test_weights_of_another_network_are_told_with_names_of_both() -> None:
    message = adopted({"encoder.conv.weight": torch.zeros(1)})
    assert "such as 'blocks.0.0.0.weight', it has none, but 1 others" in message
    assert "such as 'encoder.conv.weight'" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float, state: State) -> None:
    state["head.4.bias"][1] = value
    assert "'head.4.bias' of layer head.4 has numbers that are not finite" in adopted(state)


def test_numbers_that_would_be_rounded_are_refused(state: State) -> None:
    state["head.4.bias"] = state["head.4.bias"].double() + 1e-12
    assert "'head.4.bias' of layer head.4 is float64 and would be rounded" in adopted(state)


def quantised(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # torch is about to leave it to another package, whose files are no plain tensors either.
        warnings.simplefilter("ignore", UserWarning)
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "kind",
    [
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        quantised,
    ],
)
def test_tensors_that_hold_no_plain_numbers_are_refused(
    kind: Callable[[Tensor], Tensor], state: State
) -> None:
    state["head.4.weight"] = kind(state["head.4.weight"])
    message = adopted(state)
    assert "'head.4.weight' of layer head.4 is meta, sparse, quantised or" in message
