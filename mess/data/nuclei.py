"""Cell nuclei under microscopes of several kinds: real images that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from mess.config import DataConfig
from mess.data.folder import Folder

IMAGES = Path(__file__).with_name("dsb2018")


class Nuclei(Folder):
    """425 images of the Data Science Bowl 2018 (CC0): background, nucleus and border.

    241 train, 92 calibrate, 92 test, of 256 to 640 pixels a side; a border is where a nucleus
    meets another, a pixel wide. `benchmarks/nuclei_subset.py` chose them.
    """

    reads_root: ClassVar[bool] = False

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> Self:
        return super().open(config.model_copy(update={"root": IMAGES, "pairs": None}), split, seed)
