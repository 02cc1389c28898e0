"""Lost pixels are bounded on images that chose nothing, in an order that was fixed before."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from mess.errors import CacheError, ConfigError, DataError
from mess.search.exact.cover import collect
from mess.search.exact.resolution import EXACT
from mess.search.exact.workers import Workers
from mess.search.guarantees.bounded_mean import betting_bound
from mess.search.guarantees.certify import certify_fresh
from mess.search.guarantees.claims import Picked
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.lost_pixels import (
    LostCertificate,
    certify_lost,
    halves,
    lost_shares,
)
from mess.search.guarantees.methods import FRESH, SPLIT
from mess.search.guarantees.picking import margins_of, picks, whole_network
from mess.search.problem.costs import to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from tests.search.test_realistic import network
from tests.seeds import seeded

ONE = Workers(1)

CLASSES = [f"class {index}" for index in range(20)]

CHEAPEST = Request(target="macs", max_exits=2)


def goal_of(seed: int, request: Request = CHEAPEST, images: np.ndarray | None = None) -> Goal:
    tables, costs = network(seeded(seed) % 1000)
    tables = tables if images is None else tables.subset(images)
    return Goal.of(tables, to_ticks(tables, costs), request)


def shares_of(goal: Goal, picked: Picked) -> np.ndarray:
    """The lost share of each image that has labelled pixels, image by image."""
    found, tables, shares = goal.evaluate(picked.configuration), goal.tables, []
    assert tables.lost is not None
    for image in range(tables.images):
        exit_ = picked.configuration[found.answer[image]].exit
        labelled = int(tables.label[image].sum())
        if labelled:
            shares.append(int(tables.lost[exit_, image]) / labelled)
    return np.array(shares)


def test_a_group_loses_the_mean_of_its_labelled_images() -> None:
    goal = goal_of(0)
    label = goal.tables.label.copy()
    hits, predicted = goal.tables.intersection.copy(), goal.tables.predicted.copy()
    lost = np.array(goal.tables.lost)
    # Nothing is labelled of image 3, nor of the whole of group 4.
    for image in (3, 4, 14, 24, 34, 44, 54):
        label[image], hits[:, image], lost[:, image] = 0, 0, 0
    tables = replace(goal.tables, label=label, intersection=hits, predicted=predicted, lost=lost)
    names = [f"g{image % 10}" for image in range(60)]
    exit_I = np.random.default_rng(seeded(0)).integers(tables.exits, size=60)
    expected = []
    for group in ("g0", "g1", "g2", "g3", "g5", "g6", "g7", "g8", "g9"):
        shares = [
            lost[exit_I[image], image] / label[image].sum()
            for image in range(60)
            if names[image] == group and label[image].sum()
        ]
        expected.append(np.mean(shares))
    found = lost_shares(tables, exit_I, Groups.of(names))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="no lost pixels"):
        lost_shares(replace(tables, lost=None), exit_I, Groups.of(names))


def test_halves_keep_groups_whole_and_hang_on_the_seed_alone() -> None:
    groups = Groups.of([f"g{image % 13}" for image in range(60)])
    searched, certifies = halves(groups, 5)
    assert sorted([*searched, *certifies]) == list(range(60))
    of_searched, of_others = groups.subset(searched), groups.subset(certifies)
    assert (len(of_searched), len(of_others)) == (6, 7)
    assert not set(of_searched.names) & set(of_others.names)
    np.testing.assert_array_equal(halves(groups, 5)[0], searched)
    assert any(not np.array_equal(halves(groups, seed)[0], searched) for seed in range(6, 9))


def test_halves_are_drawn_whatever_the_size_of_a_group() -> None:
    """As folds are divided, the largest would always be searched."""
    groups = Groups.of(["large"] * 30 + [f"g{number}" for number in range(15)])
    seen = sum(0 in halves(groups, seed)[0] for seed in range(400))
    # 200 are expected; five standard deviations are 50.
    assert 150 <= seen <= 250


def test_too_few_groups_to_divide_are_refused() -> None:
    with pytest.raises(DataError, match="60 images in 11 groups.*at least 12.*--certify"):
        halves(Groups.of([str(image % 11) for image in range(60)]), 0)
    searched, certifies = halves(Groups.of([str(image % 12) for image in range(60)]), 0)
    assert len(searched) == len(certifies) == 30


def halves_of(seed: int, request: Request = CHEAPEST) -> tuple[Goal, Goal]:
    """The question on 30 images that are searched, and on 30 others."""
    return goal_of(seed, request, np.arange(30)), goal_of(seed, request, np.arange(30, 60))


def certified(searched: Goal, there: Goal, limit: float, confidence: float) -> LostCertificate:
    groups = Groups.alone(there.tables.images)
    return certify_lost(searched, there, groups, limit, confidence, seed=3, workers=ONE)


def bound_of(there: Goal, picked: Picked, confidence: float) -> float:
    """In the order that the seed gives."""
    shares = shares_of(there, picked)
    order = np.random.default_rng([3, 0x6F72646572]).permutation(len(shares))
    return betting_bound(shares[order], confidence)


def test_the_front_is_tested_in_order_up_to_the_first_that_fails() -> None:
    """By hand: the points that lose little on the searched images, one bound after the other."""
    confidence, only_whole = 0.8, set()
    for seed, limit in product(range(6), (0.08, 0.3)):
        searched, there = halves_of(seed)
        whole = whole_network(searched)
        front = [
            (shares_of(searched, Picked(point.payload)).mean(), Picked(point.payload))
            for point in collect(searched, EXACT, ONE)
        ]
        answer, margin = whole, None
        for step in range(41):
            left = limit * (40 - step) / 40
            picked = next((each for share, each in front if share <= limit - left), whole)
            if picked != whole and bound_of(there, picked, confidence) > limit:
                break
            answer, margin = picked, left if picked != whole else None
        found = certified(searched, there, limit, confidence)
        assert (found.certificate.picked, found.certificate.margin) == (answer, margin)
        assert found.share == pytest.approx(shares_of(there, answer).mean(), rel=1e-12)
        if answer != whole:
            assert found.share < found.bound <= limit
            assert found.bound == bound_of(there, answer, confidence)
        else:
            assert found.bound == found.share == found.hoeffding_bentkus == 0
        only_whole.add(answer == whole)
    # Both were seen, so that neither is compared in vain.
    assert only_whole == {True, False}


def test_an_accuracy_to_keep_is_certified_besides_by_the_same_picks() -> None:
    """Each of both limits is what stops some: neither is left out."""
    stopped = set()
    for seed in range(10):
        for error, limit in ((0.05, 0.6), (0.6, 0.25)):
            request = replace(CHEAPEST, max_error=error)
            searched, there = halves_of(seed, request)
            whole, margins = whole_network(searched), margins_of(request)
            groups = Groups.alone(30)
            alone = certify_fresh(searched, there.tables, there.ticks, groups, 0.8, ONE)
            answer = None
            for margin, picked in zip(margins, picks(searched, margins, ONE), strict=True):
                lost = picked != whole and bound_of(there, picked, 0.8) > limit
                wrong = alone.margin is None or margin < alone.margin
                if lost or wrong:
                    stopped.add("lost" if lost else "error")
                    break
                answer = picked
            found = certified(searched, there, limit, 0.8)
            assert found.certificate.picked == (answer or whole)
            assert [*found.to_result(CLASSES)["limits"]] == [
                {"max_error": error, "checkpoint": None},
                {"max_lost": limit, "checkpoint": None},
            ]
            assert len(found.to_result(CLASSES)["bounds"]) == 2
    assert stopped == {"lost", "error"}


def test_a_whole_network_that_costs_too_much_is_never_certified() -> None:
    """Though it loses nothing: a limit on another cost than the front's rules it out."""
    whole = goal_of(0).baseline.costs["params"]
    request = replace(CHEAPEST, max_params=0.9 * whole)
    searched, there = halves_of(0, request)
    found = certified(searched, there, 1e-4, 0.99).certificate
    assert searched.affordable(searched.evaluate(found.picked.configuration).totals)
    assert not found.holds
    easy = certified(searched, there, 0.9, 0.8).certificate
    assert searched.affordable(searched.evaluate(easy.picked.configuration).totals)
    assert easy.holds


