"""`shapes`: a drawn data set whose images range from easy to hard, by one number that is known.

It needs no download and trains in minutes, yet asks for what exits trade in: on an easy image a
large lone object mostly wears its class's tint, and a shallow exit can tell it; on a hard one many
small, noisy, blurred objects of any colour are told apart by outline alone, which takes depth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage import draw
from skimage.filters import gaussian
from skimage.segmentation import find_boundaries

from mess.common.metrics import VOID
from mess.config import DataConfig
from mess.data.base import ClassTable, Pair, SegmentationData, generator

CLASSES = ClassTable(
    names=("background", "ellipse", "rectangle", "triangle", "star", "ring"),
    colors=(
        (40, 40, 48),
        (230, 80, 60),
        (70, 130, 230),
        (90, 190, 90),
        (240, 190, 40),
        (170, 90, 200),
    ),
)

_VERSION = 1
"""Part of the fingerprint: raise it with any change to what is drawn."""

_SPLITS = ("train", "calibration", "test")
_VOID_RIM_SHARE = 0.2

Coordinates = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Scene:
    """What the difficulty of an image decides; lengths in shares of the shorter side."""

    objects: int
    radius: tuple[float, float]
    contrast: float
    """Distance of an object's colour from the background's, in [0, 1] of each channel's range."""
    tint: float
    """Probability that an object has the colour of its class."""
    texture: float
    """Amplitude of stripes, checks and grain on objects and background."""
    noise: float
    """Standard deviation of the sensor noise."""
    blur: float
    """Standard deviation of the blur."""

    @classmethod
    def of(cls, difficulty: float) -> Scene:
        """The scene at a difficulty in [0, 1]."""

        def between(easy: float, hard: float) -> float:
            return easy + (hard - easy) * difficulty

        return cls(
            objects=round(between(1, 12)),
            radius=(between(0.20, 0.08), between(0.34, 0.18)),
            contrast=between(0.55, 0.25),
            tint=between(0.95, 0.1),
            texture=between(0.05, 0.13),
            noise=between(0.01, 0.08),
            blur=between(0.003, 0.010),
        )


class Shapes(SegmentationData):
    """Image i of a split is drawn from (seed, split, i) and nothing else."""

    reads_root = False

    seed: int = 0

    @classmethod
    def open(cls, config: DataConfig, split: str, seed: int) -> Shapes:
        count = config.shapes[_SPLITS.index(split)]
        data = cls(
            where=f"split {split!r} of shapes",
            ids=[f"{split}-{i:05d}" for i in range(count)],
            classes=CLASSES,
            size=config.size,
        )
        data.seed = seed
        return data

    def difficulty(self, index: int) -> float:
        """In [0, 1], uniform over the images; 0 is the easiest."""
        return float(self._generator(self.image_id(index)).random())

    def _shape(self, image_id: str) -> tuple[int, int]:
        del image_id
        return self.size

    def _load(self, image_id: str) -> Pair:
        return draw_image(self._generator(image_id), self.size)

    def _content(self, image_id: str) -> Iterable[bytes]:
        # What is drawn hangs on the identifier: without it all images would count as one.
        yield f"shapes {_VERSION} {self.seed} {image_id}".encode()

    def _generator(self, image_id: str) -> np.random.Generator:
        split, number = image_id.rsplit("-", 1)
        return generator(self.seed, _SPLITS.index(split), int(number))


