"""Exit points, candidate rows and their costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mess.config import Config
from mess.errors import ConfigError
from mess.exits import FINAL
from mess.networks import macs
from mess.networks.backbones.heads import HeadOptions
from mess.networks.candidates import (
    Candidate,
    _output_stride,
    candidates,
    equidistant_points,
    named_points,
    require_early_exit,
)
from mess.networks.heads import build_exit
from tests.conftest import MakeConfig
from tests.seeds import seeded

PATHS_GMACS = {
    4: [20.49, 30.83, 51.44, 60.60],
    6: [17.04, 23.94, 30.83, 51.44, 56.02, 60.60],
    8: [14.74, 20.49, 26.24, 30.83, 36.58, 51.44, 56.02, 60.60],
}
"""BranDeepLabV3, Tables I-III: billions of multiply-adds up to each side branch, and in all."""


def brandeeplab(points: int) -> Config:
    return Config.model_validate(
        {
            "data": {"size": [256, 256]},
            "backbone": {"name": "deeplabv3_resnet101"},
            "exits": {
                "points": points,
                "crm": [1],
                "blocks": [0],
                "heads": ["dlb"],
                "max_exit_cost": 9,
            },
        }
    )


def mobilenet(**exits: object) -> Config:
    return Config.model_validate({"data": {"size": [180, 240]}, "exits": exits})


def early_blocks(rows: Sequence[Candidate]) -> list[str]:
    """Names of the points' blocks from shallow to deep, the last included."""
    return list(dict.fromkeys(row.block for row in rows))


# ---- Exit points


@pytest.mark.parametrize("points", [4, 6, 8])
def test_branched_deeplab_costs_what_its_paper_prints(points: int) -> None:
    rows = candidates(brandeeplab(points), 21)
    branches = [row for row in rows if row.exit_id != FINAL and row.point < points]
    found = [row.path_macs / 1e9 for row in [*branches, rows[-1]]]
    assert found == pytest.approx(PATHS_GMACS[points], rel=0.01)


def test_branched_deeplab_has_its_papers_blocks() -> None:
    four = ["layer3.7", "layer3.16", "layer4.0", "layer4.2"]
    assert early_blocks(candidates(brandeeplab(4), 21)) == four
    six = ["layer3.4", "layer3.10", "layer3.16", "layer4.0", "layer4.1", "layer4.2"]
    assert early_blocks(candidates(brandeeplab(6), 21)) == six


def test_dilated_mobilenet_has_six_distinct_points() -> None:
    names = early_blocks(candidates(mobilenet(crm=[1], blocks=[0]), 11))
    assert names == [f"features.{index}" for index in (10, 13, 14, 15, 16, 17)]


def plain_points(costs: Sequence[int], points: int) -> list[int]:
    """First block that reaches i/N of the cost; else the nearest free one before it, or after."""
    taken = [len(costs) - 1]
    for i in range(1, points):
        pick, running = 0, costs[0]
        while running < i / points * sum(costs) - 1e-9:
            pick += 1
            running += costs[pick]
        before = [k for k in range(len(costs)) if k <= pick and k not in taken]
        after = [k for k in range(len(costs)) if k > pick and k not in taken]
        taken.append(max(before) if before else min(after))
    return sorted(taken)


@pytest.mark.parametrize("seed", range(30))
def test_equidistant_points_follow_their_definition(seed: int) -> None:
    rng = np.random.default_rng(seeded(seed))
    costs = (rng.integers(1, 9, rng.integers(1, 12)) ** rng.integers(1, 5)).tolist()
    for points in range(1, len(costs) + 1):
        assert equidistant_points(costs, points) == plain_points(costs, points)


@pytest.mark.parametrize(
    ("costs", "points", "expected"),
    [
        ([5, 5, 5, 5], 4, [0, 1, 2, 3]),  # a share that is reached exactly counts
        ([5, 5, 5, 5], 2, [1, 3]),
        ([5, 5, 5, 5], 1, [3]),
        ([7], 1, [0]),
        ([1, 1, 1, 97], 3, [1, 2, 3]),  # both picks fall on the last block
        ([97, 1, 1, 1], 3, [0, 1, 3]),  # both picks fall on the first block
        ([1, 97, 1, 1, 1], 4, [0, 1, 2, 4]),
    ],
)
def test_points_are_distinct_and_end_at_the_last_block(
    costs: list[int], points: int, expected: list[int]
) -> None:
    assert equidistant_points(costs, points) == expected


def test_more_points_than_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"exits\.points = 3: the backbone has only 2 blocks"):
        equidistant_points([1, 1], 3)
    with pytest.raises(ConfigError, match=r"exits\.points = 18: .* only 17 blocks"):
        candidates(mobilenet(points=18), 11)


def test_points_can_be_named() -> None:
    config = mobilenet(points=["features.2", "features.9"], crm=[1], blocks=[0], heads=["fcn"])
    rows = candidates(config, 11)
    assert [(row.point, row.block) for row in rows] == [
        (1, "features.2"),
        (2, "features.9"),
        (3, "features.17"),
        (3, "features.17"),
    ]


