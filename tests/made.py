"""A run whose predictions are known by construction, so that no test hangs on what was learned.

Images are of cells, one a pixel of the network's maps. A cell of class c has a grey colour moved
along the axis of c by its clarity, in (0.5, 1]; a cell of the background is moved less than 0.3.
The network hands the colours on unchanged, and each exit says "class c" where the clarity is above
a bar of its own. Bars fall with depth: what an exit gets right, every better one gets right too,
and images differ in how much of them is clear. No comparison is near a tie.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mess.common.normalisation import IMAGENET
from mess.data.shapes import CLASSES
from mess.exits import FINAL, parse_exit_id
from mess.networks.backbones.small import ResidualBlock
from mess.networks.network import OverprovisionedNetwork

STRIDE = 8
"""Pixels of a cell's side: small_resnet's output stride."""

GREY, REACH = 128, 100
"""Level of the background's colour, and of clarity 1 above or below it."""

AXES = ((0, 1), (0, -1), (1, 1), (1, -1), (2, 1))
"""Channel and direction of the classes after the background."""

LIFT = 4.0
"""Added to normalised colours, which rectifiers would cut off below 0."""

SHARPNESS = 8.0
"""Logit by clarity."""

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def write_images(
    root: Path, counts: dict[str, int], size: tuple[int, int], rng: np.random.Generator
) -> None:
    """A folder data set with so many images a split, named after `calibration` where it is val."""
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        # Every split has the whole range, in any order.
        difficulties = (rng.permutation(count) + 0.5) / count
        for number, difficulty in enumerate(difficulties):
            image, mask = draw(rng, float(difficulty), size)
            name = f"{'calibration' if split == 'val' else split}-{number:05d}.png"
            Image.fromarray(image).save(root / split / "images" / name)
            Image.fromarray(mask).save(root / split / "masks" / name)
    (root / "classes.json").write_text(json.dumps(CLASSES.to_json()))


def draw(rng: np.random.Generator, difficulty: float, size: tuple[int, int]) -> Pair:
    """Two to four overlapping rectangles of cells; the harder, the less clear some of them are."""
    shape = (size[0] // STRIDE, size[1] // STRIDE)
    labels = np.zeros(shape, np.int64)
    for label in rng.choice(np.arange(1, CLASSES.num_classes), rng.integers(2, 5), replace=False):
        height, width = rng.integers(2, 5, 2)
        top = rng.integers(0, shape[0] - height + 1)
        left = rng.integers(0, shape[1] - width + 1)
        labels[top : top + height, left : left + width] = label
    lowest = round(REACH * (1.0 - 0.45 * difficulty**0.5))
    levels = np.where(
        labels > 0, rng.integers(lowest, REACH + 1, shape), rng.integers(0, 30, shape)
    )
    axes = np.where(labels > 0, labels, rng.integers(1, CLASSES.num_classes, shape))
    colours = np.full((*shape, 3), GREY, np.int64)
    for label, (channel, direction) in enumerate(AXES, start=1):
        colours[axes == label, channel] += direction * levels[axes == label]
    image, mask = enlarged(colours.astype(np.uint8)), enlarged(labels.astype(np.uint8))
    mask[: STRIDE // 2, : STRIDE // 2] = CLASSES.ignore_index
    return image, mask


def enlarged(cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cells.repeat(STRIDE, axis=0).repeat(STRIDE, axis=1)


def bar(exit_id: str) -> float:
    """The clarity above which an exit sees a class; midway between two levels of the images."""
    if exit_id == FINAL:
        return 0.505
    point, architecture = parse_exit_id(exit_id)
    worse = 3 * (architecture.crm > 1) + (architecture.blocks == 0)
    return 0.505 + 0.07 * (4 - point) + 0.01 * worse


def make_weights(network: OverprovisionedNetwork) -> None:
    """Give a small_resnet and its exits the weights that the head of this file describes."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                pass_on(module)
            elif isinstance(module, nn.BatchNorm2d):
                change_nothing(module)
        (stem, *_) = network.backbone.blocks
        lift(stem)
        for module in network.modules():
            if isinstance(module, ResidualBlock):
                *_, last = norms(module.body)
                last.weight.zero_()
        for exit_id in (*network.exits, FINAL):
            *_, head = convolutions(network.exit_module(exit_id))
            weight, bias = readout(bar(exit_id))
            head.weight.copy_(0 * head.weight)
            head.weight[:, :3, 0, 0] = weight
            assert head.bias is not None
            head.bias.copy_(bias)


def lift(stem: nn.Module) -> None:
    first, *_ = norms(stem)
    first.bias[:3] = LIFT


def pass_on(conv: nn.Conv2d) -> None:
    """The first three channels of the middle pixel, and zeros."""
    conv.weight.zero_()
    row, column = (side // 2 for side in conv.kernel_size)
    for channel in range(3):
        conv.weight[channel, channel, row, column] = 1.0


def change_nothing(norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
    norm.weight.fill_(1.0)
    norm.bias.zero_()


def readout(bar: float) -> tuple[Tensor, Tensor]:
    """Weight (classes, 3) and bias (classes,) by which class c has SHARPNESS * (clarity - bar)."""
    weight, bias = torch.zeros(CLASSES.num_classes, 3), torch.zeros(CLASSES.num_classes)
    for label, (channel, direction) in enumerate(AXES, start=1):
        per_level = direction * SHARPNESS / REACH
        weight[label, channel] = per_level * 255 * IMAGENET.std[channel]
        level_of_0 = 255 * (IMAGENET.mean[channel] - LIFT * IMAGENET.std[channel])
        bias[label] = per_level * (level_of_0 - GREY) - SHARPNESS * bar
    return weight, bias


def convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (part for part in module.modules() if isinstance(part, nn.Conv2d))


def norms(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (part for part in module.modules() if isinstance(part, nn.BatchNorm2d))
