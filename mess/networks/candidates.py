"""Exit points and the table of candidate exits of a configuration (MESS paper, §4.1-4.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mess.config import BackboneConfig, Config, ExitsConfig
from mess.errors import ConfigError, nearest
from mess.exits import FINAL, ExitArchitecture, architectures
from mess.networks import macs
from mess.networks.backbones import Backbone, build_backbone
from mess.networks.backbones.base import IMAGE
from mess.networks.backbones.heads import HEADS, MIN_HEAD_CHANNELS
from mess.networks.heads import build_exit
from mess.networks.macs import Shape

KEPT = "kept"
TRAINED = "trained"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of exits.parquet. Costs are of one image at the configured size.

    `exit_macs` and `params` are the exit's alone, `backbone_macs` and `backbone_params` those from
    the input to its point. `crm`, `blocks`, `rdi` and `head` are None for the network's own head.
    `skip` names the shallower features that it reads, None where it reads none. `alive_bytes` are
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
    skip: str | None
    skip_channels: int | None
    alive_bytes: int
    status: str

    @property
    def path_macs(self) -> int:
        """Backbone up to the exit and the exit."""
        return self.backbone_macs + self.exit_macs

    @property
    def architecture(self) -> ExitArchitecture | None:
        """None for the network's own head."""
        if self.crm is None or self.blocks is None or self.rdi is None or self.head is None:
            return None
        return ExitArchitecture(self.crm, self.blocks, self.rdi, self.head, self.skip is not None)


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
    finest: float
    """Most rows that features may have which an exit reads besides."""

    @property
    def skip(self) -> str | None:
        """The shallower features that exits with `skip` read; None where none are alive."""
        finer = {
            name: shape[2]
            for name, shape in self.alive.items()
            if len(shape) == 4 and self.shape[2] < shape[2] <= self.finest
        }
        return max(finer, key=lambda name: finer[name], default=None)

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
    points, shapes = _points(config, backbone)
    read = (shapes[name] for name in backbone.head_reads)
    head_macs, _ = macs.macs_and_shapes(backbone.head, *read)
    # The network without exits: both ways of choosing points end with the last block.
    baseline = points[-1].macs + head_macs
    height = config.data.size[0]
    rows = []
    for point in points:
        for architecture in _architectures(config.exits):
            cost, params, status = _cost(config, num_classes, point, architecture, baseline)
            exit_id = architecture.exit_id(point.number)
            rows.append(_row(point, height, exit_id, architecture, cost, params, status))
    head_params = macs.parameters(backbone.head)
    rows.append(_row(points[-1], height, FINAL, None, head_macs, head_params, KEPT))
    return rows


def _meta_backbone(config: BackboneConfig, num_classes: int) -> Backbone:
    """The backbone without memory or weights."""
    with torch.device("meta"):
        return build_backbone(config.model_copy(update={"weights": "none"}), num_classes)


def _points(config: Config, backbone: Backbone) -> tuple[list[_Point], dict[str, Shape]]:
    """The exit points from shallow to deep, chosen by cost or by name; and all shapes by name."""
    shapes: dict[str, Shape] = {IMAGE: (1, 3, *config.data.size)}
    block_macs, params = [], []
    for block, reads, gives in zip(backbone.blocks, backbone.reads, backbone.gives, strict=True):
        cost, found = macs.macs_and_shapes(block, *(shapes[name] for name in reads))
        block_macs.append(cost)
        params.append(macs.parameters(block))
        shapes |= dict(zip(gives, found, strict=True))
    wanted = config.exits.points
    if isinstance(wanted, int):
        indices = equidistant_points(block_macs, wanted)
    else:
        indices = named_points(backbone.names, wanted)
    last = len(backbone.blocks) - 1
    points = [
        _Point(
            number=number,
            block=backbone.names[index],
            macs=sum(block_macs[: index + 1]),
            params=sum(params[: index + 1]),
            shape=shapes[backbone.names[index]],
            alive={n: shapes[n] for n in backbone.alive(index, last, backbone.head_reads)},
            # At half of the image a head would cost more than what its exit saves.
            finest=config.data.size[0] / 4,
        )
        for number, index in enumerate(indices, start=1)
    ]
    return points, shapes


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
        if point.skip is None:
            return 0, 0, "excluded: the network keeps no shallower features that it could read"
        shapes.append(point.alive[point.skip])
    with torch.device("meta"):
        module = build_exit(
            architecture, channels, num_classes, config.exits.dlb_channels,
            *(shape[1] for shape in shapes[1:]),
        )  # fmt: skip
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


def _row(
    point: _Point,
    height: int,
    exit_id: str,
    architecture: ExitArchitecture | None,
    exit_macs: int,
    params: int,
    status: str,
) -> Candidate:
    skip = architecture is not None and architecture.skip
    # Logits have the size of the finest features that are read.
    rows = point.alive[point.skip][2] if skip and point.skip else point.shape[2]
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
        # Strides are powers of two, heights need not be multiples of them.
        output_stride=2 ** round(math.log2(height / rows)),
        channels=point.shape[1],
        skip=point.skip if skip else None,
        skip_channels=point.alive[point.skip][1] if skip and point.skip else None,
        alive_bytes=point.alive_bytes,
        status=status,
    )
