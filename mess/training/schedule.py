"""Learning rates over the iterations of a stage."""

from __future__ import annotations

import math

from mess.config import StageConfig, TrainingConfig


def learning_rate(
    training: TrainingConfig, stage: StageConfig, initial: float, iteration: int
) -> float:
    """The rate of `iteration` (0-based) for weights whose rate begins at `initial`.

    It falls as `training.schedule` says, "poly" (MESS supplement, §2.3) or "cosine", rises over the
    first `stage.warmup` iterations to what that gives, and is never below `min_learning_rate`. The
    floor is a rate and no share: the 2025 paper (§IV) has one for backbone and exits, whose initial
    rates differ.
    """
    # From 0, so that the last iteration still moves the weights.
    done = iteration / stage.iterations
    if training.schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    else:
        left = (1.0 - done) ** training.poly_power
    # Each iteration of the warm-up counts: the first is no step of nothing, the one after the last
    # has the whole rate.
    warm = min((iteration + 1) / (stage.warmup + 1), 1.0)
    return max(initial * left * warm, stage.min_learning_rate or 0.0)
