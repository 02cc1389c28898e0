"""Exit points and the table of candidate exits of a configuration (MESS paper, §4.1-4.2)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from mess.config import BackboneConfig, Config, ExitsConfig
from mess.errors import ConfigError, nearest
from mess.exits import FINAL, ExitArchitecture, architectures
from mess.networks import macs
from mess.networks.backbones import Backbone, build_backbone
from mess.networks.backbones.base import IMAGE
from mess.networks.backbones.checks import run_in_turn
from mess.networks.backbones.heads import (
    DILATED,
    HEADS,
    MIN_HEAD_CHANNELS,
    PAPERS_RATES,
    HeadOptions,
    rates_of_map,
)
from mess.networks.heads import build_exit
from mess.networks.macs import Shape

KEPT = "kept"
TRAINED = "trained"

_SIDES = (
    "Networks that go down and up again need sides that are multiples of their output stride, such "
    "as 8 or 32."
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of exits.parquet. Costs are of one image at the configured size.

    `exit_macs` and `params` are the exit's alone, `backbone_macs` and `backbone_params` those from
    the input to its point. `crm`, `blocks`, `rdi` and `head` are None for the network's own head.
    `skip` names the shallower features that it reads, coarse to fine; `rates` are the dilations of
    a DeepLab head, empty for others. `alive_bytes` are
    those of all float32 tensors that the network still reads behind the point: what stopping there
    has to keep, or to send where it goes on elsewhere.
    """

    exit_id: str
    point: int
    block: str
    crm: int | None
    blocks: int | None
    rdi: bool | None
    head: str | None
    exit_macs: int
    backbone_macs: int
    params: int
    backbone_params: int
    output_stride: int
    channels: int
    skip: tuple[str, ...]
    skip_channels: tuple[int, ...]
    alive_bytes: int
    rates: tuple[int, ...]
    status: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Candidate:
        """A row of exits.parquet, also of earlier versions.

        Their exits read no shallower features, and their DeepLab heads had the papers' rates.
        """
        lists: dict[str, tuple[Any, ...]] = {
            name: tuple(row.get(name) or ()) for name in ("skip", "skip_channels", "rates")
        }
        if row["head"] == "dlb" and "rates" not in row:
            lists["rates"] = PAPERS_RATES
        return cls(**{"alive_bytes": 0, **row, **lists})

    @property
    def path_macs(self) -> int:
        """Backbone up to the exit and the exit."""
        return self.backbone_macs + self.exit_macs

    @property
    def architecture(self) -> ExitArchitecture | None:
        """None for the network's own head."""
        if self.crm is None or self.blocks is None or self.rdi is None or self.head is None:
            return None
        return ExitArchitecture(self.crm, self.blocks, self.rdi, self.head, bool(self.skip))


@dataclass(frozen=True, kw_only=True)
class _Point:
    """An exit point: a block, and what it takes to get there from the input."""

    number: int
    block: str
    macs: int
    params: int
    shape: Shape
    """Of the features, (1, channels, h, w)."""
    alive: Mapping[str, Shape]
    """Shapes of the tensors that the network reads behind the point, by name."""
    finest: int
    """Most rows that features may have which an exit reads besides."""
    before: Mapping[str, Shape]
    """Shapes of what the blocks up to the point give, by name."""

    @cached_property
    def skip(self) -> Mapping[str, Shape]:
        """The shallower features that exits with `skip` read: of each finer size those made last.

        What is made later has seen more of the image, and of one size one is enough. A network
        without skip connections keeps none by itself: there an exit's are kept for its sake.
        """
        return self._finer(self.alive) or self._finer(self.before)

    def _finer(self, features: Mapping[str, Shape]) -> dict[str, Shape]:
        """Of each size between the point's and the finest one name and shape, coarse to fine."""
        by_rows = {
            shape[2]: (name, shape)
            for name, shape in features.items()
            if len(shape) == 4 and self.shape[2] < shape[2] <= self.finest
        }
        return dict(by_rows[rows] for rows in sorted(by_rows))

    @property
    def alive_bytes(self) -> int:
        """Of all alive tensors together, float32."""
        return 4 * sum(math.prod(shape) for shape in self.alive.values())


