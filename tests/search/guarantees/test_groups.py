"""Groups are kept whole, and few of them promise little or nothing."""

from __future__ import annotations

import numpy as np
import pytest

from mess.errors import DataError
from mess.search.guarantees.groups import Groups
from tests.seeds import seeded


def test_sums_are_those_of_each_group() -> None:
    groups = Groups.of(["b", "a", "b", "c", "a", "b"])
    assert groups.names == ("b", "a", "c")
    assert (len(groups), groups.images) == (3, 6)
    values = np.arange(12).reshape(6, 2)
    expected = [[0 + 4 + 10, 1 + 5 + 11], [2 + 8, 3 + 9], [6, 7]]
    np.testing.assert_array_equal(groups.sums(values), expected)


def test_images_alone_are_groups_of_one() -> None:
    groups = Groups.alone(4)
    assert len(groups) == groups.images == 4
    np.testing.assert_array_equal(groups.sums(np.array([3, 1, 4, 1])), [3, 1, 4, 1])


@pytest.mark.parametrize(("count", "strength"), [(6, "weak"), (19, "weak"), (20, "full")])
def test_so_many_groups_are_worth(count: int, strength: str) -> None:
    assert Groups.of([str(i % count) for i in range(100)]).strength() == strength


@pytest.mark.parametrize(("count", "words"), [(1, "1 group are"), (5, "5 groups are")])
def test_fewer_are_refused(count: int, words: str) -> None:
    with pytest.raises(DataError, match=f"100 images in .*{words}.*at least 6.*more groups"):
        Groups.of([str(i % count) for i in range(100)]).strength()


def test_folds_keep_groups_whole_and_are_of_about_one_size() -> None:
    rng = np.random.default_rng(seeded(0))
    names = [f"g{number}" for number in rng.integers(40, size=500)]
    groups = Groups.of(names)
    fold = groups.folds(5, rng)
    for group in range(len(groups)):
        assert len(set(fold[groups.of_image == group])) == 1
    sizes = np.bincount(fold, minlength=5)
    # Of each deal, a fold has one group; the first of a deal is no larger than the last before it.
    assert sizes.max() - sizes.min() <= np.bincount(groups.of_image).max()


def test_folds_hang_on_the_generator_alone() -> None:
    groups = Groups.alone(60)
    first, again, other = (groups.folds(5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert set(np.bincount(first)) == {12}


def test_groups_of_different_sizes_are_divided_anew_each_time() -> None:
    groups = Groups.of([f"g{size}" for size in range(1, 21) for _ in range(size)])
    rng = np.random.default_rng(seeded(1))
    assert len({groups.folds(5, rng).tobytes() for _ in range(5)}) == 5


@pytest.mark.parametrize("count", [1, 4])
def test_more_folds_than_groups_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"3 groups cannot be divided into {count} folds"):
        Groups.alone(3).folds(count, np.random.default_rng(0))
