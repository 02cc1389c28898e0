"""Random caches that look like a trained network's: what the searches are timed on.

A model of images and exits, not of pixels. Every image has a difficulty, every exit a capability
that grows with its depth and with the size of its architecture. An exit mistakes what is too
difficult for it: hardly anything on easy images, where early exits are as good as late ones. Part
of the mistakes is common to all exits, part to the exits of a point. Signals are shares of
confident positions of a small map, so they tie, and they know the true error only roughly.

Arrays: E exits, I images, C classes, K signals, N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mess.exits import FINAL
from mess.search.problem.costs import LATENCY, MACS, PARAMS, Cost
from mess.search.problem.tables import Tables

Cache = tuple[Tables, dict[str, Cost]]
Floats = NDArray[np.floating]

PIXELS = 41_000
"""Labelled pixels of an image: 240 × 180 less a border of void."""

POSITIONS = 690
"""Positions of the map whose confident ones a signal counts: 240 × 180 at stride 8."""

BACKBONE_MACS, BACKBONE_PARAMS, BACKBONE_MS = 1_400_000_000, 2_200_000, 29.0

EXIT_SHARES = (0.005, 0.3)
"""MACs of the smallest and the largest architecture, in MACs of the backbone."""

CAPABILITIES = (0.2, 2.2)
"""Of middling exits at the first and at the last point; difficulties are standard normal."""

LARGER = (1.4, 1.0)
"""How much more the largest architecture is capable of than the smallest, at the same points."""

SHARPNESS = 6.0
"""How fast mistakes grow where difficulty passes an exit's capability."""

UNSURE = (0.3, 0.3)
"""Deviations of a signal from what the true error says: common to a point, and its own."""


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """The numbers of everything; `architectures` are candidates a point, `final` comes on top."""

    images: int = 500
    classes: int = 21
    points: int = 6
    architectures: int = 56
    signals: int = 1

    @property
    def exits(self) -> int:
        """Number of exits, E."""
        return self.points * self.architectures + 1


def random_cache(size: CacheSize, seed: int) -> Cache:
    """Tables and costs in MACs, milliseconds and parameters; equal seeds give equal caches."""
    rng = np.random.default_rng(seed)
    point_E = np.append(np.repeat(np.arange(1, size.points + 1), size.architectures), size.points)
    # Of every point the same architectures, from the smallest, 0, to the largest, 1.
    scale_E = np.append(np.tile(np.linspace(0, 1, size.architectures), size.points), 0.5)
    tables = _tables(rng, size, point_E, _capabilities(rng, size, point_E, scale_E))
    return tables, _costs(rng, size, scale_E)


def _capabilities(
    rng: np.random.Generator, size: CacheSize, point_E: NDArray[np.int64], scale_E: Floats
) -> Floats:
    """Depth counts most, then the size of the architecture, then luck; shape (E,)."""
    depth_E = (point_E - 1) / max(size.points - 1, 1)
    capability_E = _between(CAPABILITIES, depth_E**0.7)
    capability_E += _between(LARGER, depth_E) * (scale_E - 0.5)
    capability_E += rng.normal(0, 0.06, size.exits)
    capability_E[-1] = CAPABILITIES[1] + 0.3
    return capability_E


def _labels(rng: np.random.Generator, size: CacheSize) -> NDArray[np.int64]:
    """Labelled pixels of each class, shape (I, C): the first class and a few more an image."""
    shape = (size.images, size.classes)
    popularity_C = -0.7 * np.log(np.arange(1, size.classes + 1))
    # Adding Gumbel noise and taking the largest draws classes without replacement.
    draw_IC = popularity_C + rng.gumbel(size=shape)
    draw_IC[:, 0] = np.inf
    rank_IC = np.argsort(np.argsort(-draw_IC, axis=1), axis=1)
    share_IC = rng.standard_exponential(shape) * (rank_IC < rng.integers(2, 7, (size.images, 1)))
    return np.floor(PIXELS * share_IC / share_IC.sum(axis=1, keepdims=True)).astype(np.int64)


def _tables(
    rng: np.random.Generator, size: CacheSize, point_E: NDArray[np.int64], capability_E: Floats
) -> Tables:
    label_IC = _labels(rng, size)
    shape = label_IC.shape
    difficulty_IC = rng.normal(size=(size.images, 1)) + rng.normal(0, 0.4, shape)
    # What no exit gets right.
    common_IC = 0.03 + 0.3 * _sigmoid(difficulty_IC - 0.5)
    luck_NIC = rng.normal(0, 0.25, (size.points, *shape))
    confused_NIC = _confused(rng, label_IC, size.points)
    seen_NI = rng.normal(0, UNSURE[0], (size.points, size.images))

    intersection = np.empty((size.exits, *shape), dtype=np.int32)
    predicted = np.empty_like(intersection)
    signals = np.empty((size.exits, size.images, size.signals), dtype=np.float32)
    for exit_, capability in enumerate(capability_E):
        at = point_E[exit_] - 1
        excess_IC = difficulty_IC + luck_NIC[at] - capability + rng.normal(0, 0.15, shape)
        wrong_IC = common_IC + (1 - common_IC) * 0.6 * _sigmoid(SHARPNESS * excess_IC)
        intersection[exit_] = np.floor(label_IC * (1 - wrong_IC))
        missed_IC = label_IC - intersection[exit_]
        missed_I1 = missed_IC.sum(axis=1, keepdims=True)
        extra_IC = np.minimum(np.floor(missed_I1 * confused_NIC[at]), missed_I1 - missed_IC)
        predicted[exit_] = intersection[exit_] + extra_IC
        signals[exit_] = _signals(rng, size, missed_I1 / PIXELS, seen_NI[at])
    return Tables(
        exit_ids=(*(f"p{point}-a{e}" for e, point in enumerate(point_E[:-1])), FINAL),
        point=point_E,
        label=label_IC,
        intersection=intersection,
        predicted=predicted,
        signals=signals,
        signal_names=tuple(f"share{k}" for k in range(size.signals)),
        lost=_lost(label_IC, intersection),
    )


