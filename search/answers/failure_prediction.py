"""How well a signal tells which images an exit fails on: risk against coverage.

The images are answered in the order of a signal, the surest first. The risk at a coverage is the
mean failure of those answered so far, and the area under it (AURC) sums a signal up: a failure is
1 - the image's own mean IoU. An area depends on how often an exit fails at all, so it is put
between that of a guess and that of an oracle.

Shapes: E exits, I images, K signals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mess.search.problem.tables import Tables

Floats = NDArray[np.float64]


def image_mious(tables: Tables) -> Floats:
    """Mean IoU of each image by itself, (E, I); NaN for an image without a labelled pixel.

    Not to be confused with the mIoU of a data set, whose unions are summed over the images.
    """
    union = tables.predicted + tables.label.astype(np.int64) - tables.intersection
    # An image that is void throughout divides 0 by 0, and is NaN in the end.
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, tables.intersection / np.maximum(union, 1), 0.0)
        means = iou.sum(axis=2) / (union > 0).sum(axis=2)
    return np.where(tables.label.sum(axis=1) > 0, means, np.nan)


def area_under_risk(signal: NDArray[np.floating], risk: Floats) -> float:
    """AURC: mean over the coverages 1/n, 2/n, ..., 1 of the mean risk of the surest images.

    Larger signals are surer. Images with equal signals come in any order: each then counts with
    the mean of theirs. Both have shape (n,).
    """
    _, group, sizes = np.unique(-signal.astype(np.float64), return_inverse=True, return_counts=True)
    mean = np.bincount(group, weights=risk) / sizes
    answered = np.repeat(mean, sizes)
    return float((np.cumsum(answered) / np.arange(1, len(risk) + 1)).mean())


def failure_prediction(signal: NDArray[np.floating], risk: Floats) -> float:
    """Share of the way from a guess (0) to an oracle (1) that a signal goes; below 0 if misleading.

    NaN where all images fail alike.
    """
    guess, oracle = float(risk.mean()), area_under_risk(-risk, risk)
    if guess - oracle < 1e-12:
        return float("nan")
    return (guess - area_under_risk(signal, risk)) / (guess - oracle)


def ranking(tables: Tables) -> dict[str, float]:
    """`failure_prediction` of every signal, the mean over the exits that can be early.

    Of a signal that compares exits, over all pairs. NaN for one that says nothing anywhere.
    """
    risk = 1 - image_mious(tables)
    labelled = ~np.isnan(risk[0])
    risk, ranked = risk[:, labelled], {}
    for k, name in enumerate(tables.signal_names):
        scores = [
            failure_prediction(observed[labelled], risk[exit_])
            for exit_, observed in _observations(tables, k)
        ]
        known = [score for score in scores if not np.isnan(score)]
        ranked[name] = float(np.mean(known)) if known else float("nan")
    return ranked


def _observations(tables: Tables, k: int) -> list[tuple[int, NDArray[np.float32]]]:
    """Exits that can be early and what a signal is at each, after each exit before it."""
    if tables.pairs is None:
        early = np.flatnonzero(tables.point < tables.points).tolist()
        return [(exit_, tables.signals[exit_, :, k]) for exit_ in early]
    return [(int(b), tables.pairs[a, b]) for a, b in np.argwhere(tables.follows)]
