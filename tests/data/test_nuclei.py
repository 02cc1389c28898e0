"""The images that come with the package."""

from __future__ import annotations

import numpy as np

from mess.config import DataConfig
from mess.data import open_split
from mess.data.nuclei import IMAGES

COUNTS = {"train": 241, "calibration": 92, "test": 92}


def test_nuclei_are_there_without_a_root() -> None:
    config = DataConfig(kind="nuclei", size=(256, 256), fit="tile", holdout=0.0)
    for split, count in COUNTS.items():
        data = open_split(config, split, seed=0)
        assert len(data.image_ids) == count < len(data)
        assert data.classes.names == ("background", "nucleus", "border")
        pixels = np.sum([np.bincount(mask.ravel(), minlength=3) for mask in data.masks()], axis=0)
        shares = pixels / pixels.sum()
        assert 0.8 < shares[0] < 0.9
        assert 0.02 < shares[2] < 0.04


def test_they_take_at_most_6_mb() -> None:
    assert sum(path.stat().st_size for path in IMAGES.rglob("*") if path.is_file()) < 6_000_000
