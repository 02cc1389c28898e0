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
from mess.export.programs import write_program
from mess.networks.backbones.outputs import SelectedChannels, channels_of
from mess.runs.fingerprints import pipeline_fingerprint
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
