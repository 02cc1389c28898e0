"""The overprovisioned network, its exits and its weights file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from mess.config import Config
from mess.errors import WeightsError
from mess.exits import FINAL, ExitArchitecture
from mess.networks.backbones.base import IMAGE
from mess.networks.backbones.heads import HEADS, HeadOptions
from mess.networks.candidates import candidates
from mess.networks.heads import build_exit
from mess.networks.network import OverprovisionedNetwork, build_network, export_copy, frozen
from mess.networks.weights import load_weights, save_weights
from tests.conftest import MakeConfig
from tests.seeds import seeded

CLASSES = 4


@pytest.fixture
def network(tiny: Config) -> OverprovisionedNetwork:
    return build_network(tiny, candidates(tiny, CLASSES), CLASSES).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(seeded(0)))


# ---- Segments


def test_features_are_those_of_the_segments_from_the_input(
    network: OverprovisionedNetwork, image: Tensor
) -> None:
    with torch.inference_mode():
        found = network.features(image)
        assert list(found) == list(network.point_names)
        assert len(found) == len(network.points) == 3
        for point, name in enumerate(network.point_names, start=1):
            alone = network.span(0, point)({IMAGE: image}, [name])
            assert torch.equal(alone[name], found[name])


@pytest.mark.parametrize("cuts", [(0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_segments_one_after_another_are_the_backbone(
    cuts: tuple[int, ...], network: OverprovisionedNetwork, image: Tensor
) -> None:
    with torch.inference_mode():
        alive = {IMAGE: image}
        for start, end in itertools.pairwise(cuts):
            alive = network.span(start, end)(alive, network.alive(end, 3, [FINAL]))
            assert len(alive) == 1
        assert torch.equal(network.logits(FINAL, alive), network(image))


def test_only_kept_candidates_are_built(tiny: Config, network: OverprovisionedNetwork) -> None:
    rows = candidates(tiny, CLASSES)
    kept = [row.exit_id for row in rows if row.status == "kept" and row.exit_id != FINAL]
    assert list(network.exits) == kept
    assert len(kept) < len(rows) - 1
    assert network.point(FINAL) == 3
    assert [network.point(exit_id) for exit_id in kept] == [
        row.point for row in rows if row.exit_id in kept
    ]


# ---- Exit architectures as modules


NARROW = HeadOptions(width=8)


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("crm", [1, 4])
def test_every_exit_gives_logits_at_the_resolution_of_its_features(
    crm: int, blocks: int, head: str
) -> None:
    module = build_exit(ExitArchitecture(crm, blocks, blocks > 0, head), 16, CLASSES, NARROW).eval()
    assert module(torch.zeros(2, 16, 5, 7)).shape == (2, CLASSES, 5, 7)


@pytest.mark.parametrize(("rdi", "dilations"), [(False, [1, 1, 1]), (True, [2, 4, 8])])
def test_rapid_dilation_doubles_in_each_block(rdi: bool, dilations: list[int]) -> None:
    found = convolutions(build_exit(ExitArchitecture(2, 3, rdi), 16, CLASSES, NARROW))
    assert found[0].kernel_size == (1, 1)
    assert (found[0].in_channels, found[0].out_channels) == (16, 8)
    assert [layer.dilation[0] for layer in found[1:4]] == dilations
    assert all(layer.in_channels == layer.out_channels == 8 for layer in found[1:4])


def test_without_reduction_there_is_no_1x1_convolution() -> None:
    first = convolutions(build_exit(ExitArchitecture(1, 1), 16, CLASSES, NARROW))[0]
    assert first.kernel_size == (3, 3)


def test_the_deeplab_head_at_full_width_is_torchvisions(image: Tensor) -> None:
    ours = HEADS["dlb"](16, CLASSES, HeadOptions()).eval()
    theirs = DeepLabHead(16, CLASSES).eval()
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(1, 16, 5, 7, generator=torch.Generator().manual_seed(seeded(0)))
    with torch.inference_mode():
        assert torch.equal(ours(features), theirs(features))


def test_too_few_channels_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="by 8 leaves 2 of 16 channels, a head needs 4"):
        build_exit(ExitArchitecture(8), 16, CLASSES, NARROW)


# ---- Weights


def test_weights_round_trip(
    network: OverprovisionedNetwork, make_config: MakeConfig, tmp_path: Path
) -> None:
    save_weights(network, tmp_path / "w.safetensors")
    other_config = make_config(seed=9)
    other = build_network(other_config, candidates(other_config, CLASSES), CLASSES)
    load_weights(other, tmp_path / "w.safetensors")
    expected = network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_weights_of_another_network_are_refused_by_name(
    network: OverprovisionedNetwork, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network, path)
    state = load_file(path)
    bias = "backbone.head.4.bias"

    save_file({**state, bias: torch.zeros(CLASSES + 1)}, path)
    with pytest.raises(WeightsError, match=r"'backbone\.head\.4\.bias' has shape \[5\].* \[4\]"):
        load_weights(network, path)
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="'extra'"):
        load_weights(network, path)
    save_file({name: tensor for name, tensor in state.items() if name != bias}, path)
    with pytest.raises(WeightsError, match=r"'backbone\.head\.4\.bias'"):
        load_weights(network, path)


def test_missing_or_damaged_weights_are_named(
    network: OverprovisionedNetwork, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"w\.safetensors does not exist"):
        load_weights(network, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match=r"w\.safetensors is not safetensors"):
        load_weights(network, tmp_path / "w.safetensors")


# ---- Modes


def test_a_frozen_module_keeps_its_batch_statistics(network: OverprovisionedNetwork) -> None:
    frozen(network.train())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.randn(2, 3, 32, 48))
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_an_export_copy_computes_the_same_and_leaves_the_original_alone(
    network: OverprovisionedNetwork, image: Tensor
) -> None:
    network.train()
    copied = export_copy(network)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not copied.training
    mine = {id(tensor) for tensor in network.parameters()}
    assert not mine & {id(tensor) for tensor in copied.parameters()}
    with torch.inference_mode():
        torch.testing.assert_close(copied(image), network.eval()(image), rtol=1e-4, atol=1e-5)