def draw_image(rng: np.random.Generator, size: tuple[int, int]) -> Pair:
    """Image (H, W, 3) and mask (H, W), uint8; the first number drawn is the difficulty."""
    scene = Scene.of(rng.random())
    side = min(size)
    base = rng.uniform(0.2, 0.8, 3)
    everywhere = (np.repeat(np.arange(size[0]), size[1]), np.tile(np.arange(size[1]), size[0]))
    canvas = (base + _texture(rng, everywhere, scene.texture, side)[:, None]).reshape(*size, 3)
    mask = np.zeros(size, np.uint8)
    for _ in range(scene.objects):
        label = int(rng.integers(1, CLASSES.num_classes))
        radius = side * rng.uniform(*scene.radius)
        pixels = _outline(rng, label, radius, size)
        shade = _colour(rng, base, label, scene)
        canvas[pixels] = shade + _texture(rng, pixels, scene.texture, side)[:, None]
        mask[pixels] = label
    canvas = gaussian(canvas, scene.blur * side, channel_axis=-1)
    canvas += scene.noise * rng.standard_normal(canvas.shape, np.float32)
    if rng.random() < _VOID_RIM_SHARE:
        mask[find_boundaries(mask, mode="outer")] = VOID
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8), mask


def _colour(
    rng: np.random.Generator, base: NDArray[np.float64], label: int, scene: Scene
) -> NDArray[np.float64]:
    """The class's own colour or any, moved to the scene's distance from the background."""
    own = rng.random() < scene.tint
    wanted = np.array(CLASSES.colors[label]) / 255 if own else rng.random(3)
    step = wanted - base
    # 1e-6: the wanted colour may be the background's own.
    step *= scene.contrast / max(float(np.abs(step).max()), 1e-6)
    # As far the other way, where a channel would leave its range.
    return np.where((base + step < 0) | (base + step > 1), base - step, base + step)


def _outline(
    rng: np.random.Generator, label: int, radius: float, size: tuple[int, int]
) -> Coordinates:
    """Pixels of an object of class `label` and about `radius` pixels, partly outside at most."""
    # At most half a side, or the range of the centre would be empty.
    margin = min(0.6 * radius, min(size) / 2)
    row, column = (float(rng.uniform(margin, side - margin)) for side in size)
    angle = rng.uniform(0, 2 * np.pi)
    aspect = rng.uniform(0.65, 1.0)
    name = CLASSES.names[label]
    if name == "ellipse":
        # skimage takes rotations from -π to π.
        return draw.ellipse(
            row, column, radius, radius * aspect, shape=size, rotation=angle - np.pi
        )
    if name == "ring":
        rows, columns = draw.disk((row, column), radius, shape=size)
        hole = radius * rng.uniform(0.5, 0.68)
        outside = np.hypot(rows - row, columns - column) >= hole
        return rows[outside], columns[outside]
    if name == "rectangle":
        half = np.array([aspect, rng.uniform(0.5, 0.9)]) * radius
        corners = half * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
        directions, lengths = np.arctan2(corners[:, 0], corners[:, 1]), np.hypot(*corners.T)
    elif name == "triangle":
        directions = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.25, 0.25, 3)
        lengths = np.full(3, 1.15 * radius)
    else:
        directions = np.arange(10) * np.pi / 5
        lengths = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.48), 1.15) * radius
    rows = row + lengths * np.sin(directions + angle)
    columns = column + lengths * np.cos(directions + angle)
    return draw.polygon(rows, columns, shape=size)


def _texture(
    rng: np.random.Generator, pixels: Coordinates, amplitude: float, side: int
) -> NDArray[np.float64]:
    """One of five patterns in [-1, 1] times `amplitude`, one value for each of `pixels`."""
    rows, columns = pixels
    kind = rng.choice(("flat", "ramp", "stripes", "checks", "grain"))
    angle = rng.uniform(0, np.pi)
    period = side * rng.uniform(0.05, 0.13)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    if kind == "flat":
        return np.zeros(len(rows))
    if kind == "ramp":
        return amplitude * np.sin(along / side + rng.uniform(0, 2 * np.pi))
    if kind == "stripes":
        return amplitude * np.sign(np.sin(2 * np.pi * along / period))
    if kind == "checks":
        product = np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period)
        return amplitude * np.sign(product)
    cells = rng.uniform(-1, 1, (16, 16))
    cell = max(period / 3, 1.0)
    return amplitude * cells[(rows / cell).astype(int) % 16, (columns / cell).astype(int) % 16]