def test_without_early_names_the_last_block_is_the_only_point() -> None:
    assert named_points(["a", "b"], []) == [1]


@pytest.mark.parametrize(
    ("early", "fault"),
    [
        (["b", "a"], r"\['b', 'a'\]"),
        (["a", "a"], r"\['a', 'a'\]"),
        (["a", "layer"], "'layer', is a point of its own accord"),
        (["a", "layr"], "no block is named 'layr'; .* did you mean 'layer'"),
    ],
)
def test_wrong_names_of_points_are_refused(early: list[str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        named_points(["a", "b", "layer"], early)


# ---- Candidates and what excludes them


def test_the_full_space_on_mobilenet_has_336_candidates_of_which_217_are_kept() -> None:
    rows = candidates(mobilenet(), 11)
    assert len(rows) == 336 + 1
    assert rows[-1].exit_id == FINAL
    assert rows[-1].status == "kept"
    assert sum(row.status == "kept" for row in rows[:-1]) == 217
    assert len({row.exit_id for row in rows}) == 337
    assert all(row.status == "kept" or row.status.startswith("excluded: ") for row in rows)


def test_an_exit_is_excluded_exactly_when_its_path_costs_more_than_the_limit() -> None:
    space = {"points": 3, "crm": [1, 2], "blocks": [0, 2], "heads": ["fcn"]}
    everything = {row.exit_id: row for row in candidates(mobilenet(**space, max_exit_cost=1e9), 11)}
    baseline = everything[FINAL].path_macs
    excluded = 0
    for row in candidates(mobilenet(**space, max_exit_cost=0.8), 11):
        share = everything[row.exit_id].path_macs / baseline
        if row.exit_id == FINAL or share <= 0.8:
            assert row.status == "kept"
        else:
            excluded += 1
            assert row.status == (
                f"excluded: its path costs {share:.2f} baselines, max_exit_cost is 0.8"
            )
    assert excluded


def test_a_limit_on_the_exit_alone_is_stated_in_the_reason() -> None:
    rows = candidates(mobilenet(points=2, blocks=[0, 3], heads=["fcn"], max_exit_share=0.05), 11)
    baseline = rows[-1].path_macs
    reasons = {row.exit_id: row.status for row in rows if "alone" in row.status}
    assert reasons
    for row in rows[:-1]:
        if row.exit_id in reasons:
            assert row.exit_macs / baseline > 0.05
            assert row.status.endswith("alone, max_exit_share is 0.05")
        elif row.status == "kept":
            assert row.exit_macs / baseline <= 0.05


def test_too_few_channels_exclude_and_say_so(make_config: MakeConfig) -> None:
    config = make_config(
        exits={"points": ["features.2"], "crm": [2, 4], "blocks": [0], "rdi": [False]}
    )
    rows = {row.exit_id: row for row in candidates(config, 6)}
    assert rows["p1-crm2-b0-fcn"].status == "kept"  # 8 channels become 4, what a head needs
    assert rows["p1-crm4-b0-fcn"].status == (
        "excluded: channel reduction by 4 leaves 2 channels, a head needs 4"
    )


def test_early_points_without_a_candidate_are_refused_with_what_excluded_them() -> None:
    limits = {"crm": [1, 256], "blocks": [0, 1], "heads": ["fcn"], "max_exit_cost": 0.3}
    rows = candidates(mobilenet(points=2, **limits), 11)
    # Exits at the last point are not early.
    rows = [replace(row, status="kept") if row.point == 2 else row for row in rows]
    cheapest = min(row.path_macs for row in rows if "max_exit_cost" in row.status)
    with pytest.raises(ConfigError) as refusal:
        require_early_exit(rows)
    message = str(refusal.value)
    assert "none of 6 candidate exits before the last point" in message
    assert f"3 as p1-crm1-b0-fcn: its path costs {cheapest / rows[-1].path_macs:.2f}" in message
    assert "max_exit_cost is 0.3" in message
    assert "3 as p1-crm256-b0-fcn: channel reduction by 256 leaves 0 channels" in message


@pytest.mark.parametrize("points", [1, ()])
def test_without_early_points_the_final_exit_is_enough(points: object) -> None:
    require_early_exit(candidates(mobilenet(points=points, max_exit_cost=1e-9), 11))
    require_early_exit(candidates(mobilenet(points=2, crm=[8], blocks=[0]), 11))


def test_an_unknown_head_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"no head is named 'fnc'; .* did you mean 'fcn'"):
        candidates(make_config(exits={"heads": ["fnc"]}), 6)


def test_rows_are_ordered_by_point_and_costs_add_up() -> None:
    rows = candidates(mobilenet(points=4, crm=[1, 8], rdi=[False], heads=["fcn"]), 11)
    assert [row.point for row in rows] == sorted(row.point for row in rows)
    assert all(row.path_macs == row.backbone_macs + row.exit_macs for row in rows)
    for before, after in itertools.pairwise(rows):
        assert after.backbone_macs >= before.backbone_macs
        assert after.backbone_params >= before.backbone_params
    assert rows[-1].architecture is None


@pytest.mark.parametrize(("stride", "expected"), [(8, [2, 4, 8, 8, 8]), (32, [2, 4, 8, 16, 32])])
def test_the_output_stride_of_a_point_is_that_of_its_features(
    stride: int, expected: list[int]
) -> None:
    early = ["features.1", "features.2", "features.4", "features.7"]
    config = Config.model_validate(
        {
            # 180 is no multiple of 32: the stride is rounded, 180 / 23 = 7.8 is 8.
            "data": {"size": [180, 240]},
            "backbone": {"options": {"output_stride": stride}},
            "exits": {"points": early, "crm": [1], "blocks": [0], "heads": ["fcn"]},
        }
    )
    rows = candidates(config, 11)
    assert [row.output_stride for row in rows[:-1]] == expected


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [
        *(((height, 96), 3, 32, 1, 32) for height in (64, 65, 67, 96, 97)),
        ((33, 48), 3, 32, 1, 32),
        ((20, 20), 3, 8, 1, 8),
        # One position is that of every stride above the side.
        ((20, 20), 3, 32, 1, 32),
        ((90, 120), 3, 6, 1, 6),
        ((224, 224), 14, 14, 0, 14),
        # Patches round down.
        ((90, 122), 4, 4, 0, 4),
        ((96, 96), 5, 1, 0, 1),
    ],
)
def test_output_strides_are_those_of_the_layers(
    size: tuple[int, int], kernel: int, stride: int, padding: int, expected: int
) -> None:
    layer = nn.Conv2d(3, 4, kernel, stride, padding, device="meta")
    _, _, rows, columns = layer(torch.empty(1, 3, *size, device="meta")).shape
    assert _output_stride(size, (rows, columns)) == expected


