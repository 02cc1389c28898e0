"""torch data loaders over the sets, with worker processes where configured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mess.config import DataConfig
from mess.data.base import SegmentationData
from mess.data.sets import Draws, EvaluationSet, Item, TrainingSet
from mess.errors import MessError

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (B, 3, h, w) float32, labels (B, h, w) int64, indices (B,) of the images."""


def training_loader(
    data: SegmentationData,
    config: DataConfig,
    *,
    seed: int,
    iterations: int,
    batch_size: int,
    start: int = 0,
    every: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Augmented batches of every so many-th of the iterations `start`..`iterations`-1.

    A batch is image (B, 3, h, w) float32, label (B, h, w) int64 and index (B,), with (h, w) the
    `crop_size` of TrainingSet. Batches depend on seed and iteration, not on the workers.
    """
    draws = Draws(
        seed=seed,
        iterations=iterations,
        batch_size=batch_size,
        images=len(data),
        start=start,
        every=every,
        rank=rank,
        world=world,
    )
    loader = DataLoader(TrainingSet(data, config), batch_sampler=draws, **_options(config))
    return _plainly(loader)


def evaluation_loader(
    data: SegmentationData, config: DataConfig, *, batch_size: int
) -> Iterator[Batch]:
    """Every image once, in order: image (B, 3, H, W), label (B, H, W), index (B,).

    The last batch is smaller where `batch_size` does not divide the number of images.
    """
    loader = DataLoader(EvaluationSet(data, config), batch_size=batch_size, **_options(config))
    return _plainly(loader)


def _plainly(loader: DataLoader[Item]) -> Iterator[Batch]:
    """The batches; an error of a worker as it was raised there.

    torch puts the worker's traceback in front of the message.
    """
    try:
        yield from loader
    except MessError as error:
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise type(error)(str(error).rpartition(name)[2].strip()) from None


def _options(config: DataConfig) -> dict[str, Any]:
    # torch runs each worker with one intra-op thread already. The loader's own generator keeps it
    # from drawing a base seed from the global one, which would change dropout with the workers.
    # torch warns of more workers than cores.
    return {
        "num_workers": min(config.workers, _cores()),
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),
    }


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