def equidistant_points(block_macs: Sequence[int], points: int) -> list[int]:
    """Block indices (0-based) of N exit points, the last block included.

    Early point i is the first block whose cumulative cost reaches i/N of the whole (MESS paper,
    §4.1). Points are distinct: a pick that is taken, or is the last block, moves to the nearest
    free earlier block, as it must where the last blocks are very dear.
    """
    blocks = len(block_macs)
    if points > blocks:
        raise ConfigError(f"exits.points = {points}: the backbone has only {blocks} blocks.")
    total = sum(block_macs)
    taken: set[int] = {blocks - 1}
    cumulative = [sum(block_macs[: index + 1]) for index in range(blocks)]
    for i in range(1, points):
        # In integers: a share as a float may miss the block that reaches it exactly.
        pick = next(k for k in range(blocks) if cumulative[k] * points >= i * total)
        # So on MobileNetV2 at stride 8, N = 6: blocks 10, 13, 14, 15, 16 and 17.
        while pick in taken:
            pick -= 1
        if pick < 0:
            # All before it are taken: the first of those behind.
            pick = min(set(range(blocks)) - taken)
        taken.add(pick)
    return sorted(taken)


def named_points(names: Sequence[str], early: Sequence[str]) -> list[int]:
    """Block indices of the named early points, and the last block."""
    indices = []
    for name in early:
        if name not in names:
            raise ConfigError(f"exits.points: no block is named {name!r}; {nearest(name, names)}")
        indices.append(list(names).index(name))
    if indices != sorted(set(indices)) or (indices and indices[-1] == len(names) - 1):
        raise ConfigError(
            f"exits.points = {list(early)}: name early blocks once each, from shallow to deep; the "
            f"last block, {names[-1]!r}, is a point of its own accord."
        )
    return [*indices, len(names) - 1]


def candidates(config: Config, num_classes: int) -> list[Candidate]:
    """Every candidate exit from shallow to deep, the network's own head last.

    Nothing is computed or downloaded: the network is laid out on the meta device. An exit that
    costs too much or leaves too few channels is listed with the reason in `status`.
    """
    backbone = _meta_backbone(config.backbone, num_classes)
    _require_takes(backbone, config, num_classes)
    costs = _costs(backbone, config.data.size)
    points = _points(config, backbone, costs)
    head_macs = costs.head
    # The network without exits: both ways of choosing points end with the last block.
    baseline = points[-1].macs + head_macs
    rows = []
    for point in points:
        for architecture in _architectures(config.exits):
            cost, params, status = _cost(config, num_classes, point, architecture, baseline)
            exit_id = architecture.exit_id(point.number)
            rows.append(_row(point, config, exit_id, architecture, cost, params, status))
    head_params = macs.parameters(backbone.head)
    rows.append(_row(points[-1], config, FINAL, None, head_macs, head_params, KEPT))
    return rows


def require_early_exit(rows: Sequence[Candidate]) -> None:
    """Refuse early points without a candidate, which train for nothing; one point has none early.

    Raises ConfigError that says what excluded them.
    """
    last = rows[-1].point
    left_out = [row for row in rows if row.point < last]
    if any(row.status == KEPT for row in left_out) or not left_out:
        return
    causes: dict[str, list[str]] = {}
    for row in left_out:
        # Of one cause up to the first number, which is the exit's own.
        causes.setdefault(re.split(r"\d", row.status)[0], []).append(
            f"{row.exit_id}: {row.status.removeprefix('excluded: ')}"
        )
    nearest_misses = (
        f"{len(told)} as {min(told, key=lambda text: (len(text), text))}"
        for told in causes.values()
    )
    raise ConfigError(
        f"none of {len(left_out)} candidate exits before the last point is left to train, "
        f"{'; '.join(nearest_misses)}. "
        "Raise the limit or offer cheaper exits; exits.points = 1 has the final exit alone."
    )


