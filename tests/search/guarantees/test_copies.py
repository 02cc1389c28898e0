"""Images that are copies of each other, and other tables that tell little or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mess.errors import DataError
from mess.search.exact.workers import Workers
from mess.search.guarantees.certify import Certificate, certify_cross, certify_fresh
from mess.search.guarantees.copies import copies_joined, without_copies
from mess.search.guarantees.groups import Groups
from mess.search.problem.costs import to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables
from tests.search.test_realistic import network
from tests.seeds import seeded

ONE = Workers(1)

Change = Callable[[Tables], Tables]


def goal_of(seed: int, change: Change, max_error: float = 0.05) -> Goal:
    tables, costs = network(seed)
    changed = change(tables)
    request = Request(target="macs", max_error=max_error, max_exits=2)
    return Goal.of(changed, to_ticks(changed, costs), request)


def certified(goal: Goal, groups: Groups | None = None) -> Certificate:
    return certify_cross(goal, groups or Groups.alone(goal.tables.images), 0.9, seed=1, workers=ONE)


def all_alike(tables: Tables) -> Tables:
    return tables.subset(np.full(40, 7))


def test_images_that_are_all_alike_certify_nothing() -> None:
    """Their figures do not vary, so that every bound would be met with certainty."""
    goal = goal_of(seeded(0) % 1000, all_alike)
    with pytest.raises(DataError, match="the 40 images are all alike.*leaves 1, and at least 6"):
        certified(goal)
    fresh, costs = goal.tables, network(seeded(0) % 1000)[1]
    searched = goal_of(seeded(0) % 1000, lambda tables: tables)
    with pytest.raises(DataError, match="all alike.*Memoise other images"):
        certify_fresh(searched, fresh, to_ticks(fresh, costs), Groups.alone(40), 0.9, ONE)


def test_a_few_images_and_their_copies_certify_nothing() -> None:
    goal = goal_of(seeded(1) % 1000, lambda tables: tables.subset(np.arange(50) % 5))
    with pytest.raises(DataError, match="50 images are 5 and their copies.*leaves 5"):
        certified(goal)


def test_copies_count_once() -> None:
    order = np.array([*range(30), 0, 0, 1])
    goal = goal_of(seeded(2) % 1000, lambda tables: tables.subset(order))
    found = certified(goal)
    assert (found.images, found.groups) == (33, 30)
    # Where they are known to belong together nothing changes.
    named = Groups.of([str(image) for image in order])
    assert certified(goal, named) == found


def all_one_class(tables: Tables, images: slice) -> Tables:
    """As fields without an object are: every exit says so, and is sure."""
    label = tables.label.copy()
    label[images] = 0
    label[images, 0] = 100
    right = np.broadcast_to(label[images], (tables.exits, *label[images].shape))
    changed = {name: getattr(tables, name).copy() for name in ("intersection", "predicted")}
    for counts in changed.values():
        counts[:, images] = right
    signals = tables.signals.copy()
    signals[:, images] = 1.0
    return replace(tables, label=label, signals=signals, lost=None, **changed)


def test_images_of_one_class_that_every_exit_knows_are_no_copies() -> None:
    tables = all_one_class(network(seeded(4) % 1000)[0], slice(0, 20))
    alone = Groups.alone(tables.images)
    assert without_copies(tables, alone) == alone
    # One pixel that an exit has wrong is an image's own.
    counts = tables.intersection.copy()
    counts[0, :2, 0] -= 1
    assert len(without_copies(replace(tables, intersection=counts), alone)) == len(alone) - 1


def test_what_two_exits_differ_by_tells_images_apart() -> None:
    tables = network(seeded(5) % 1000)[0].subset(np.array([0, 0, *range(1, 20)]))
    rng = np.random.default_rng(seeded(5))
    pairs = rng.random((tables.exits, tables.exits, tables.images), dtype=np.float32)
    compared = replace(tables, pairs=pairs, signals=tables.signals[:, :, :0], signal_names=("vi",))
    alone = Groups.alone(tables.images)
    assert without_copies(compared, alone) == alone
    pairs[:, :, 1] = pairs[:, :, 0]
    assert len(without_copies(replace(compared, pairs=pairs), alone)) == len(alone) - 1


def test_groups_that_share_an_image_are_joined_by_a_plain_loop() -> None:
    rng = np.random.default_rng(seeded(3))
    groups = Groups.of([str(name) for name in rng.integers(30, size=80)])
    content = [
        int(what) if what < 12 else f"own {i}" for i, what in enumerate(rng.integers(60, size=80))
    ]
    reached = {name: {name} for name in groups.names}
    name_of = [groups.names[group] for group in groups.of_image]
    for _ in range(len(groups)):
        for i in range(80):
            for j in range(80):
                if content[i] == content[j]:
                    reached[name_of[i]] |= reached[name_of[j]]
    found = copies_joined(groups, content)
    for i in range(80):
        for j in range(80):
            together = name_of[j] in reached[name_of[i]]
            assert (found.of_image[i] == found.of_image[j]) == together
    assert copies_joined(groups, list(range(80))) is groups


def test_a_signal_that_differs_makes_another_image() -> None:
    tables, _ = network(seeded(4) % 1000)
    same = tables.subset(np.array([*range(20), 3]))
    assert len(without_copies(same, Groups.alone(21))) == 20
    signals = same.signals.copy()
    signals[2, 20, 0] = np.nextafter(signals[2, 20, 0], np.float32(np.inf))
    other = replace(same, signals=signals)
    assert len(without_copies(other, Groups.alone(21))) == 21


def one_class(tables: Tables) -> Tables:
    return replace(
        tables,
        label=tables.label.sum(axis=1, keepdims=True),
        intersection=tables.intersection.sum(axis=2, keepdims=True, dtype=np.int32),
        predicted=tables.predicted.sum(axis=2, keepdims=True, dtype=np.int32),
    )


def a_class_of_one_image(tables: Tables) -> Tables:
    """So that it is missing from four of five folds, and from the search for the fifth."""
    label, hits, predicted = (
        np.concatenate([part, np.zeros_like(part[..., :1])], axis=-1)
        for part in (tables.label, tables.intersection, tables.predicted)
    )
    label[11, -1], hits[:, 11, -1], predicted[:, 11, -1] = 50, 40, 45
    return replace(tables, label=label, intersection=hits, predicted=predicted)


def six_with_a_class(tables: Tables) -> Tables:
    """Images of a class that no other one has, the last of them twice."""
    label, hits, predicted = (
        np.concatenate([part, np.zeros_like(part[..., :1])], axis=-1)
        for part in (tables.label, tables.intersection, tables.predicted)
    )
    label[:5, -1], hits[:, :5, -1], predicted[:, :5, -1] = 50, 40, 45
    changed = replace(tables, label=label, intersection=hits, predicted=predicted)
    return changed.subset(np.array([*range(30), 4]))


def test_classes_are_rare_by_what_is_left_of_copies() -> None:
    """Six images have the class, and two of them are one."""
    goal = goal_of(seeded(8) % 1000, six_with_a_class, max_error=0.2)
    last = goal.tables.label.shape[1] - 1
    assert (goal.tables.label[:, last] > 0).sum() == 6
    found = certified(goal)
    assert (found.images, found.groups) == (31, 30)
    assert last in found.rare
    names = [f"class {index}" for index in range(last + 1)]
    assert f"class {last}" in found.to_result(names)["rare_classes"]


def constant_signals(tables: Tables) -> Tables:
    return replace(tables, signals=np.full_like(tables.signals, 0.5))


@pytest.mark.parametrize("change", [one_class, a_class_of_one_image, constant_signals])
def test_what_little_can_be_learned_from_is_certified_as_usual(change: Change) -> None:
    goal = goal_of(seeded(5) % 1000, change, max_error=0.2)
    found = certified(goal)
    figures = found.to_result([str(index) for index in range(goal.tables.label.shape[1])])
    assert np.isfinite([*figures["bounds"], figures["least_miou"]]).all()
    assert found.holds
    if found.margin is not None:
        assert figures["bounds"][0] <= 0.2
    if change is constant_signals:
        # Nobody leaves by a signal that says nothing, or all do.
        rates = goal.evaluate(found.picked.configuration).exit_rates
        assert set(rates) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (1, "1 image in 1 group are too few to promise anything.*at least 6"),
        (5, "5 images in 5 groups are too few"),
    ],
)
def test_too_few_images_are_refused(images: int, message: str) -> None:
    goal = goal_of(seeded(7) % 1000, lambda tables: tables.subset(np.arange(images)))
    with pytest.raises(DataError, match=message):
        certified(goal)
    tables, costs = network(seeded(7) % 1000)
    fresh, searched = tables.subset(np.arange(images)), goal_of(seeded(7) % 1000, lambda t: t)
    with pytest.raises(DataError, match=message):
        certify_fresh(searched, fresh, to_ticks(fresh, costs), Groups.alone(images), 0.9, ONE)