def test_more_images_are_needed_for_what_is_cheaper() -> None:
    """The last of the answers offered is certified by twice as many of the same, in any order."""
    seen = 0
    for seed in range(8):
        searched, there = halves_of(seed)
        found = certified(searched, there, 0.25, 0.95).certificate
        costs = [cost for cost, _ in found.images_needed]
        images = [number for _, number in found.images_needed]
        assert images == sorted(images)
        assert costs == sorted(costs, reverse=True)
        assert all(cost < found.tested.cost.value for cost in costs)
        assert all(number > 30 for number in images)
        if images:
            more = repeated(there, int(np.ceil(2 * images[-1] / 30)))
            groups = Groups.alone(more.tables.images)
            again = certify_lost(searched, more, groups, 0.25, 0.95, seed=3, workers=ONE)
            assert again.certificate.tested.cost.value <= costs[-1] * (1 + 1e-9)
            seen += 1
    assert seen


def repeated(goal: Goal, times: int) -> Goal:
    """The same images so many times."""
    images = np.tile(np.arange(goal.tables.images), times)
    return Goal.of(goal.tables.subset(images), goal.ticks, goal.request)


def test_of_halves_all_images_are_told_that_it_takes() -> None:
    searched, there = halves_of(1)
    groups = Groups.alone(30)
    whole, half = (
        certify_lost(searched, there, groups, 0.2, 0.95, seed=3, method=method, workers=ONE)
        for method in (SPLIT, FRESH)
    )
    assert half.certificate.images_needed
    for (_, in_all), (_, alone) in zip(
        whole.certificate.images_needed, half.certificate.images_needed, strict=True
    ):
        assert in_all == pytest.approx(2 * alone, abs=2)
    told = whole.to_result(CLASSES)
    assert (told["method"], told["images"], told["searched"]) == ("split", 30, 30)


