"""Data sets for training, calibration and test, each behind the same few methods.

No torch: `mess.data.loader` makes tensors of them.

May import: errors, config, common.
"""

from __future__ import annotations

from mess.config import DataConfig
from mess.data.base import ClassTable, SegmentationData, generator
from mess.data.class_list import read_classes
from mess.data.coco import Coco
from mess.data.folder import Folder
from mess.data.nuclei import Nuclei
from mess.data.sbd import Sbd, VocAug
from mess.data.shapes import Shapes
from mess.data.unlabelled import Unlabelled, open_unlabelled
from mess.data.voc import Voc
from mess.errors import ConfigError, DataError, nearest

__all__ = [
    "DATASETS",
    "SPLITS",
    "ClassTable",
    "SegmentationData",
    "Unlabelled",
    "open_split",
    "open_unlabelled",
    "read_classes",
]

DATASETS: dict[str, type[SegmentationData]] = {
    "shapes": Shapes,
    "nuclei": Nuclei,
    "folder": Folder,
    "voc": Voc,
    "sbd": Sbd,
    "voc-aug": VocAug,
    "coco": Coco,
}
"""`data.kind` to its class; a new data set is one class and one line here."""

SPLITS = ("train", "holdout", "calibration", "test")

# Apart from the other streams of a seed: 0 to 2 are the splits of Shapes, 11 and 13 Draws'.
_HOLDOUT_KEY = 7


def open_split(config: DataConfig, split: str, seed: int) -> SegmentationData:
    """One split of the configured data set.

    Its images are brought to `config.size` as `config.fit` says; in tiles, each is an item.
    "holdout" is the share `config.holdout` of the train images, drawn by `seed`; "train" is the
    rest. "calibration" and "test" are the data set's own. Raises ConfigError for an unknown kind or
    split, DataError for an empty split or a fault in the data set.
    """
    if config.kind not in DATASETS:
        raise ConfigError(
            f"data.kind = {config.kind!r} is unknown; {nearest(config.kind, DATASETS)}"
        )
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is unknown; {nearest(split, SPLITS)}")
    kind = DATASETS[config.kind]
    if config.pairs is not None and kind is not Folder:
        raise ConfigError(
            f"data.pairs says where a folder's files lie, and data.kind = {config.kind!r} has a "
            "layout of its own. Leave one of them out."
        )
    if split not in ("train", "holdout"):
        return kind.open(config, split, seed).framed(config)
    whole = kind.open(config, "train", seed)
    count = round(config.holdout * len(whole))
    if split == "holdout" and not count:
        raise DataError(
            f"the holdout of {config.holdout} of {len(whole)} train images is empty; "
            "raise data.holdout."
        )
    if count == len(whole):
        raise DataError(
            f"data.holdout = {config.holdout} takes all {len(whole)} train images; lower it."
        )
    held = set(generator(seed, _HOLDOUT_KEY).permutation(len(whole))[:count].tolist())
    chosen = [i for i in range(len(whole)) if (i in held) == (split == "holdout")]
    where = whole.where if split == "train" else f"holdout of {whole.where}"
    part = whole.select(chosen, where)
    # Files that are left out are the whole folder's, and told with the rest.
    part.others = part.others if split == "train" else ()
    # Images are held out, and not tiles: those of one image belong together.
    return part.framed(config)
