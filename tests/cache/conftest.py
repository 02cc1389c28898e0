"""A small cache whose numbers follow from what they are said to be computed from."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mess.cache.content import find_parts
from mess.cache.predictions.store import Predictions, PredictionStore
from mess.cache.predictions.writer import CacheWriter, Identity
from tests.caches import Prediction, rows_of
from tests.seeds import seeded

CLASSES = ("sky", "road", "car")
EXITS = {"p1-crm1-b0-fcn": "e1", "p2-crm2-b1-rdi-fcn": "e2", "final": "e3"}
IMAGES = {f"image-{i}": f"i{i}" for i in range(5)}
SIZE, SHAPE = (32, 48), (4, 6)
PART_IMAGES = 2

IDENTITY = Identity(
    classes=CLASSES,
    exits=EXITS,
    images=IMAGES,
    signals=({"name": "share-top1-0.5"}, {"name": "share-top1-0.5-edges"}),
    weights="ab12",
    pipeline="ef56",
    data="cd34",
    source={"kind": "folder", "split": "calibration", "root": None},
    label_maps=True,
    confidence_maps=(),
)


def label(fingerprint: str) -> np.ndarray:
    """Labelled pixels of an image."""
    return _generator(fingerprint).integers(200, 400, len(CLASSES))


def prediction(exit_id: str, image_id: str, identity: Identity = IDENTITY) -> Prediction:
    """Numbers that depend on the two fingerprints and the names of the signals alone."""
    prints = identity.exits[exit_id], identity.images[image_id]
    rng, labels = _generator(*prints), label(prints[1])
    hits = rng.integers(0, labels + 1)
    wrong = rng.multinomial((labels - hits).sum(), [1 / 3] * 3)
    signals = [_generator(*prints, name).random() for name in identity.signal_names]
    return {
        "intersection": hits,
        "predicted": hits + wrong,
        "agreement": int(rng.integers(0, 99)),
        "signals": signals,
        "lost": int(rng.integers(0, wrong.sum() + 1)),
        "label_map": rng.bytes(7),
        "confidence_map": rng.bytes(5) if exit_id in identity.confidence_maps else None,
    }


def begin(store: PredictionStore, identity: Identity) -> tuple[CacheWriter, list[Any]]:
    """A writer and its gaps, two images a part."""
    writer = CacheWriter(store, identity)
    ids = list(identity.images)
    gaps = writer.begin(
        lambda indices: [
            {
                "image_id": ids[index],
                "height": SIZE[0],
                "width": SIZE[1],
                "label": label(identity.images[ids[index]]),
            }
            for index in indices
        ]
    )
    return writer, [
        replace(gap, images=gap.images[start : start + PART_IMAGES])
        for gap in gaps
        for start in range(0, len(gap.images), PART_IMAGES)
    ]


def fill(store: PredictionStore, identity: Identity = IDENTITY) -> int:
    """Bring a cache to an identity as `mess memoise` does; returns the predictions it took."""
    writer, gaps = begin(store, identity)
    for gap in gaps:
        rows = rows_of(identity, gap, lambda e, i: prediction(e, i, identity))
        writer.write(gap, rows)
    writer.finish(dict.fromkeys(identity.exits, SHAPE))
    return sum(len(gap.images) * len(gap.exits) for gap in gaps)


def assert_true(found: Predictions, identity: Identity = IDENTITY) -> None:
    """Every number is what it should be."""
    assert found.exit_ids == tuple(identity.exits)
    assert found.image_ids == tuple(identity.images)
    for i, image_id in enumerate(found.image_ids):
        np.testing.assert_array_equal(found.label[i], label(identity.images[image_id]))
        for e, exit_id in enumerate(found.exit_ids):
            expected = prediction(exit_id, image_id, identity)
            np.testing.assert_array_equal(found.intersection[e, i], expected["intersection"])
            np.testing.assert_array_equal(found.predicted[e, i], expected["predicted"])
            np.testing.assert_array_equal(found.signals[e, i], np.float32(expected["signals"]))
            assert found.lost is not None
            assert found.lost[e, i] == expected["lost"]


def part_files(store: PredictionStore) -> list[Path]:
    """The parts of a cache in the order of their first images."""
    found = find_parts(store.parts_folder)
    return sorted(found, key=lambda path: next(iter(_images_of(path))))


def _images_of(path: Path) -> dict[str, str]:
    from mess.cache.predictions.parts import open_part

    return dict(open_part(path).images)


@pytest.fixture
def store(tmp_path: Path) -> PredictionStore:
    """A complete cache of five images in three parts."""
    store = PredictionStore(tmp_path / "calibration")
    assert fill(store) == len(EXITS) * len(IMAGES)
    return store


def _generator(*parts: str) -> np.random.Generator:
    return np.random.default_rng(seeded(zlib.crc32(" ".join(parts).encode())))
