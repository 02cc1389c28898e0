"""Where the images of a cache come from. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mess.cache.predictions.store import CacheSource
from mess.data import SegmentationData, open_split, open_unlabelled
from mess.errors import MessError
from mess.exits import FINAL
from mess.runs.data_sets import at_root
from mess.runs.run import Run

UNLABELLED = "images"
"""The `kind` of a cache of pictures without masks, where others have that of a data set."""


def require_labels(images: Path | None, labels: str | None, **others: object) -> None:
    """Raise MessError where it is not clear what images are to be counted against.

    others: options that name other images, by name.
    """
    what_for = (
        "--images FOLDER --labels final takes pictures without masks, with the final exit's label "
        "maps in the place of masks"
    )
    if labels not in (None, FINAL):
        raise MessError(
            f"labels {labels!r} is unknown; {FINAL!r} is all there is: {what_for}. Masks that "
            "exist belong to a data set."
        )
    if labels is not None and images is None:
        raise MessError(f"--labels {labels} needs --images FOLDER: {what_for}.")
    if images is None:
        return
    for option, value in others.items():
        if value is not None:
            raise MessError(
                f"--images {images} and --{option} {value} exclude each other: pictures in a "
                f"folder are no data set with splits and masks. Leave one of them out."
            )
    if labels is None:
        raise MessError(
            f"--images {images} needs --labels {FINAL}: {what_for}, so that all accuracy is "
            "against the final exit. Pictures with masks are a data set: see --root and --split."
        )


class ImageSource(NamedTuple):
    """A split of the run's data set or of another at `root`; without a split, a folder's pictures.

    Only a data set has masks. Pictures without them are counted against the final exit.
    """

    split: str | None
    root: Path | None

    @classmethod
    def of(cls, recorded: CacheSource) -> ImageSource:
        """As a cache's manifest has it."""
        root = recorded["root"]
        return cls(recorded["split"], None if root is None else Path(root))

    def to_manifest(self, kind: str) -> CacheSource:
        """What a cache's manifest says; `kind` is that of the run's data set."""
        return {
            "kind": UNLABELLED if self.split is None else kind,
            "root": None if self.root is None else str(self.root),
            "split": self.split,
        }

    def open(self, place: Run, root_option: str = "--root") -> SegmentationData:
        """The images; raises MessError where they cannot be found.

        root_option: what names the root on the command line.
        """
        if self.split is None:
            assert self.root is not None
            taken = place.config.data
            return open_unlabelled(self.root, place.class_table, taken.size).framed(taken)
        config = at_root(place.config, self.root, root_option)
        return open_split(config.data, self.split, config.seed)

    def __str__(self) -> str:
        if self.split is None:
            return f"the images in {self.root}"
        return f"the {self.split} split of {self.root or 'the run'}"
