"""The overprovisioned network: a backbone with every kept candidate exit attached.

Shapes: B images, C channels or classes, H×W pixels of the input, h×w of a feature map.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from mess.common.seeds import derive
from mess.config import Config
from mess.exits import FINAL, ExitArchitecture, parse_exit_id
from mess.networks.backbones import Backbone, build_backbone
from mess.networks.backbones.base import IMAGE, Span
from mess.networks.backbones.heads import HeadOptions
from mess.networks.backbones.outputs import channels_of
from mess.networks.candidates import KEPT, TRAINED, Candidate
from mess.networks.heads import build_exit

M = TypeVar("M", bound=nn.Module)


class OverprovisionedNetwork(nn.Module):
    """Backbone, its own head and all candidate exits.

    `points` are the block indices of the exit points, the last block included; `exits` maps exit
    identifiers to modules, `final` excepted: that one is the backbone's head. `skips` names, by
    exit point (1-based), the shallower features that its exits with `skip` read, coarse to fine.
    """

    def __init__(
        self,
        backbone: Backbone,
        points: Sequence[int],
        exits: dict[str, nn.Module],
        skips: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.points = tuple(points)
        self.exits = nn.ModuleDict(exits)
        self._skips = dict(skips or {})

    @property
    def point_names(self) -> tuple[str, ...]:
        """The blocks, and so the features, at the exit points."""
        return tuple(self.backbone.names[index] for index in self.points)

    @property
    def is_chain(self) -> bool:
        """Whether one tensor is alive at a time, whatever exits an instance has."""
        return self.backbone.is_chain and not self._skips

    def span(self, start: int, end: int) -> Span:
        """The blocks after point `start` up to point `end` (1-based; 0 is the input)."""
        return self.backbone.span(self._blocks_until(start), self._blocks_until(end))

    def alive(self, point: int, until: int, exits: Iterable[str]) -> tuple[str, ...]:
        """Names of the tensors that are still read after `point`.

        By the blocks up to point `until`, or by `exits`: what has to be kept, or sent elsewhere,
        where a network stops at `point` and goes on.
        """
        further = {name for exit_id in exits for name in self.reads(exit_id)}
        return self.backbone.alive(
            self._blocks_until(point) - 1, self._blocks_until(until) - 1, further
        )

    def _blocks_until(self, point: int) -> int:
        return 0 if point == 0 else self.points[point - 1] + 1

    def exit_module(self, exit_id: str) -> nn.Module:
        """The exit's module; the backbone's own for `final`."""
        return self.backbone.final if exit_id == FINAL else self.exits[exit_id]

    def point(self, exit_id: str) -> int:
        """The exit point (1-based) of an exit."""
        return len(self.points) if exit_id == FINAL else parse_exit_id(exit_id)[0]

    def reads(self, exit_id: str) -> tuple[str, ...]:
        """Names of the tensors that an exit takes, in order."""
        if exit_id == FINAL:
            return self.backbone.head_reads
        point, architecture = parse_exit_id(exit_id)
        own = self.point_names[point - 1]
        return (own, *self._skips[point]) if architecture.skip else (own,)

    def features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """All that exits read, (B, C, h, w) each by name, from one run of the backbone."""
        skips = (name for names in self._skips.values() for name in names)
        wanted = {*self.point_names, *self.backbone.head_reads, *skips}
        # Not copied: blocks change nothing in place, which `BackboneContract` tests.
        return self.span(0, len(self.points))({IMAGE: image_BCHW}, wanted)

    def logits(self, exit_id: str, features: Mapping[str, Tensor]) -> Tensor:
        """Of one exit at native resolution, (B, classes, h, w), from `features`."""
        return self.exit_module(exit_id)(*(features[name] for name in self.reads(exit_id)))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits of the final exit at native resolution, (B, classes, h, w)."""
        return self.backbone(image_BCHW)


def build_network(
    config: Config,
    rows: Iterable[Candidate],
    num_classes: int,
    class_names: Sequence[str] | None = None,
) -> OverprovisionedNetwork:
    """The network of a configuration, newly initialised from its seed.

    Each exit draws from a stream of its own, so the exits around it do not change its start.
    `class_names` are the data set's; where `backbone.outputs` is set they say which channel of the
    network is which class, and ConfigError is raised where they do not fit.
    """
    rows, outputs = list(rows), config.backbone.outputs
    # Drawn on the CPU whatever trains them: a GPU's generator would start another network.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "backbone"))
        backbone = build_backbone(config.backbone, num_classes)
    if outputs is not None:
        if class_names is None:
            raise ValueError("a network with backbone.outputs needs the names of the classes")
        backbone.select_outputs(channels_of(outputs, class_names))
    blocks = {row.point: backbone.names.index(row.block) for row in rows}
    built = [row for row in rows if row.status in (KEPT, TRAINED)]
    exits = {
        row.exit_id: seeded_exit(
            config,
            row.exit_id,
            row.architecture,
            row.channels,
            num_classes,
            rates=row.rates,
            skip_channels=row.skip_channels,
        )
        for row in built
        if row.architecture is not None
    }
    points = [blocks[point] for point in sorted(blocks)]
    skips = {row.point: row.skip for row in built if row.skip}
    network = OverprovisionedNetwork(backbone, points, exits, skips)
    return fast_layout(network)


def seeded_exit(
    config: Config,
    name: str,
    architecture: ExitArchitecture,
    channels: int,
    num_classes: int,
    *,
    rates: tuple[int, ...] = (),
    skip_channels: Sequence[int] = (),
) -> nn.Module:
    """An exit whose initialisation depends on the seed and its name alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "exit", name))
        options = HeadOptions(width=config.exits.dlb_channels, rates=rates)
        return build_exit(architecture, channels, num_classes, options, skip_channels)


def fast_layout(module: M) -> M:
    """Channels last: convolutions of CPUs and of tensor cores are up to twice as fast with it."""
    return _convert(module, torch.channels_last)


def frozen(module: M) -> M:
    """Put `module` into eval mode without gradients: batch statistics stay as they are."""
    module.eval()
    module.requires_grad_(False)
    return module


def export_copy(module: M) -> M:
    """A copy on the CPU in eval mode, channels first."""
    return frozen(_convert(copy.deepcopy(module).cpu(), torch.contiguous_format))


def _convert(module: M, layout: torch.memory_format) -> M:
    # torch's own signature leaves this overload of `to` out.
    return module.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
