"""Networks with skip connections: which tensors are alive where, and exits that read two."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mess import workflow
from mess.common.framing import Framing
from mess.common.progress import Silent
from mess.config import Config
from mess.errors import ConfigError
from mess.exits import FINAL, ExitArchitecture, parse_exit_id
from mess.export.bundle import PlannedExit, export_bundle
from mess.export.programs import require_exportable_backbone
from mess.export.segments import Segment, native_shapes
from mess.networks.backbones import Backbone
from mess.networks.backbones.base import IMAGE, Block
from mess.networks.candidates import candidates
from mess.networks.heads import SkipExit
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.profiling.parts import parts_of
from mess.runtime.bundle import load_bundle
from mess.signals.builtin import ConfidentShare
from mess.signals.maps import PixelMaps
from mess.signals.measure import measure
from mess.testing import BackboneContract
from mess.testing.backbones import filled
from tests.conftest import MakeConfig
from tests.forked import Forked, backbone_of, dropping, forked, looking
from tests.upsampling import upsampled

CLASSES = 6
SIZE = (32, 48)
SHARED = nn.Conv2d(3, 3, 1)
EXITS = {
    "points": ["half", "beside", "eighth", "up"],
    "crm": [1],
    "blocks": [0],
    "rdi": [False],
    "heads": ["fcn"],
    "skips": [False, True],
    "max_exit_cost": 99,
}


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    return make_config(
        data={"kind": "shapes", "size": SIZE},
        backbone={"name": "tests.forked:forked", "options": {}},
        exits=EXITS,
    )


@pytest.fixture
def network(config: Config) -> OverprovisionedNetwork:
    return filled(build_network(config, candidates(config, CLASSES), CLASSES))


@pytest.fixture
def chain(make_config: MakeConfig) -> OverprovisionedNetwork:
    """Without skip connections of its own: stride 4 after the first block and 8 behind."""
    config = make_config(
        data={"kind": "shapes", "size": SIZE},
        backbone={"name": "small_resnet", "options": {"width": 4}},
        exits=EXITS | {"points": ["block1", "block2", "block4"]},
    )
    return filled(build_network(config, candidates(config, CLASSES), CLASSES))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))


class TestForked(BackboneContract):
    stride = 1

    def build(self, num_classes: int) -> Backbone:
        return forked(num_classes)


class TestLooking(BackboneContract):
    def build(self, num_classes: int) -> Backbone:
        return looking(num_classes)


class Dropping(BackboneContract):
    def build(self, num_classes: int) -> Backbone:
        return dropping(num_classes)


def test_the_contract_knows_training() -> None:
    Dropping().test_blocks_leave_their_inputs_as_they_are()
    with pytest.raises(AssertionError, match="second changes 'first' in place"):
        Dropping().test_blocks_leave_their_inputs_as_they_are_in_training()


# ---- The network


@pytest.mark.parametrize("training", [False, True])
def test_blocks_in_turn_are_the_plain_network(image: Tensor, training: bool) -> None:
    plain = filled(Forked(CLASSES)).train(training)
    with torch.no_grad():
        assert torch.equal(backbone_of(plain).train(training)(image), plain(image))


def test_what_is_alive_is_what_later_blocks_and_exits_read(
    network: OverprovisionedNetwork,
) -> None:
    last = len(network.points)
    assert network.alive(0, last, [FINAL]) == (IMAGE,)
    assert network.alive(1, last, [FINAL]) == (IMAGE, "half", "pooled")
    assert network.alive(2, last, [FINAL]) == (IMAGE, "half", "beside")
    assert network.alive(3, last, [FINAL]) == (IMAGE, "half", "beside", "eighth")
    # An instance that ends at the third point runs no decoder.
    assert network.alive(1, 3, ["p3-crm1-b0-fcn"]) == ("half", "pooled")
    assert network.alive(2, 3, ["p3-crm1-b0-fcn"]) == ("beside",)
    assert network.alive(3, 3, ["p3-crm1-b0-fcn-skip"]) == ("beside", "eighth")


@pytest.mark.parametrize("cuts", [(0, 5), (0, 1, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)])
def test_spans_that_hand_on_what_is_alive_are_the_network(
    cuts: tuple[int, ...], network: OverprovisionedNetwork, image: Tensor
) -> None:
    with torch.inference_mode():
        alive = {IMAGE: image}
        for start, end in itertools.pairwise(cuts):
            alive = network.span(start, end)(alive, network.alive(end, 5, [FINAL]))
            assert set(alive) == set(network.alive(end, 5, [FINAL]))
        assert torch.equal(network.logits(FINAL, alive), network(image))


def test_a_chain_has_one_tensor_at_a_time() -> None:
    layers = {name: nn.Conv2d(3, 3, 1) for name in "abc"}
    assert Backbone(layers, nn.Identity()).is_chain
    assert not Backbone(layers, Block(nn.Identity(), reads=("b",))).is_chain
    assert not Backbone(
        {**layers, "d": Block(nn.Conv2d(3, 3, 1), reads=("a",))}, nn.Identity()
    ).is_chain
    assert not forked(CLASSES).is_chain


@pytest.mark.parametrize(
    ("blocks", "head", "message"),
    [
        (
            {"a": Block(nn.Identity(), reads=("b",)), "b": nn.Identity()},
            nn.Identity(),
            "'a' of a backbone reads 'b'",
        ),
        (
            {"a": nn.Identity()},
            Block(nn.Identity(), reads=("c",)),
            "the head of a backbone reads 'c'.* image, a",
        ),
        (
            {"a": Block(nn.Identity(), gives=("a",))},
            nn.Identity(),
            "two tensors of a backbone are named 'a'",
        ),
        ({"image": nn.Identity()}, nn.Identity(), "two tensors of a backbone are named 'image'"),
        (
            {"a": SHARED, "b": nn.ReLU(), "c": nn.Sequential(SHARED)},
            nn.Identity(),
            r"'blocks\.0\.weight' and 'blocks\.2\.0\.weight' of a backbone are the same tensor",
        ),
        ({"a": SHARED}, SHARED, r"'blocks\.0\.weight' and 'head\.weight' of a backbone are"),
    ],
)
def test_wiring_that_cannot_be_is_refused(
    blocks: dict[str, nn.Module], head: nn.Module, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Backbone(blocks, head)


# ---- Exits that read two features


def test_an_exit_with_skip_reads_what_is_kept_of_each_size_up_to_a_stride(config: Config) -> None:
    rows = {row.exit_id: row for row in candidates(config, CLASSES)}
    assert rows["p3-crm1-b0-fcn-skip"].skip == ("beside",)
    assert rows["p3-crm1-b0-fcn-skip"].output_stride == 4
    assert rows["p3-crm1-b0-fcn"].output_stride == 8
    for point in (1, 2, 4, 5):
        row = rows[f"p{point}-crm1-b0-fcn-skip"]
        assert row.status.startswith(
            "excluded: no features before it are finer, down to exits.skip"
        )
    # Half's 8 channels and the pooled image at a quarter; the image itself.
    halves, quarters = 16 * 24, 8 * 12
    assert rows["p1-crm1-b0-fcn"].alive_bytes == 4 * (3 * 4 * halves + 8 * halves + 3 * quarters)


def test_an_exit_of_a_chain_has_finer_features_kept_for_it(chain: OverprovisionedNetwork) -> None:
    assert chain.reads("p3-crm1-b0-fcn-skip") == ("block4", "block1")
    assert chain.reads("p3-crm1-b0-fcn") == ("block4",)
    last = len(chain.points)
    assert chain.alive(2, 3, ["p3-crm1-b0-fcn-skip"]) == ("block1", "block2")
    assert chain.alive(3, last, [FINAL, "p4-crm1-b0-fcn-skip"]) == ("block1", "block4")
    # Nothing is kept for an exit that is not run.
    assert chain.alive(2, last, [FINAL]) == ("block2",)
    assert not chain.is_chain


def test_nothing_is_kept_for_an_exit_that_is_not_built(make_config: MakeConfig) -> None:
    config = make_config(
        data={"kind": "shapes", "size": SIZE},
        backbone={"name": "small_resnet", "options": {"width": 4}},
        exits=EXITS | {"points": ["block1", "block2"], "max_exit_cost": 1e-9},
    )
    rows = candidates(config, CLASSES)
    assert any(row.skip for row in rows)
    network = build_network(config, rows, CLASSES)
    assert network.is_chain
    with torch.inference_mode():
        found = network.eval().features(torch.zeros(1, 3, *SIZE))
    assert list(found) == list(network.point_names)


def test_features_of_just_the_stride_are_read_at_odd_sizes(make_config: MakeConfig) -> None:
    """Strided convolutions round up: 23 rows of 90 are at stride 4."""
    config = make_config(
        data={"kind": "shapes", "size": (90, 122)},
        backbone={"name": "small_resnet", "options": {"width": 4}},
        exits=EXITS | {"points": ["block1", "block4"], "skip_stride": 4},
    )
    rows = {row.exit_id: row for row in candidates(config, CLASSES)}
    assert rows["p2-crm1-b0-fcn-skip"].skip == ("block1",)
    assert rows["p2-crm1-b0-fcn-skip"].output_stride == 4


def test_an_identifier_tells_the_skip() -> None:
    architecture = ExitArchitecture(2, 1, True, "fcn", skip=True)
    assert architecture.exit_id(3) == "p3-crm2-b1-rdi-fcn-skip"
    assert parse_exit_id("p3-crm2-b1-rdi-fcn-skip") == (3, architecture)


def test_logits_of_an_exit_with_skip_have_the_size_of_the_finer_features(
    network: OverprovisionedNetwork, image: Tensor
) -> None:
    with torch.inference_mode():
        features = network.features(image)
        assert network.logits("p3-crm1-b0-fcn-skip", features).shape == (1, CLASSES, 8, 12)
    assert native_shapes(network, SIZE)["p3-crm1-b0-fcn-skip"] == (8, 12)


# ---- Programs


def test_parts_take_what_they_read_and_give_what_is_alive(network: OverprovisionedNetwork) -> None:
    parts = {name: part for part in parts_of(network, SIZE, []) for name in part.names}
    first = parts["segment", "0-1"]
    assert list(first.inputs) == ["features.image"]
    # The image is there already.
    assert first.outputs == ["next_features.half", "next_features.pooled"]
    rest = parts["segment", "2-5"]
    assert list(rest.inputs) == ["features.beside", "features.half"]
    assert list(parts["exit", "final"].inputs) == ["features.top", "features.image"]
    for part in parts.values():
        outputs = part.module.eval()(*part.inputs.values())
        assert len(outputs) == len(part.outputs)


@pytest.mark.parametrize("format_", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("which", "last"),
    [("network", FINAL), ("network", "p3-crm1-b0-fcn-skip"), ("chain", "p3-crm1-b0-fcn-skip")],
)
def test_a_bundle_of_segments_with_several_tensors_answers_as_the_network(
    which: str, last: str, format_: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    network: OverprovisionedNetwork = request.getfixturevalue(which)
    exits = ["p1-crm1-b0-fcn", "p2-crm1-b0-fcn", last]
    signal = ConfidentShare("top1", 0.5, edge_enhanced=False)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 3, *SIZE)).astype(np.float32)
    with torch.inference_mode():
        features = network.features(torch.from_numpy(images))
        logits = {exit_id: network.logits(exit_id, features) for exit_id in exits}
    # Half of the images leave at each early exit; no signal is near a threshold by chance alone.
    planned, leaving = [], np.zeros(len(images), int)
    for number, exit_id in enumerate(exits[:-1]):
        confidence = PixelMaps(logits[exit_id]).confidence("top1")
        pixel = float(confidence.median()) + 1e-4
        signal = ConfidentShare("top1", pixel, edge_enhanced=False)
        values = measure(PixelMaps(logits[exit_id]), [signal], SIZE)[:, 0].numpy()
        ordered = np.unique(values)
        threshold = float((ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2)
        leaving += (leaving == number) & (values < threshold)
        planned.append(_planned(network, exit_id, signal, threshold, values))
    planned.append(_planned(network, last, None, None, None))
    path = export_bundle(
        network,
        planned,
        tmp_path / "bundle",
        framing=Framing(size=SIZE),
        format_=format_,
        facts={},
        reporter=Silent(),
    )
    bundle = load_bundle(path, trust=True)
    for number, image in enumerate(images):
        answers = [bundle.answer(image, until=until) for until in range(3)]
        assert [each.exit_index for each in answers] == [min(leaving[number], u) for u in range(3)]
        for answer in answers:
            native = logits[exits[answer.exit_index]][number : number + 1].numpy()
            expected = upsampled(native, SIZE).argmax(1)[0]
            # Runtimes round otherwise, which shows where two classes are equal.
            assert (answer.label_map == expected).mean() > 0.99


def _planned(
    network: OverprovisionedNetwork,
    exit_id: str,
    signal: ConfidentShare | None,
    threshold: float | None,
    values: np.ndarray | None,
) -> PlannedExit:
    return PlannedExit(
        exit_id=exit_id, point=network.point(exit_id), macs=1.0, signal=signal,
        threshold=threshold, exit_rate=None, calibration_signal=values,
    )  # fmt: skip


def test_a_segment_hands_on_nothing_that_is_not_run(network: OverprovisionedNetwork) -> None:
    needed = network.alive(2, 3, ["p3-crm1-b0-fcn"])
    segment = Segment(network, 0, 2, "p2-crm1-b0-fcn", hands_on=needed)
    assert segment.outputs == ["next_features.beside", "logits"]


def test_a_finer_stride_adds_finer_features(config: Config, image: Tensor) -> None:
    exits = config.exits.model_copy(update={"skip_stride": 2})
    config = config.model_copy(update={"exits": exits})
    rows = candidates(config, CLASSES)
    by_id = {row.exit_id: row for row in rows}
    assert by_id["p3-crm1-b0-fcn-skip"].skip == ("beside", "half")
    assert by_id["p3-crm1-b0-fcn-skip"].skip_channels == (16, 8)
    assert by_id["p3-crm1-b0-fcn-skip"].output_stride == 2
    # The 1x1 convolutions on a quarter and a half of the image, and nothing else.
    more = by_id["p3-crm1-b0-fcn-skip"].exit_macs - by_id["p3-crm1-b0-fcn"].exit_macs
    assert more == CLASSES * (16 * 8 * 12 + 8 * 16 * 24)
    network = filled(build_network(config, rows, CLASSES))
    with torch.inference_mode():
        features = network.features(image)
        found = network.logits("p3-crm1-b0-fcn-skip", features)
        exit_ = network.exits["p3-crm1-b0-fcn-skip"]
        assert isinstance(exit_, SkipExit)
        expected = exit_.exit(features["eighth"])
        for skip, name in zip(exit_.skips, ("beside", "half"), strict=True):
            finer = features[name]
            wide = upsampled(expected.numpy(), (finer.shape[2], finer.shape[3]))
            expected = torch.from_numpy(wide) + skip(finer)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"size": [36, 48], "crop": 1.0},
            r"does not take training crops \(data\.crop\) of 36×48 pixels: 'skip' does not run on "
            r"features of shape \[1, 4, 9, 12\] and \[1, 4, 5, 6\]: .*multiples of their output",
        ),
        ({"size": [32, 48], "crop": 0.9}, r"training crops .* of 29×43 pixels"),
        ({"size": [36, 36], "crop": 0.889}, r"does not take images of 36×36 pixels"),
    ],
)
def test_sizes_that_a_network_does_not_take_are_told_without_training(
    make_config: MakeConfig, data: dict[str, Any], message: str
) -> None:
    config = make_config(data=data, backbone={"name": "tests.forked:strict", "options": {}})
    with pytest.raises(ConfigError, match=message):
        candidates(config, CLASSES)


def test_a_head_of_other_classes_is_told_without_training(make_config: MakeConfig) -> None:
    backbone = {"name": "tests.forked:too_few", "options": {}}
    config = make_config(data={"size": SIZE, "crop": 1.0}, backbone=backbone)
    with pytest.raises(ConfigError, match=r"the final head of .* gives \[1, 5, .*\(1, 6, h, w\)"):
        candidates(config, CLASSES)


@pytest.mark.parametrize("name", ["changing", "dropping"])
def test_a_block_that_changes_its_input_is_told_without_training(
    make_config: MakeConfig, name: str
) -> None:
    """Counting hands inputs of plain rectifiers on, so it would not notice."""
    backbone = {"name": f"tests.forked:{name}", "options": {}}
    config = make_config(data={"size": SIZE, "crop": 1.0}, backbone=backbone)
    with pytest.raises(ConfigError, match="block 'second' changes its input in place"):
        candidates(config, CLASSES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("naming", r"the head does not return logits \(B, classes, h, w\), but dict"),
        ("sized", r"'first' does not return features \(B, C, h, w\) and 1 tensors"),
        ("alone", r"'first' does not return features \(B, C, h, w\)\."),
    ],
)
def test_parts_that_return_no_tensors_are_told_without_training(
    make_config: MakeConfig, name: str, message: str
) -> None:
    backbone = {"name": f"tests.forked:{name}", "options": {}}
    config = make_config(data={"size": SIZE, "crop": 1.0}, backbone=backbone)
    with pytest.raises(ConfigError, match=message):
        candidates(config, CLASSES)


def test_indices_among_buffers_are_a_backbone_s_own(make_config: MakeConfig) -> None:
    """Memory that nobody wrote to would hold any."""
    config = make_config(backbone={"name": "tests.forked:looking", "options": {}})
    drawn = torch.get_rng_state()
    require_exportable_backbone(config, CLASSES)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("command", ["exits", "train"])
def test_a_block_that_cannot_be_exported_is_told_without_training(
    make_config: MakeConfig, tmp_path: Path, command: str
) -> None:
    backbone = {"name": "tests.forked:deciding", "options": {}}
    config = tmp_path / "own.toml"
    exits = {"points": 2, "crm": [1], "blocks": [0], "max_exit_cost": 99}
    config.write_text(make_config(backbone=backbone, exits=exits).to_toml())
    message = "'second' of the backbone 'tests.forked:deciding' cannot be exported"
    with pytest.raises(ConfigError, match=message):
        if command == "exits":
            workflow.exits(config)
        else:
            workflow.train_overprovisioned(config, run=tmp_path / "run")