def _meta_backbone(config: BackboneConfig, num_classes: int) -> Backbone:
    """The backbone without memory or weights."""
    with torch.device("meta"):
        return build_backbone(config.model_copy(update={"weights": "none"}), num_classes)


def _require_takes(backbone: Backbone, config: Config, num_classes: int) -> None:
    """Refuse what would fail in training or later: sizes, changes in place, another head."""
    outputs, title = config.backbone.channels(num_classes), f"backbone {config.backbone.name!r}"
    sizes = {"training crops (data.crop)": config.data.crop_size, "images": config.data.size}
    for what, (height, width) in sizes.items():
        fault = f"{title} does not take {what} of {height}×{width} pixels"
        image = torch.empty(1, 3, height, width, device="meta")
        # Tensors of the inference mode do not tell what changes them.
        with torch.inference_mode(False), torch.no_grad():
            logits = run_in_turn(backbone.eval(), image, title, fault, _SIDES)
        if logits.dim() != 4 or logits.shape[1] != outputs:
            raise ConfigError(
                f"the final head of {title} gives {list(logits.shape)}, not logits "
                f"(1, {outputs}, h, w). A factory builds it for as many outputs as it is asked "
                "for: the data set's classes, or the channels that backbone.outputs names."
            )


class _Costs(NamedTuple):
    """MACs of the blocks and the head, and the shapes of all tensors by name."""

    blocks: list[int]
    head: int
    shapes: dict[str, Shape]


def _costs(backbone: Backbone, size: tuple[int, int]) -> _Costs:
    """Of images of this size, which the network takes."""
    shapes: dict[str, Shape] = {IMAGE: (1, 3, *size)}
    block_macs = []
    for block, reads, gives in zip(backbone.blocks, backbone.reads, backbone.gives, strict=True):
        cost, found = macs.macs_and_shapes(block, *(shapes[name] for name in reads))
        block_macs.append(cost)
        shapes |= dict(zip(gives, found, strict=True))
    read = (shapes[name] for name in backbone.head_reads)
    head_macs, _ = macs.macs_and_shapes(backbone.final, *read)
    return _Costs(block_macs, head_macs, shapes)


def _points(config: Config, backbone: Backbone, costs: _Costs) -> list[_Point]:
    """The exit points from shallow to deep, chosen by cost or by name."""
    block_macs, shapes = costs.blocks, costs.shapes
    params = [macs.parameters(block) for block in backbone.blocks]
    wanted = config.exits.points
    if isinstance(wanted, int):
        indices = equidistant_points(block_macs, wanted)
    else:
        indices = named_points(backbone.names, wanted)
    last = len(backbone.blocks) - 1
    return [
        _Point(
            number=number,
            block=backbone.names[index],
            macs=sum(block_macs[: index + 1]),
            params=sum(params[: index + 1]),
            shape=shapes[backbone.names[index]],
            alive={n: shapes[n] for n in backbone.alive(index, last, backbone.head_reads)},
            # Strided convolutions round up.
            finest=math.ceil(config.data.size[0] / config.exits.skip_stride),
            before={name: shapes[name] for given in backbone.gives[: index + 1] for name in given},
        )
        for number, index in enumerate(indices, start=1)
    ]


def _architectures(config: ExitsConfig) -> list[ExitArchitecture]:
    for head in config.heads:
        if head not in HEADS:
            raise ConfigError(f"exits.heads: no head is named {head!r}; {nearest(head, HEADS)}")
    return architectures(config.crm, config.blocks, config.rdi, config.heads, config.skips)