def test_few_groups_make_only_a_normal_limit_weak() -> None:
    groups = Groups.of([str(image % 10) for image in range(30)])
    for request, strength in ((CHEAPEST, "full"), (replace(CHEAPEST, max_error=0.3), "weak")):
        searched, there = halves_of(2, request)
        found = certify_lost(searched, there, groups, 0.5, 0.9, seed=3, workers=ONE)
        assert found.certificate.strength == strength
        assert found.certificate.groups == 10
    few = Groups.of([str(image % 5) for image in range(30)])
    with pytest.raises(DataError, match="30 images in 5 groups are too few"):
        certify_lost(*halves_of(2), few, 0.5, 0.9, seed=3, workers=ONE)


def test_what_cannot_be_certified_is_refused() -> None:
    searched, there = halves_of(3)
    groups = Groups.alone(30)
    with pytest.raises(ConfigError, match=r"between 0 and 1, got 2; did you mean 0\.02"):
        certify_lost(searched, there, groups, 2, 0.9, seed=3)
    with pytest.raises(ConfigError, match="a confidence lies between"):
        certify_lost(searched, there, groups, 0.02, 95, seed=3)
    names = tuple(name if name == "final" else f"x{name}" for name in there.tables.exit_ids)
    other = replace(there, tables=replace(there.tables, exit_ids=names))
    with pytest.raises(CacheError, match="other exits or signals"):
        certify_lost(searched, other, groups, 0.02, 0.9, seed=3)


@pytest.mark.parametrize("grouped", [1, 2])
def test_promises_hold_where_the_searched_images_alone_break_them(grouped: int) -> None:
    """A population whose truth is known, 100 draws of 60 images, promised at 90%."""
    rng = np.random.default_rng(seeded(grouped))
    tables, costs = network(seeded(11) % 1000)
    # The population is these images, each drawn as often as the other, in groups of neighbours.
    whole = Goal.of(tables, to_ticks(tables, costs), CHEAPEST)
    everywhere = Groups.of([str(image // grouped) for image in range(tables.images)])

    def truth(picked: Picked) -> float:
        exits = np.array([choice.exit for choice in picked.configuration])
        answer = whole.evaluate(picked.configuration).answer
        return float(lost_shares(tables, exits[answer], everywhere).mean())

    limit = 0.22
    broken = naive = saved = 0
    for draw in range(100):
        drawn = rng.integers(tables.images // grouped, size=60 // grouped) * grouped
        images = (drawn[:, None] + np.arange(grouped)).ravel()
        groups = Groups.of([str(n // grouped) for n in range(60)])
        searched, certifies = halves(groups, draw)
        goal, there = (
            Goal.of(tables.subset(images[half]), whole.ticks, CHEAPEST)
            for half in (searched, certifies)
        )
        found = certify_lost(
            goal, there, groups.subset(certifies), limit, 0.9, seed=draw, workers=ONE
        ).certificate
        broken += truth(found.picked) > limit
        saved += found.margin is not None
        # What is the cheapest of those that keep the limit where they were searched.
        front = collect(goal, EXACT, ONE)
        kept = [p for p in front if shares_of(goal, Picked(p.payload)).mean() <= limit]
        naive += bool(kept) and truth(Picked(kept[0].payload)) > limit
    # 10 of 100 may be broken; five standard deviations more are 15.
    assert broken <= 25
    assert naive > 25
    assert saved > 12
