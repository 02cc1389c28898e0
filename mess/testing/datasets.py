"""What every data set promises."""

from __future__ import annotations

import pickle

import numpy as np

from mess.config import DataConfig
from mess.data import SegmentationData

OWN_SPLITS = ("train", "calibration", "test")
"""Those a data set finds; the holdout is taken from train."""


class DatasetContract:
    """Subclass as `TestMine` and define `open`, on a few images a split."""

    def open(self, split: str) -> SegmentationData:
        """One of `OWN_SPLITS`."""
        raise NotImplementedError

    def test_it_reads_images_and_masks(self) -> None:
        for split in OWN_SPLITS:
            data = self.open(split)
            classes = data.classes
            assert len(data) == len(data.ids) == len(set(data.ids)) > 0
            assert len(classes.names) == len(classes.colors) == classes.num_classes
            assert classes.ignore_index == 255
            for index in range(len(data)):
                image, mask = data.read(index)
                assert image.dtype == mask.dtype == np.uint8
                assert image.shape == (*mask.shape, 3)
                assert set(np.unique(mask)) <= {*range(classes.num_classes), 255}

    def test_masks_alone_are_those_of_the_images(self) -> None:
        """They are read before training, by themselves where they lie apart."""
        data = self.open("train")
        assert data.image_ids == data.ids
        alone = list(data.masks())
        assert len(alone) == len(data)
        for index, mask in enumerate(alone):
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, data.read(index)[1])

    def test_images_are_rescaled_once(self) -> None:
        data = self.open("train")
        image, mask = data.sized(0)
        assert image.shape == (*data.size, 3)
        assert mask.shape == data.size
        assert set(np.unique(mask)) <= set(np.unique(data.read(0)[1]))
        # The same array again, which therefore nobody may write to.
        assert data.sized(0)[0] is image
        assert not image.flags.writeable
        assert not mask.flags.writeable

    def test_tiles_of_images_count_each_pixel_once(self) -> None:
        """Images are cut by the size that the data set tells, before they are read."""
        data = self.open("train")
        side = 1 + min(data.size) // 3
        data.size = (side, side)
        tiles = data.framed(DataConfig(size=data.size, fit="tile"))
        for index, image_id in enumerate(data.ids):
            mask = data.read(index)[1]
            own = [i for i in range(len(tiles)) if tiles.image_id(i) == image_id]
            counts = sum(np.bincount(tiles.sized(i)[1].ravel(), minlength=256) for i in own)
            np.testing.assert_array_equal(
                np.asarray(counts)[:255], np.bincount(mask.ravel(), minlength=256)[:255]
            )

    def test_splits_are_disjoint(self) -> None:
        ids = {split: set(self.open(split).ids) for split in OWN_SPLITS}
        assert sum(map(len, ids.values())) == len(set().union(*ids.values()))

    def test_splits_have_the_same_classes(self) -> None:
        tables = [self.open(split).classes for split in OWN_SPLITS]
        assert all(table == tables[0] for table in tables)

    def test_the_fingerprint_is_of_the_content(self) -> None:
        prints = [self.open(split).fingerprint() for split in OWN_SPLITS]
        assert len(set(prints)) == len(OWN_SPLITS)
        assert all(len(fingerprint) == 64 for fingerprint in prints)
        # Opened again, so that nothing is remembered.
        assert [self.open(split).fingerprint() for split in OWN_SPLITS] == prints

    def test_images_that_differ_have_fingerprints_that_do(self) -> None:
        """By which images are known again: what chose an instance cannot certify it."""
        data = self.open("train")
        prints, seen = data.image_fingerprints(), dict[str, bytes]()
        for index, image_id in enumerate(data.ids):
            content = b"".join(array.tobytes() for array in data.read(index))
            assert seen.setdefault(prints[image_id], content) == content

    def test_it_pickles_without_its_memory(self) -> None:
        """Data-loading workers have copies of it."""
        data = self.open("train")
        size_before = len(pickle.dumps(data))
        expected = [data.sized(index) for index in range(len(data))]
        assert len(pickle.dumps(data)) == size_before
        copy = pickle.loads(pickle.dumps(data))
        for index, (image, mask) in enumerate(expected):
            np.testing.assert_array_equal(copy.sized(index)[0], image)
            np.testing.assert_array_equal(copy.sized(index)[1], mask)
        assert copy.fingerprint() == data.fingerprint()
