"""MACs of per-pixel early exits: Deep Layer Cascade on exits of this network (MESS paper, §6.2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.cascade.receptive_field import Reach, chain, macs_on_map
from mess.networks.network import OverprovisionedNetwork


@dataclass(frozen=True)
class CascadeMacs:
    """What an instance with exits e1, e2, ... en computes when pixels leave one by one.

    The path to e1 and e1 itself are computed whole. After it, a position of a layer is computed
    where a pixel needs it that is still active at any later exit, and once for all of them. An
    exit's own layers are computed where the pixels need them that have not left before it.

    first: MACs of e1's path. heads, segments: of e2 ... en, the exit and the backbone before it,
    back to the exit before. whole: MACs of the whole instance.
    """

    first: int
    heads: tuple[Reach, ...]
    segments: tuple[Reach, ...]
    whole: int

    @classmethod
    def of(
        cls, network: OverprovisionedNetwork, exits: Sequence[str], size: tuple[int, int]
    ) -> CascadeMacs:
        """For exits from shallow to deep, on images of size (H, W)."""
        points = [network.point(exit_id) for exit_id in exits]
        if len(exits) < 2 or points != sorted(points):
            raise ValueError(f"a cascade has two exits or more, from shallow to deep, got {exits}")
        to_first, shape = macs_on_map(chain(network, 0, points[0]), (3, *size))
        own, _ = macs_on_map(network.exit_module(exits[0]), shape)
        first = whole = to_first + own
        heads, segments = [], []
        for (start, end), exit_id in zip(itertools.pairwise(points), exits[1:], strict=True):
            segment, head = chain(network, start, end), network.exit_module(exit_id)
            segments.append(Reach.of(segment, shape))
            between, shape = macs_on_map(segment, shape)
            heads.append(Reach.of(head, shape))
            own, _ = macs_on_map(head, shape)
            whole += between + own
        return cls(first, tuple(heads), tuple(segments), whole)

    def count(self, active: Sequence[NDArray[np.bool_]]) -> NDArray[np.int64]:
        """MACs of each image, (B,).

        `active` are, for e2 ... en, the native positions that have left at none of the exits
        before, (B, h, w).
        """
        parts = list(zip(self.segments, self.heads, active, strict=True))
        total = np.full(len(active[0]), self.first, np.int64)
        needed: NDArray[np.bool_] | None = None
        for segment, head, active_Bhw in reversed(parts):
            own, features = head.follow(active_Bhw.reshape(len(active_Bhw), -1))
            if needed is not None:
                features |= needed
            between, needed = segment.follow(features)
            total += own + between
        return total
