"""The order of training: every image once an epoch, resumable, independent of workers."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch

from mess.config import DataConfig
from mess.data import open_split
from mess.data.loader import training_loader
from mess.data.sets import Draws, TrainingSet
from mess.errors import ConfigError


def draws(**changes: int) -> Draws:
    values = {"seed": 3, "iterations": 20, "batch_size": 4, "images": 7} | changes
    return Draws(**values)


def test_every_image_once_an_epoch() -> None:
    indices = [index for batch in draws(iterations=7) for index, _ in batch]
    epochs = [indices[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_no_batch_is_cut_short_and_no_draw_repeats() -> None:
    batches = list(draws())
    assert [len(batch) for batch in batches] == [4] * 20
    seeds = [seed for batch in batches for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


def test_batches_larger_than_the_data_set() -> None:
    assert [len(batch) for batch in draws(images=2, iterations=3)] == [4] * 3


@pytest.mark.parametrize("start", [0, 1, 6, 7, 19, 20, 25])
def test_resumed_equals_the_tail(start: int) -> None:
    resumed = draws(start=start)
    assert list(resumed) == list(draws())[start:]
    assert len(resumed) == len(list(resumed))


@pytest.mark.parametrize("every", [1, 2, 3, 25])
def test_every_so_many_th_batch(every: int) -> None:
    parted = draws(start=4, every=every)
    assert list(parted) == list(draws())[4::every]
    assert len(parted) == len(list(parted))


def test_seeds_differ() -> None:
    assert list(draws(seed=3)) == list(draws(seed=3))
    assert list(draws(seed=3)) != list(draws(seed=4)) != list(draws(seed=-4))


def test_processes_share_each_batch() -> None:
    parts = zip(draws(world=2, rank=0), draws(world=2, rank=1), strict=True)
    assert [sorted(a + b) for a, b in parts] == [sorted(batch) for batch in draws()]
    with pytest.raises(ConfigError, match=r"batch_size 4 does not divide among 3 .* multiple of 3"):
        draws(world=3)


def batches(config: DataConfig, start: int = 0, workers: int = 0) -> list[list[torch.Tensor]]:
    config = config.model_copy(update={"workers": workers, "jitter": 0.3})
    data = open_split(config, "train", seed=1)
    loader = training_loader(data, config, seed=5, iterations=5, batch_size=3, start=start)
    return [list(batch) for batch in loader]


def assert_equal(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> None:
    assert len(one) == len(other)
    for some, others in zip(one, other, strict=True):
        for a, b in zip(some, others, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_batches_do_not_depend_on_the_workers(make: Callable[[str], DataConfig]) -> None:
    config = make("shapes")
    expected = batches(config)
    assert_equal(batches(config, workers=1), expected)
    assert_equal(batches(config, workers=2), expected)


def test_resumed_batches_equal_the_tail(make: Callable[[str], DataConfig]) -> None:
    config = make("folder")
    expected = batches(config)
    assert_equal(batches(config, start=2), expected[2:])
    assert_equal(batches(config, start=3, workers=2), expected[3:])


def test_sets_pickle_for_spawned_workers(make: Callable[[str], DataConfig]) -> None:
    config = make("folder")
    items = TrainingSet(open_split(config, "train", seed=1), config)
    copy = pickle.loads(pickle.dumps(items))
    assert_equal([list(copy[(2, 9)][:2])], [list(items[(2, 9)][:2])])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(
    make: Callable[[str], DataConfig], workers: int
) -> None:
    config = make("shapes")
    before = torch.get_rng_state()
    batches(config, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