def _lost(label_IC: NDArray[np.int64], hits_EIC: NDArray[np.int32]) -> NDArray[np.int32]:
    """Pixels that the last exit gets right and each one wrong, shape (E, I).

    At least what it has more hits, at most what it would have if mistakes were independent of each
    other; three tenths of the way from the one to the other.
    """
    share_IC = hits_EIC[-1] / np.maximum(label_IC, 1)
    lost_EI = np.empty(hits_EIC.shape[:2], dtype=np.int32)
    # Exit by exit: of all at once the intermediate arrays would take gigabytes.
    for exit_, hits_IC in enumerate(hits_EIC):
        least_IC = np.maximum(hits_EIC[-1] - hits_IC, 0)
        more_IC = np.maximum(share_IC * (label_IC - hits_IC) - least_IC, 0)
        lost_EI[exit_] = least_IC.sum(axis=1) + np.floor(0.3 * more_IC.sum(axis=1))
    lost_EI[-1] = 0
    return lost_EI


def _confused(rng: np.random.Generator, label_IC: NDArray[np.int64], points: int) -> Floats:
    """Which classes mistaken pixels go to, shares that sum to 1, shape (N, I, C).

    Mostly the image's others and the first class, seldom one that is not in the image.
    """
    shape = (points, *label_IC.shape)
    weight_NIC = rng.gamma(2, 1, shape) * (label_IC > 0) + 0.2 * (rng.random(shape) < 0.03)
    weight_NIC[:, :, 0] += 1
    return weight_NIC / weight_NIC.sum(axis=2, keepdims=True)


def _signals(
    rng: np.random.Generator, size: CacheSize, wrong_I1: Floats, seen_I: Floats
) -> NDArray[np.float32]:
    """Shares of confident positions, shape (I, K); the later signals are the stricter ones."""
    strictness_K = np.linspace(-0.5, 1.0, size.signals) if size.signals > 1 else np.zeros(1)
    sure_I1 = -1.4 * np.log(wrong_I1 / (1 - wrong_I1)) + seen_I[:, np.newaxis]
    sure_IK = sure_I1 - strictness_K + rng.normal(0, UNSURE[1], (size.images, size.signals))
    return (np.rint(POSITIONS * _sigmoid(sure_IK)) / POSITIONS).astype(np.float32)


def _costs(rng: np.random.Generator, size: CacheSize, scale_E: Floats) -> dict[str, Cost]:
    reach_N = np.arange(size.points + 1) / size.points
    smallest, largest = EXIT_SHARES
    share_E = smallest * (largest / smallest) ** scale_E * rng.lognormal(0, 0.2, size.exits)
    nothing_E, nothing_EK = np.zeros(size.exits), np.zeros((size.exits, size.signals))

    def whole(backbone_N: Floats, exit_E: Floats) -> Cost:
        return Cost(
            backbone=np.rint(backbone_N),
            exit=np.rint(exit_E),
            signal=nothing_EK,
            answer=nothing_E,
            resume=nothing_E,
            compared=nothing_E,
        )

    # Measured times: not quite in proportion to the MACs, with something for every call.
    pace_N = rng.lognormal(0, 0.15, size.points)
    backbone_ms = np.append(0.0, np.cumsum(pace_N / pace_N.sum()) * BACKBONE_MS)
    return {
        MACS: whole(BACKBONE_MACS * reach_N, BACKBONE_MACS * share_E),
        # Deep blocks are wide: most of the parameters sit in the last third.
        PARAMS: whole(BACKBONE_PARAMS * reach_N**2, BACKBONE_PARAMS * share_E),
        LATENCY: Cost(
            backbone=backbone_ms,
            exit=BACKBONE_MS * share_E * rng.lognormal(0, 0.15, size.exits) + 0.05,
            signal=rng.uniform(0.02, 0.1, (size.exits, size.signals)),
            answer=rng.uniform(0.1, 0.2, size.exits),
            resume=rng.uniform(0.0, 0.05, size.exits),
            compared=nothing_E,
        ),
    }


def _between(ends: tuple[float, float], x: Floats) -> Floats:
    return ends[0] + (ends[1] - ends[0]) * x


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))
