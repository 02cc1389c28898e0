"""Tensors for training and evaluation, and the order in which training visits the images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors

from mess.common.normalisation import Normalisation
from mess.config import DataConfig
from mess.data.augment import augmentation
from mess.data.base import SegmentationData, generator
from mess.errors import ConfigError

Item = tuple[Tensor, Tensor, int]
"""Normalised image (3, H, W) float32; label (H, W) int64 with 255 void; index of the image."""

Draw = tuple[int, int]
"""Index of an image, and the seed of its augmentation."""

_ORDER_KEY, _DRAW_KEY = 11, 13


class EvaluationSet(Dataset[Item]):
    """Every image of a split at the run's size, in order and unaugmented."""

    def __init__(self, data: SegmentationData, config: DataConfig) -> None:
        self.data = data
        self._normalisation = config.normalisation

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        return *_tensors(*self.data.judged(index), self._normalisation), index


class TrainingSet(Dataset[Item]):
    """Augmented crops of `crop_size`; an item depends on its draw (index, seed) alone."""

    def __init__(self, data: SegmentationData, config: DataConfig) -> None:
        self.data = data
        self.crop_size = config.crop_size
        self._config = config
        self._normalisation = config.normalisation

    def __getitem__(self, draw: Draw) -> Item:
        index, seed = draw
        # The copies are writable, which torch asks for; the originals stay in memory untouched.
        pair, size = self.data.trained(index)
        image_HW3, mask_HW = (torch.from_numpy(array.copy()) for array in pair)
        augment = augmentation(self._config, self.crop_size, size)
        # torchvision draws from the global generator. torch.manual_seed would reseed the GPU's as
        # well, and dropout with it when items are made in the main process.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image, mask = augment(
                tv_tensors.Image(image_HW3.permute(2, 0, 1)), tv_tensors.Mask(mask_HW)
            )
        pixels_HW3 = image.permute(1, 2, 0).numpy()
        return *_tensors(pixels_HW3, mask.numpy(), self._normalisation), index


class Draws(Sampler[list[Draw]]):
    """Batches of draws: a seeded shuffle an epoch, every image once in each, no batch cut short.

    A batch may span two epochs. The k-th batch is a function of (seed, k), so a run resumed at
    `start` = k sees what the uninterrupted one would have; `every` leaves out those between. With
    `world` processes, each of rank 0..world-1 gets its share of every batch.
    """

    def __init__(
        self,
        *,
        seed: int,
        iterations: int,
        batch_size: int,
        images: int,
        start: int = 0,
        every: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise ConfigError(
                f"batch_size {batch_size} does not divide among {world} processes; "
                f"use a multiple of {world}."
            )
        self.seed, self.batch_size = seed, batch_size
        self.images, self.rank, self.world = images, rank, world
        self._iterations = range(start, iterations, every)

    def __len__(self) -> int:
        return len(self._iterations)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, np.int64)
        for iteration in self._iterations:
            batch: list[Draw] = []
            for position in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
                if position // self.images != epoch:
                    epoch = position // self.images
                    order = generator(self.seed, _ORDER_KEY, epoch).permutation(self.images)
                batch.append((int(order[position % self.images]), self._draw_seed(position)))
            yield batch[self.rank :: self.world]

    def _draw_seed(self, position: int) -> int:
        return int(generator(self.seed, _DRAW_KEY, position).integers(2**63))


def _tensors(
    image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.uint8], normalisation: Normalisation
) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(normalisation.apply(image_HW3))
    return image, torch.from_numpy(mask_HW.astype(np.int64))
