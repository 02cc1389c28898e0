"""Small random caches for the searches: ties, absent classes, empty images, bad exits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from mess.search.problem.costs import Cost
from mess.search.problem.tables import Tables

Cache = tuple[Tables, dict[str, Cost]]
MakeCache = Callable[..., Cache]


def tables(
    rng: np.random.Generator,
    points: int,
    per_point: int,
    images: int,
    classes: int,
    signals: int,
    twins: bool,
) -> Tables:
    names, point = ["final"], [points]
    for p in range(1, points + 1):
        for index in range(rng.integers(0, per_point + 1)):
            names.append(f"p{p}-crm{2**index}-b0-fcn")
            point.append(p)
    # The order of exits in a table says nothing about their depth.
    order = rng.permutation(len(names))
    shape = (len(names), images, classes)

    label = rng.integers(0, 9, (images, classes))
    label[:, rng.random(classes) < 0.2] = 0
    label[rng.random(images) < 0.15] = 0
    if not label.any():
        label[rng.integers(images), rng.integers(classes)] = 5
    intersection = np.floor(rng.random(shape) ** 0.5 * (label + 1)).clip(max=label)
    intersection[rng.random(len(names)) < 0.1] = 0
    predicted = intersection + rng.integers(0, 3, shape) * (rng.random(shape) < 0.5)
    observed = rng.random((*shape[:2], signals))
    if rng.random() < 0.6:
        observed = np.rint(observed * 3) / 3
    if twins:
        source = rng.integers(0, min(3, len(names)), len(names))
        intersection, predicted = intersection[source], predicted[source]
        # Where all exits are right alike, thresholds tie as well.
        alike = rng.random(images) < 0.5
        for counts in (intersection, predicted):
            counts[:, alike] = counts[0, alike]
    return Tables(
        exit_ids=tuple(names[i] for i in order),
        point=np.array(point)[order],
        label=label,
        intersection=intersection.astype(np.int32),
        predicted=predicted.astype(np.int32),
        signals=observed.astype(np.float32),
        signal_names=tuple(f"s{k}" for k in range(signals)),
    )


def cost(rng: np.random.Generator, tables: Tables, unit: float, latency: bool, twins: bool) -> Cost:
    """Costs on a coarse grid, so that different configurations cost the same now and then."""
    exits, signals = tables.exits, len(tables.signal_names)

    def parts(below: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return rng.integers(0, 2 if twins else below, shape).astype(np.float64) * unit

    backbone = parts(9, (tables.points,))
    backbone[0] = max(backbone[0], unit)  # no path costs nothing
    return Cost(
        backbone=np.append(0.0, backbone.cumsum()),
        exit=parts(5, (exits,)),
        signal=parts(3, (exits, signals)) * latency,
        answer=parts(3, (exits,)) * latency,
        resume=parts(3, (exits,)) * latency,
        compared=parts(3, (exits,)) * latency,
    )


@pytest.fixture(scope="session")
def make_cache() -> MakeCache:
    """A function that draws tables and costs from a generator; `twins` makes many exits equal."""

    def make(
        rng: np.random.Generator,
        *,
        points: int = 3,
        per_point: int = 2,
        images: int = 6,
        classes: int = 3,
        signals: int = 2,
        twins: bool = False,
    ) -> Cache:
        drawn = tables(rng, points, per_point, images, classes, signals, twins)
        return drawn, {
            "macs": cost(rng, drawn, 1000, False, twins),
            # Multiples of 1/64 ms are exact in binary and in picoseconds.
            "latency": cost(rng, drawn, 1 / 64, True, twins),
            "params": cost(rng, drawn, 10, False, twins),
        }

    return make
