"""Caches of images without masks: what an exit predicted is in the place of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mess.cache.parquet import write_rows
from mess.cache.predictions import writer as writing
from mess.cache.predictions.store import PredictionStore
from mess.cache.predictions.verify import verify
from mess.cache.predictions.writer import CacheWriter, Identity
from mess.common.metrics import MASKS
from mess.errors import CacheError
from tests.cache.conftest import CLASSES, EXITS, IDENTITY, IMAGES, SHAPE, SIZE, fill, prediction
from tests.caches import Prediction, rows_of

AGAINST = replace(IDENTITY, labels="final")


def predicted(exit_id: str, image_id: str, identity: Identity = AGAINST) -> Prediction:
    """As of masks, but `final` is right everywhere, by its own predictions."""
    row = dict(prediction(exit_id, image_id, identity))
    own = prediction("final", image_id, identity)["predicted"]
    row["intersection"] = own if exit_id == "final" else np.minimum(row["predicted"], own)
    # The final exit is right everywhere: what is wrong is lost.
    row["lost"] = int(own.sum() - row["intersection"].sum())
    return row


def begin(store: PredictionStore, identity: Identity = AGAINST) -> tuple[CacheWriter, list[Any]]:
    writer, ids = CacheWriter(store, identity), list(identity.images)

    def rows(indices: Sequence[int]) -> list[dict[str, Any]]:
        nothing = {"height": SIZE[0], "width": SIZE[1], "label": [0] * len(CLASSES)}
        return [{"image_id": ids[index], **nothing} for index in indices]

    return writer, writer.begin(rows)


def fill_against(store: PredictionStore, identity: Identity = AGAINST) -> int:
    writer, gaps = begin(store, identity)
    for gap in gaps:
        writer.write(gap, rows_of(identity, gap, lambda e, i: predicted(e, i, identity)))
    writer.finish(dict.fromkeys(identity.exits, SHAPE))
    return sum(len(gap.images) * len(gap.exits) for gap in gaps)


def assert_labels(store: PredictionStore, identity: Identity = AGAINST) -> None:
    found, manifest = store.read({})
    assert manifest["labels"] == "final"
    expected = [predicted("final", image_id, identity)["predicted"] for image_id in identity.images]
    np.testing.assert_array_equal(found.label, expected)
    last = found.exit_ids.index("final")
    np.testing.assert_array_equal(found.intersection[last], found.label)
    assert verify(store).faults == ()


def test_labels_are_what_the_exit_predicted(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    assert fill_against(store) == len(EXITS) * len(IMAGES)
    assert_labels(store)
    assert begin(store)[0].is_finished()


def test_labels_follow_the_exit(tmp_path: Path) -> None:
    """Of other weights the rows of the images are known, but not their labels."""
    store = PredictionStore(tmp_path)
    fill_against(store)
    trained_again = replace(AGAINST, exits=dict.fromkeys(EXITS, "other"), weights="other")
    assert fill_against(store, trained_again) == len(EXITS) * len(IMAGES)
    assert_labels(store, trained_again)
    another = replace(trained_again, images={"image-9": "i9"} | IMAGES)
    assert fill_against(store, another) == len(EXITS)
    assert_labels(store, another)


def test_an_unfinished_cache_has_no_other_fault(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    writer, (gap,) = begin(store)
    writer.write(gap, rows_of(AGAINST, gap, predicted))
    (fault,) = verify(store).faults
    assert "is unfinished" in fault
    with pytest.raises(CacheError, match="is unfinished"):
        store.read({"weights": "ab12"})


def test_a_kill_after_the_labels_loses_no_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is then of other images, and both are written again."""
    store = PredictionStore(tmp_path)
    writer, (gap,) = begin(store)
    writer.write(gap, rows_of(AGAINST, gap, predicted))

    def killed(*arguments: Any) -> None:
        write_rows(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(dict.fromkeys(EXITS, SHAPE))
    with pytest.raises(CacheError, match=r"images\.parquet is missing or was altered"):
        store.images(store.manifest())
    assert fill_against(store) == 0
    assert_labels(store)


def test_an_exit_that_differs_from_its_own_labels_is_a_fault(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path)
    writer, (gap,) = begin(store)
    writer.write(gap, rows_of(AGAINST, gap, lambda e, i: prediction(e, i, AGAINST)))
    writer.finish(dict.fromkeys(EXITS, SHAPE))
    assert any("final differs from its own label maps" in fault for fault in verify(store).faults)


def test_caches_from_before_there_was_a_choice_are_of_masks(store: PredictionStore) -> None:
    """They are read, and memoising again finds nothing to do."""
    content = json.loads((store.directory / "manifest.json").read_text())
    for name in ("labels", "checksum", "schema_version"):
        del content[name]
    store.write_manifest(content)
    assert "labels" not in json.loads((store.directory / "manifest.json").read_text())
    assert store.read({})[1]["labels"] == MASKS
    assert CacheWriter(store, IDENTITY).is_finished()
    assert fill(store) == 0