def _cost(
    config: Config, num_classes: int, point: _Point, architecture: ExitArchitecture, baseline: int
) -> tuple[int, int, str]:
    """MACs and parameters of an exit, 0 where it cannot be built; and its status."""
    channels = point.shape[1]
    width = channels // architecture.crm
    if width < MIN_HEAD_CHANNELS:
        status = (
            f"excluded: channel reduction by {architecture.crm} leaves {width} channels, "
            f"a head needs {MIN_HEAD_CHANNELS}"
        )
        return 0, 0, status
    shapes = [point.shape]
    if architecture.skip:
        if not point.skip:
            return (
                0,
                0,
                (
                    "excluded: no features before it are finer, down to "
                    f"exits.skip_stride = {config.exits.skip_stride}"
                ),
            )
        shapes += point.skip.values()
    rates = _rates(config.exits, architecture, point)
    options = HeadOptions(width=config.exits.dlb_channels, rates=rates)
    with torch.device("meta"):
        module = build_exit(
            architecture, channels, num_classes, options, [shape[1] for shape in shapes[1:]]
        )
    cost, _ = macs.macs_and_shapes(module, *shapes)
    status = _status(config.exits, cost / baseline, (point.macs + cost) / baseline)
    return cost, macs.parameters(module), status


def _status(limits: ExitsConfig, cost: float, path: float) -> str:
    """Kept, or why not; both costs in baselines."""
    if path > limits.max_exit_cost:
        return (
            f"excluded: its path costs {path:.2f} baselines, "
            f"max_exit_cost is {limits.max_exit_cost:g}"
        )
    if limits.max_exit_share is not None and cost > limits.max_exit_share:
        return (
            f"excluded: it costs {cost:.2f} baselines alone, "
            f"max_exit_share is {limits.max_exit_share:g}"
        )
    return KEPT


def _rates(
    exits: ExitsConfig, architecture: ExitArchitecture | None, point: _Point
) -> tuple[int, ...]:
    """Of an exit's head; empty for one that does not dilate."""
    if architecture is None or architecture.head not in DILATED:
        return ()
    if exits.dlb_rates == "papers":
        return PAPERS_RATES
    if exits.dlb_rates == "map":
        return rates_of_map((point.shape[2], point.shape[3]))
    return exits.dlb_rates


def _row(
    point: _Point,
    config: Config,
    exit_id: str,
    architecture: ExitArchitecture | None,
    exit_macs: int,
    params: int,
    status: str,
) -> Candidate:
    skip = point.skip if architecture is not None and architecture.skip else {}
    # Logits have the size of the finest features that are read.
    *_, rows, columns = max((point.shape, *skip.values()), key=lambda shape: shape[2])
    return Candidate(
        exit_id=exit_id,
        point=point.number,
        block=point.block,
        crm=architecture.crm if architecture else None,
        blocks=architecture.blocks if architecture else None,
        rdi=architecture.rdi if architecture else None,
        head=architecture.head if architecture else None,
        exit_macs=exit_macs,
        backbone_macs=point.macs,
        params=params,
        backbone_params=point.params,
        output_stride=_output_stride(config.data.size, (rows, columns)),
        channels=point.shape[1],
        skip=tuple(skip),
        skip_channels=tuple(shape[1] for shape in skip.values()),
        alive_bytes=point.alive_bytes,
        rates=_rates(config.exits, architecture, point),
        status=status,
    )


def _output_stride(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """The stride at which images of `size` (height, width) have features of `grid` positions.

    Most are powers of two, and rounded up, as by strided convolutions; those of patches are rounded
    down. Where none fits exactly it is the nearest to the height's.
    """
    sides = range(1, max(size) + 1)
    powers = [2**exponent for exponent in range(max(size).bit_length() + 1)]
    for strides, rounded in ((powers, math.ceil), (powers, math.floor), (sides, math.ceil)):
        for stride in strides:
            if all(rounded(side / stride) == n for side, n in zip(size, grid, strict=True)):
                return stride
    return max(round(size[0] / grid[0]), 1)
