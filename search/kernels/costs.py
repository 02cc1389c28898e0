"""Costs of a configuration with up to three early exits, compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

from mess.search.kernels.arrays import MEAN, NOBODY, STORED


@njit(cache=True, nogil=True)
def total(kind, path_3, path_last, left_2, stay, images):
    """Cost over all images of a configuration, of which `stay` reach the last exit."""
    if kind == STORED:
        return path_last * images
    if kind == MEAN:
        reach3 = images - left_2[0] - left_2[1] - stay
        early = left_2[0] * path_3[0] + left_2[1] * path_3[1] + reach3 * path_3[2]
        return early + stay * path_last
    if 10 * left_2[0] >= 9 * images:
        return path_3[0] * images
    if 10 * (left_2[0] + left_2[1]) >= 9 * images:
        return path_3[1] * images
    if 10 * (images - stay) >= 9 * images:
        return path_3[2] * images
    return path_last * images


@njit(cache=True, nogil=True)
def paths(prices, first, s1, second, s2, third, s3):
    """Cost at which each early exit answers, shape (M, 3), and the delay of what comes behind."""
    metrics = len(prices.kind_M)
    path_M3 = np.zeros((metrics, 3), dtype=np.int64)
    delay_M = np.zeros(metrics, dtype=np.int64)
    for position, (exit_, signal) in enumerate(((first, s1), (second, s2), (third, s3))):
        if exit_ == NOBODY:
            continue
        for m in range(metrics):
            delay_M[m] += prices.exit_ME[m, exit_] + prices.signal_MEK[m, exit_, signal]
            path = prices.backbone_ME[m, exit_] + delay_M[m] + prices.answer_ME[m, exit_]
            path_M3[m, position] = path
            delay_M[m] += prices.resume_ME[m, exit_]
    return path_M3, delay_M
