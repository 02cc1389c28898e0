"""Images that depend on each other: frames of a video, tiles of a scene, slices of a patient.

Whatever speaks of new images counts groups, not images: two frames of a video tell hardly more than
one. An image that depends on no other is a group of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from mess.errors import DataError

STRONG, LEAST = 20, 6
"""Groups for a full certificate, and for any at all.

In simulations with a network's counts a nominal 90% covered 0.89 with 20 groups and 0.73 with two.
"""

Strength = Literal["full", "weak"]


@dataclass(frozen=True)
class Groups:
    """Which group each image belongs to.

    names: G names, in the order in which images first have them.
    of_image: shape (I,), index of each image's group, 0..G-1.
    """

    names: tuple[str, ...]
    of_image: NDArray[np.intp]

    @classmethod
    def of(cls, names: Sequence[str]) -> Self:
        """The groups of images, given the name of each image's group."""
        index: dict[str, int] = {}
        of_image = [index.setdefault(name, len(index)) for name in names]
        return cls(tuple(index), np.array(of_image, dtype=np.intp))

    @classmethod
    def alone(cls, images: int) -> Self:
        """Every image a group of its own."""
        return cls(tuple(map(str, range(images))), np.arange(images))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def images(self) -> int:
        """Number of images, I."""
        return len(self.of_image)

    def subset(self, images: NDArray[np.integer]) -> Self:
        """The groups of some images alone, by their indices."""
        return type(self).of([self.names[group] for group in self.of_image[images]])

    def sums(self, values_IX: NDArray[np.generic]) -> NDArray[np.float64]:
        """Sums over the images of each group, shape (G, ...), of values of shape (I, ...)."""
        if len(self) == self.images:
            # Names are in the order of the images: each is its own sum.
            return values_IX.astype(np.float64)
        order = np.argsort(self.of_image, kind="stable")
        first_G = np.searchsorted(self.of_image[order], np.arange(len(self)))
        # `np.add.at` takes ten times as long. No group is empty, which `reduceat` could not tell.
        return np.add.reduceat(values_IX[order].astype(np.float64), first_G, axis=0)

    def strength(self) -> Strength:
        """How much a certificate from these groups is worth; raises DataError below `LEAST`."""
        if len(self) < LEAST:
            images, groups = (
                f"{count} {what}{'s' if count != 1 else ''}"
                for count, what in ((self.images, "image"), (len(self), "group"))
            )
            raise DataError(
                f"{images} in {groups} are too few to promise anything about new ones: at least "
                f"{LEAST} groups are needed, "
                f"{STRONG} for a certificate that is not marked weak. Memoise images of more groups"
            )
        return "full" if len(self) >= STRONG else "weak"

    def folds(self, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """The fold of each image, shape (I,), 0..count-1; groups stay whole.

        Folds have about as many images each: groups are sorted by size, and so many of about one
        size are dealt out at a time, one to each fold at random. Raises ValueError where a fold
        would stay empty.
        """
        if not 2 <= count <= len(self):
            raise ValueError(f"{len(self)} groups cannot be divided into {count} folds")
        sizes = np.bincount(self.of_image, minlength=len(self))
        order = rng.permutation(len(self))
        order = order[np.argsort(-sizes[order], kind="stable")]
        # Into the emptiest fold each time, groups of different sizes would always fall alike, and
        # a division that is made anew would be the same again.
        dealt = [rng.permutation(count) for _ in range(0, len(self), count)]
        fold_of_group = np.empty(len(self), dtype=np.intp)
        fold_of_group[order] = np.concatenate(dealt)[: len(self)]
        return fold_of_group[self.of_image]
