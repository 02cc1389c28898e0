"""Channels that are not the classes: which is which, and programs that select them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from mess.errors import ConfigError
from mess.exits import FINAL
from mess.export.programs import write_program
from mess.networks.backbones.outputs import SelectedChannels, channels_of
from mess.networks.candidates import candidates
from mess.networks.network import build_network
from mess.runs.fingerprints import pipeline_fingerprint
from mess.testing.backbones import filled
from tests.conftest import MakeConfig
from tests.seeds import seeded

CLASSES = ("sky", "road", "tree")


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (("sky", "road", "tree"), (0, 1, 2)),
        (("sky", "road", "tree", "void"), (0, 1, 2)),
        (("tree", "void", "sky", "void", "road"), (2, 4, 0)),
    ],
)
def test_classes_are_found_by_name(outputs: Sequence[str], expected: Sequence[int]) -> None:
    assert channels_of(outputs, CLASSES) == expected


def test_a_class_without_a_channel_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"3 channels, none of them 'tree'.*mean 'trees'\?"):
        channels_of(("sky", "road", "trees"), CLASSES)


def test_a_class_with_two_channels_is_named_with_both() -> None:
    with pytest.raises(ConfigError, match=r"names 'road' at 1 and 3, counted from 0"):
        channels_of(("sky", "road", "tree", "road"), CLASSES)


def test_classes_of_the_same_name_cannot_be_told_apart() -> None:
    with pytest.raises(ConfigError, match="2 classes named 'sky'"):
        channels_of(("sky", "road"), ("sky", "road", "sky"))


@pytest.mark.parametrize("name", ["tests.forked:forked", "small_resnet"])
def test_a_network_keeps_its_head_and_answers_with_some_of_its_channels(
    name: str, make_config: MakeConfig
) -> None:
    """A head that reads two tensors, and one that reads the last features."""
    order = ["void", "tree", "sky", "other", "road"]
    backbone = {"name": name, "options": {}}
    exits = {"points": 2, "max_exit_cost": 99}
    plain = make_config(backbone=backbone, exits=exits)
    config = make_config(backbone={**backbone, "outputs": order}, exits=exits)
    whole = filled(build_network(plain, candidates(plain, 5), 5))
    rows = candidates(config, 3)
    part = build_network(config, rows, 3, CLASSES).eval()
    assert whole.backbone.state_dict().keys() == part.backbone.state_dict().keys()
    part.backbone.load_state_dict(whole.backbone.state_dict())
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(seeded(2)))
    with torch.inference_mode():
        every, some = whole(image), part(image)
        features = part.features(image)
        assert torch.equal(part.logits(FINAL, features), some)
        assert {part.logits(exit_id, features).shape[1] for exit_id in part.exits} == {3}
    assert torch.equal(some, every[:, [2, 4, 1]])
    own = candidates(plain, 5)[-1]
    assert (rows[-1].exit_macs, rows[-1].params) == (own.exit_macs, own.params)


def test_channels_need_the_names_of_the_classes(make_config: MakeConfig) -> None:
    config = make_config(backbone={"outputs": ["void", *CLASSES]})
    with pytest.raises(ValueError, match="needs the names of the classes"):
        build_network(config, [], 3)


def test_predictions_of_other_channels_are_not_taken_for_these(make_config: MakeConfig) -> None:
    """Weights and images may be the same."""
    names = [None, ["void", "sky"], ["sky", "void"]]
    configs = [make_config(backbone={"outputs": outputs}) for outputs in names]
    assert len({pipeline_fingerprint(config) for config in configs}) == 3


@pytest.mark.parametrize("channels", [(0, 1, 2), (2, 3), (3, 0, 4), (1,), (4, 3)])
def test_the_logits_are_those_of_the_channels_in_torch_and_in_programs(
    channels: tuple[int, ...], tmp_path: Path
) -> None:
    selection = SelectedChannels(channels)
    assert not selection.state_dict()
    logits = torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(seeded(1)))
    expected = torch.stack([logits[:, channel] for channel in channels], dim=1)
    assert torch.equal(selection(logits), expected)
    # With a layer before it: the constant of the index lies beside its weights.
    module = nn.Sequential(nn.Hardtanh(-9.0, 9.0), selection)
    path = tmp_path / "program.onnx"
    write_program(module, {"logits": logits}, ["selected"], path, "onnx")
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {"logits": logits.numpy()})
    np.testing.assert_array_equal(np.asarray(found), expected.numpy())
