"""What every data set must do; a new kind joins by one line in conftest's KINDS."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from mess.config import DataConfig
from mess.data import DATASETS, SPLITS, SegmentationData, open_split
from mess.data.loader import evaluation_loader, training_loader
from mess.errors import ConfigError, DataError
from mess.testing import DatasetContract


def test_the_suite_covers_every_kind(kinds: tuple[str, ...]) -> None:
    assert set(DATASETS) == set(kinds), "add the new kind to KINDS in conftest.py"


class TestEveryKind(DatasetContract):
    @pytest.fixture(autouse=True)
    def _each(self, config: DataConfig) -> None:
        self.config = config

    def open(self, split: str) -> SegmentationData:
        return open_split(self.config, split, seed=1)


def test_the_holdout_is_read_as_the_rest(config: DataConfig) -> None:
    data = open_split(config, "holdout", seed=1)
    for index in range(len(data)):
        image, mask = data.read(index)
        assert image.shape == (*mask.shape, 3)


def test_sized_rescales_and_remembers(config: DataConfig) -> None:
    data = open_split(config, "train", seed=1)
    image, mask = data.sized(0)
    assert image.shape == (*config.size, 3)
    assert mask.shape == config.size
    assert set(np.unique(mask)) <= set(np.unique(data.read(0)[1]))
    assert data.sized(0)[0] is image
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = 0


def test_splits_are_disjoint(config: DataConfig) -> None:
    ids = {split: set(open_split(config, split, seed=1).ids) for split in SPLITS}
    assert sum(map(len, ids.values())) == len(set().union(*ids.values()))
    whole = open_split(config.model_copy(update={"holdout": 0.0}), "train", seed=1)
    assert ids["train"] | ids["holdout"] == set(whole.ids)
    assert len(ids["holdout"]) == round(0.2 * len(whole))


def test_holdout_is_drawn_by_the_seed(config: DataConfig) -> None:
    drawn = [tuple(open_split(config, "holdout", seed=seed).ids) for seed in (1, 1, 2, 3, -4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_test_split_does_not_depend_on_the_seed(config: DataConfig) -> None:
    assert open_split(config, "test", seed=1).ids == open_split(config, "test", seed=2).ids


def test_empty_holdout_is_refused(config: DataConfig) -> None:
    with pytest.raises(DataError, match=r"holdout of 0\.0 of 10 train images is empty; raise"):
        open_split(config.model_copy(update={"holdout": 0.0}), "holdout", seed=1)
    with pytest.raises(DataError, match=r"holdout = 0\.99 takes all 10 train images; lower"):
        open_split(config.model_copy(update={"holdout": 0.99}), "train", seed=1)


def test_fingerprint_is_of_content_not_of_dates(config: DataConfig) -> None:
    prints = [open_split(config, split, seed=1).fingerprint() for split in SPLITS]
    assert len(set(prints)) == len(SPLITS)
    assert all(len(fingerprint) == 64 for fingerprint in prints)
    if config.root is not None:
        for path in config.root.rglob("*"):
            os.utime(path, (1, 1))
    assert open_split(config, "train", seed=1).fingerprint() == prints[0]
    larger = config.model_copy(update={"size": (48, 64)})
    assert open_split(larger, "train", seed=1).fingerprint() != prints[0]


def test_fingerprint_follows_an_image(config: DataConfig) -> None:
    before = open_split(config, "train", seed=1).fingerprint()
    if config.root is None:
        assert open_split(config, "train", seed=2).fingerprint() != before
        return
    images = [path for path in config.root.rglob("*.jpg") if path.parent.name != "val"]
    for path in images:
        path.write_bytes(path.read_bytes() + b"\0")
    assert open_split(config, "train", seed=1).fingerprint() != before


def test_evaluation_loader_gives_every_image_once(config: DataConfig) -> None:
    data = open_split(config, "test", seed=1)
    batches = list(evaluation_loader(data, config, batch_size=2))
    assert torch.cat([index for _, _, index in batches]).tolist() == list(range(len(data)))
    image, label, _ = batches[0]
    assert (image.dtype, label.dtype) == (torch.float32, torch.int64)
    assert image.shape[1:] == (3, *config.size)
    pixels, mask = data.sized(0)
    np.testing.assert_array_equal(label[0].numpy(), mask)
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (pixels[..., channel] / 255.0 - mean) / std
        np.testing.assert_allclose(image[0, channel].numpy(), expected, atol=1e-5)


def test_training_loader_gives_constant_shapes(config: DataConfig) -> None:
    data = open_split(config, "train", seed=1)
    batches = list(training_loader(data, config, seed=0, iterations=4, batch_size=3))
    assert len(batches) == 4
    for image, label, index in batches:
        assert image.shape == (3, 3, 22, 29)
        assert label.shape == (3, 22, 29)
        assert index.shape == (3,)
        assert set(label.unique().tolist()) <= {*range(data.classes.num_classes), 255}


def test_unknown_names_are_refused(config: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.kind = 'shape' is unknown.*mean 'shapes'\?"):
        open_split(config.model_copy(update={"kind": "shape"}), "train", seed=0)
    with pytest.raises(ConfigError, match=r"split 'tests' is unknown.*did you mean 'test'\?"):
        open_split(config, "tests", seed=0)