def test_laying_a_network_out_draws_no_random_numbers(tiny: Config) -> None:
    before = torch.get_rng_state()
    candidates(tiny, 6)
    assert torch.equal(torch.get_rng_state(), before)


# ---- Multiply-adds


def plain_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """By the formula, layer by layer, from the shapes that a real forward passes along."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            rows, columns = layer.kernel_size
            taps = layer.in_channels // layer.groups * rows * columns
            total += output.numel() * taps
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    handles = [layer.register_forward_hook(count) for layer in module.modules()]
    with torch.inference_mode():
        module.eval()(torch.zeros(shape))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 8 * 3 * 9 * 120),
        (nn.Conv2d(3, 8, 3, stride=2), (1, 3, 11, 11), 8 * 3 * 9 * 25),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), (1, 8, 5, 7), 8 * 9 * 35),
        (nn.Conv2d(6, 4, (1, 5), groups=2), (1, 6, 3, 9), 4 * 3 * 5 * 15),
        (nn.Linear(7, 5), (1, 7), 35),
        (nn.BatchNorm2d(3), (1, 3, 4, 4), 0),
        (nn.AvgPool2d(2), (1, 3, 4, 4), 0),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 4, 4), 0),
    ],
)
def test_multiply_adds_of_a_layer_are_those_of_its_formula(
    layer: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    found, (output,) = macs.macs_and_shapes(layer.to("meta"), shape)
    assert found == expected
    assert output == tuple(layer(torch.empty(shape, device="meta")).shape)


def test_rows_cost_what_a_real_network_does(tiny: Config) -> None:
    from mess.networks.backbones import build_backbone

    rows = candidates(tiny, 6)
    backbone = build_backbone(tiny.backbone, 6).eval()
    for row in rows:
        body = nn.Sequential(*backbone.blocks[: backbone.names.index(row.block) + 1])
        with torch.inference_mode():
            features = body(torch.zeros(1, 3, 32, 48))
        head = (
            backbone.head
            if row.architecture is None
            else build_exit(row.architecture, features.shape[1], 6, HeadOptions())
        )
        assert row.channels == features.shape[1]
        assert row.backbone_macs == plain_macs(body, (1, 3, 32, 48))
        assert row.exit_macs == plain_macs(head, tuple(features.shape))
        assert row.params == sum(p.numel() for p in head.parameters())
        assert row.backbone_params == sum(p.numel() for p in body.parameters())


def test_tracing_leaves_a_module_as_it_was() -> None:
    layers = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Dropout()
    module = nn.Sequential(*layers).to("meta")
    for training in (True, False):
        module.train(training)
        macs.macs_and_shapes(module, (1, 1, 2, 2))
        assert module.training is training
        assert not any("forward" in vars(layer) for layer in layers)


def test_what_replaces_a_free_layer_is_counted() -> None:
    convolution, norm = nn.Conv2d(1, 1, 3, device="meta"), nn.BatchNorm2d(1, device="meta")
    norm.forward = convolution.forward
    assert macs.macs_and_shapes(norm, (1, 1, 3, 3)) == (9, ((1, 1, 1, 1),))
