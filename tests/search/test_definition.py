"""The plain definition: exits, rates, mIoU and every cost against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.definition import Choice, delivered_by, evaluate, evaluate_anytime
from mess.search.problem.front import Front, FrontPoint
from mess.search.problem.tables import Tables
from mess.search.problem.thresholds import grid, separating, thresholds_of
from tests.seeds import seeded

IMAGES = 10


@pytest.fixture
def tables() -> Tables:
    """Three exits at three points; image i has signal i / 16 everywhere and 4 labelled pixels."""
    label = np.tile([3, 1], (IMAGES, 1))
    right = np.array([1, 2, 3])[:, None, None] * np.array([1, 0])
    intersection = np.broadcast_to(right, (3, IMAGES, 2)).astype(np.int32)
    signals = np.broadcast_to(np.arange(IMAGES)[:, None] / 16, (3, IMAGES, 1))
    return Tables(
        exit_ids=("p1-crm1-b0-fcn", "p2-crm1-b0-fcn", "final"),
        point=np.array([1, 2, 3]),
        label=label,
        intersection=intersection,
        predicted=intersection + np.array([0, 1], dtype=np.int32),
        signals=signals.astype(np.float32),
        signal_names=("top1",),
    )


@pytest.fixture
def costs() -> dict[str, Cost]:
    """Powers of ten and two, so that every part shows in the sum."""
    plain = Cost(
        backbone=np.array([0.0, 1000.0, 2000.0, 4000.0]),
        exit=np.array([1.0, 10.0, 100.0]),
        signal=np.zeros((3, 1)),
        answer=np.zeros(3),
        resume=np.zeros(3),
        compared=np.zeros(3),
    )
    latency = Cost(
        backbone=np.array([0.0, 64.0, 128.0, 256.0]),
        exit=np.array([1.0, 2.0, 4.0]),
        signal=np.array([[0.125], [0.25], [0.5]]),
        answer=np.array([8.0, 16.0, 32.0]),
        resume=np.array([0.03125, 0.0625, 512.0]),
        compared=np.array([0.5, 0.25, 512.0]),
    )
    return {"macs": plain, "latency": latency, "params": plain}


# Images 7, 8, 9 leave at the first exit, 3..6 at the second, 0..2 at the last.
CASCADE = (Choice(0, 0, 7 / 16), Choice(1, 0, 2.5 / 16), Choice(2))


def test_paths_rates_and_miou(tables: Tables, costs: dict[str, Cost]) -> None:
    got = evaluate(tables, to_ticks(tables, costs), CASCADE)
    assert got.answer.tolist() == [2, 2, 2, 1, 1, 1, 1, 0, 0, 0]
    assert got.exit_rates == pytest.approx((0.3, 0.4, 0.3))
    # Class 0: hits 3·3 + 4·2 + 3·1 of 30 labelled, nothing extra. Class 1: no hit.
    assert got.miou == pytest.approx((20 / 30 + 0) / 2, abs=1e-12)
    assert got.costs["macs"] == 0.3 * 4111 + 0.4 * 2011 + 0.3 * 1001
    assert got.costs["params"] == 4111
    # Whoever goes past the first exit pays 1/32 for it, past the second 1/16.
    paths = (64 + 1.125 + 8, 128 + 1.15625 + 2.25 + 16, 256 + 1.15625 + 2.3125 + 4 + 32)
    assert got.costs["latency"] == pytest.approx(
        0.3 * paths[0] + 0.4 * paths[1] + 0.3 * paths[2], rel=1e-12
    )


@pytest.mark.parametrize(
    ("threshold", "path"),
    [(0.5 / 16, 64 + 1.125 + 8), (1.5 / 16, 256 + 1.15625 + 4 + 32)],
)
def test_p90_is_reached_at_exactly_nine_tenths(
    tables: Tables, costs: dict[str, Cost], threshold: float, path: float
) -> None:
    configuration = (Choice(0, 0, threshold), Choice(2))
    got = evaluate(tables, to_ticks(tables, costs), configuration, "p90")
    assert got.costs["latency"] == path


def test_a_signal_equal_to_the_threshold_leaves(tables: Tables, costs: dict[str, Cost]) -> None:
    ticks = to_ticks(tables, costs)
    equal = evaluate(tables, ticks, (Choice(0, 0, 9 / 16), Choice(2)))
    above = evaluate(tables, ticks, (Choice(0, 0, np.nextafter(9 / 16, 1)), Choice(2)))
    assert (equal.exit_rates[0], above.exit_rates[0]) == (0.1, 0.0)


def test_an_early_exit_needs_a_policy(tables: Tables, costs: dict[str, Cost]) -> None:
    with pytest.raises(ValueError, match="exit 0 is not the last"):
        evaluate(tables, to_ticks(tables, costs), (Choice(0), Choice(2)))


def test_anytime_deliveries(tables: Tables, costs: dict[str, Cost]) -> None:
    got = evaluate_anytime(tables, to_ticks(tables, costs), (Choice(0), Choice(1), Choice(2)))
    assert [d["latency"] / 1e9 for d in got.delivered] == [
        64 + 1 + 8,
        128 + 1.03125 + 2 + 16,
        256 + 1.03125 + 2.0625 + 4 + 32,
    ]
    assert [d["macs"] for d in got.delivered] == [1001, 2011, 4111]
    assert got.costs == {"macs": 4111, "latency": 295.09375, "params": 4111}
    assert got.exit_mious == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    assert delivered_by(got, "macs", 2011 * IMAGES, IMAGES) == pytest.approx(2 / 6)
    assert delivered_by(got, "macs", 2011 * IMAGES - 1, IMAGES) == pytest.approx(1 / 6)
    assert delivered_by(got, "macs", 1000 * IMAGES, IMAGES) == 0.0


def test_large_macs_stay_whole(tables: Tables, costs: dict[str, Cost]) -> None:
    big = 999_999_999_989.0
    plain = costs["macs"]
    costs["macs"] = Cost(
        backbone=plain.backbone,
        exit=np.array([1, 1, big]),
        signal=plain.signal,
        answer=plain.answer,
        resume=plain.resume,
        compared=plain.compared,
    )
    totals = evaluate(tables, to_ticks(tables, costs), CASCADE).totals
    assert totals["macs"] == 3 * 1001 + 4 * 2002 + 3 * (4002 + int(big))


def test_thresholds_separate_neighbours() -> None:
    near = np.float32(0.1)
    values = np.array([near, np.nextafter(near, np.float32(1)), 0.7, 0.7, 0.0, -0.0], np.float32)
    thresholds = separating(values)
    assert len(thresholds) == 3
    distinct = np.unique(values.astype(np.float64))
    assert (distinct[:-1] < thresholds).all()
    assert (thresholds < distinct[1:]).all()
    assert len(separating(np.full(4, 0.5, np.float32))) == 0


def test_grid_is_a_subset_of_quantiles() -> None:
    thresholds = np.arange(10.0)
    assert grid(thresholds, 2).tolist() == [2.0, 7.0]
    assert grid(thresholds, 10).tolist() == thresholds.tolist()
    assert grid(thresholds, 1).tolist() == [5.0]


def test_ladder_places_every_image(tables: Tables) -> None:
    steps = thresholds_of(tables)
    for threshold, value in enumerate(steps.values[1][0]):
        leaves = tables.signals[1, :, 0].astype(np.float64) >= value
        assert (leaves == (steps.bins[1, 0] > threshold)).all()


def test_front_keeps_what_is_not_dominated_in_any_order() -> None:
    rng = np.random.default_rng(seeded(0))
    drawn = [(int(c), int(m)) for c, m in rng.integers(0, 12, (200, 2))]
    points = [FrontPoint(c, m, order, order) for order, (c, m) in enumerate(drawn)]

    def dominated(p: FrontPoint[int]) -> bool:
        return any(
            q.cost <= p.cost
            and q.miou >= p.miou
            and (q.cost, -q.miou, q.order) < (p.cost, -p.miou, p.order)
            for q in points
        )

    kept = [p for p in points if not dominated(p)]
    for seed in range(5):
        front: Front[int] = Front()
        for index in np.random.default_rng(seeded(seed)).permutation(len(points)):
            front.insert(points[index])
        assert list(front.points) == sorted(kept)
