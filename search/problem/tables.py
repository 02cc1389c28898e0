"""The statistics a search reads: pixel counts and signals of every exit on every image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mess.errors import CacheError, DataError
from mess.exits import FINAL

MOST_PIXELS = 2**24
"""Of a class in one image: fewer are exact in single precision, in which searches count."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Sufficient statistics of a split (E exits, I images, C classes, K signals).

    exit_ids: E identifiers, the network's own head `final` among them.
    point: shape (E,), exit point of each exit, 1..N; `final` sits at N.
    label: shape (I, C), labelled pixels of each class; void is left out.
    intersection, predicted: shape (E, I, C), pixel counts on the pixels that are not void.
    signals: shape (E, I, K), oriented so that larger means leave; K may be 0.
    signal_names: K names, unique.
    pairs: shape (E, E, I) where a signal that compares two exits decides, else None. [a, b] is its
        value at b when a is the selected exit before; NaN where a is not shallower than b. Such a
        signal decides alone: `signal_names` has its name, and K of `signals` is 0. The first
        selected exit is then only compared with.
    lost: shape (E, I), labelled pixels that the final exit gets right and this one wrong; None from
        a cache that was made before they were counted.
    """

    exit_ids: tuple[str, ...]
    point: NDArray[np.integer]
    label: NDArray[np.int64]
    intersection: NDArray[np.int32]
    predicted: NDArray[np.int32]
    signals: NDArray[np.float32]
    signal_names: tuple[str, ...]
    pairs: NDArray[np.float32] | None = None
    lost: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        # Names first: `points` looks for the network's own head among them.
        self._check_names()
        self._check_shapes()
        self._check_points()
        self._check_counts()
        self._check_lost()
        if self.pairs is not None:
            holes = self.follows & np.isnan(self.pairs).any(axis=2)
            if holes.any():
                first, second = np.argwhere(holes)[0]
                raise CacheError(
                    f"the pair of {self.exit_ids[first]!r} and {self.exit_ids[second]!r} lacks its "
                    f"{self.signal_names[0]}"
                )
        if not np.isfinite(self.signals).all():
            exit_, image, signal = np.argwhere(~np.isfinite(self.signals))[0]
            raise CacheError(
                f"signal {self.signal_names[signal]!r} of exit {self.exit_ids[exit_]!r} on image "
                f"{image} is {self.signals[exit_, image, signal]}; memoise the split again"
            )

    @property
    def exits(self) -> int:
        """Number of exits, E."""
        return len(self.exit_ids)

    @property
    def images(self) -> int:
        """Number of images, I."""
        return self.label.shape[0]

    @property
    def points(self) -> int:
        """Number of exit points, N."""
        return int(self.point[self.final])

    @property
    def final(self) -> int:
        """Index of the network's own head."""
        return self.exit_ids.index(FINAL)

    @property
    def follows(self) -> NDArray[np.bool_]:
        """Whether images can leave at exit b after exit a, [a, b]; nobody can at the last point."""
        point = np.asarray(self.point)
        return (point[:, None] < point[None, :]) & (point < self.points)[None, :]

    @property
    def least_union(self) -> NDArray[np.int64]:
        """Pixels, shape (C,), that the union of a class has at least, whoever answers.

        Whoever answers an image predicts at least what the most sparing exit does there.
        """
        wrong = self.predicted[0] - self.intersection[0]
        # One exit at a time: the differences of all would take as much memory as the tables' half.
        for predicted, hits in zip(self.predicted[1:], self.intersection[1:], strict=True):
            np.minimum(wrong, predicted - hits, out=wrong)
        return self.label.sum(axis=0) + wrong.sum(axis=0, dtype=np.int64)

    def subset(self, images: NDArray[np.integer]) -> Tables:
        """The tables of some images alone, by their indices."""
        return replace(
            self,
            label=self.label[images],
            intersection=self.intersection[:, images],
            predicted=self.predicted[:, images],
            signals=self.signals[:, images],
            pairs=None if self.pairs is None else self.pairs[:, :, images],
            lost=None if self.lost is None else self.lost[:, images],
        )

    def observed(self, exit_: int, signal: int, before: int | None) -> NDArray[np.float32]:
        """A signal of every image at an exit, shape (I,), `before` being the selected exit before.

        Raises ValueError where the signal compares exits and there is none before.
        """
        if self.pairs is None:
            return self.signals[exit_, :, signal]
        if before is None:
            raise ValueError(f"exit {exit_} is the first; there is none to compare it with")
        return self.pairs[before, exit_]

    def _check_names(self) -> None:
        for kind, names in (("exit", self.exit_ids), ("signal", self.signal_names)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise CacheError(f"{kind} names must be unique, got {twice[0]!r} more than once")
        if FINAL not in self.exit_ids:
            raise CacheError(
                f"the tables hold {len(self.exit_ids)} exits but not {FINAL!r}, the network's own "
                "head; memoise it too"
            )

    def _check_shapes(self) -> None:
        if self.label.ndim != 2:
            raise CacheError(f"label must have shape (images, classes), got {self.label.shape}")
        exits, (images, classes) = len(self.exit_ids), self.label.shape
        expected = {
            "point": (exits,),
            "intersection": (exits, images, classes),
            "predicted": (exits, images, classes),
            "signals": (exits, images, len(self.signal_names) if self.pairs is None else 0),
        }
        if self.pairs is not None:
            expected["pairs"] = (exits, exits, images)
            if len(self.signal_names) != 1:
                raise CacheError(
                    f"a signal that compares exits decides alone, got {len(self.signal_names)}"
                )
        if self.lost is not None:
            expected["lost"] = (exits, images)
        for name, shape in expected.items():
            got = getattr(self, name).shape
            if got != shape:
                raise CacheError(f"{name} must have shape {shape}, got {got}")
        kinds = {"point": "i", "label": "i", "intersection": "i", "predicted": "i", "signals": "f"}
        kinds |= {"lost": "i"} if self.lost is not None else {}
        for name, kind in kinds.items():
            dtype = getattr(self, name).dtype
            if dtype.kind != kind:
                raise CacheError(
                    f"{name} must hold {'integers' if kind == 'i' else 'floats'}, got {dtype}"
                )
        if self.signals.dtype != np.float32:
            raise CacheError(f"signals must be float32, got {self.signals.dtype}")

    def _check_points(self) -> None:
        last = self.points
        if self.point.min() < 1 or self.point.max() > last:
            raise CacheError(
                f"points must lie in 1..{last}, the point of {FINAL!r}; got "
                f"{self.point.min()}..{self.point.max()}"
            )

    def _check_counts(self) -> None:
        if self.label.sum() == 0:
            raise DataError(
                f"none of the {self.images} images has a labelled pixel, so mIoU is undefined; "
                "check the masks and the ignore_index of the split"
            )
        if min(self.label.min(), self.intersection.min(), self.predicted.min()) < 0:
            raise CacheError("pixel counts must not be negative; memoise the split again")
        largest = max(self.label.max(), self.predicted.max())
        if largest >= MOST_PIXELS:
            raise CacheError(
                f"a class has {largest} pixels in one image, and searches count up to "
                f"{MOST_PIXELS - 1} exactly. Memoise at a smaller data.size"
            )
        for name, limit in (("predicted", self.predicted), ("label", self.label)):
            wrong = np.argwhere(self.intersection > limit)
            if len(wrong):
                exit_, image, class_ = wrong[0]
                raise CacheError(
                    f"exit {self.exit_ids[exit_]!r}, image {image}, class {class_}: intersection "
                    f"{self.intersection[exit_, image, class_]} exceeds {name} "
                    f"{np.broadcast_to(limit, self.intersection.shape)[exit_, image, class_]}; "
                    "memoise the split again"
                )

    def _check_lost(self) -> None:
        if self.lost is None:
            return
        hits_EI = self.intersection.sum(axis=2, dtype=np.int64)
        final_I, wrong_EI = hits_EI[self.final], self.label.sum(axis=1) - hits_EI
        least_EI = np.maximum(final_I - hits_EI, 0)
        most_EI = np.minimum(final_I, wrong_EI)
        most_EI[self.final] = 0
        wrong = np.argwhere((self.lost < least_EI) | (self.lost > most_EI))
        if len(wrong):
            exit_, image = wrong[0]
            raise CacheError(
                f"exit {self.exit_ids[exit_]!r}, image {image}: {self.lost[exit_, image]} lost "
                f"pixels, and by its hits they are between {least_EI[exit_, image]} and "
                f"{most_EI[exit_, image]}; memoise the split again"
            )
