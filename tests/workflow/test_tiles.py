"""Runs on padded images and on tiles: memoised, searched, shipped, evaluated, certified."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mess import workflow
from mess.cache.predictions.store import Predictions, PredictionStore
from mess.cli.app import main
from mess.common.metrics import VOID, mean_iou
from mess.data.base import image_of
from mess.errors import BundleError
from mess.runs.run import Run
from mess.runtime.bundle import load_bundle
from tests.made import draw, write_images
from tests.seeds import seeded
from tests.workflow.test_caching import Listener
from tests.workflow.test_inputs import changed

SHAPE = (88, 112)
"""Two by two tiles of 48 by 64 that begin where cells do: starts are 0 and 40, 0 and 48."""

COUNTS = {"train": 10, "val": 12, "test": 8}

TWO_EXITS: dict[str, Any] = {"target": "macs", "max_exits": 2, "max_error": 0.03}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Larger images than the run's, and one smaller than a tile."""
    rng = np.random.default_rng(seeded(0))
    root = tmp_path / "large"
    write_images(root, COUNTS, SHAPE, rng)
    image, mask = draw(rng, 0.5, (32, 64))
    Image.fromarray(image).save(root / "val" / "images" / "small.png")
    Image.fromarray(mask).save(root / "val" / "masks" / "small.png")
    return root


@pytest.fixture
def fitted(run: Run, root: Path) -> Callable[[str], Run]:
    """The run as if it had been trained on these images, in one way; memoised."""

    def make(fit: str) -> Run:
        place = changed(run, {"root": root, "fit": fit})
        workflow.memoise(place.path)
        return place

    return make


def held(run: Run, name: str = "calibration") -> Predictions:
    return PredictionStore(run.cache(name)).read({})[0]


def pictures(root: Path, split: str = "val") -> list[Path]:
    return sorted((root / split / "images").iterdir())


def of_masks(root: Path, label_maps: list[Path]) -> float:
    """The mIoU of label maps at the size of the masks."""
    counts = np.zeros((3, 6), np.int64)
    for path in label_maps:
        found = np.asarray(Image.open(path))
        mask = np.asarray(Image.open(root / "val" / "masks" / path.name))
        valid = mask != VOID
        counts[0] += np.bincount(mask[valid & (mask == found)], minlength=6)
        counts[1] += np.bincount(found[valid], minlength=6)
        counts[2] += np.bincount(mask[valid], minlength=6)
    return float(mean_iou(*counts))


def test_tiles_are_worth_what_the_stitched_label_maps_are(
    fitted: Callable[[str], Run], root: Path, tmp_path: Path
) -> None:
    """What the cache says of tiles, what evaluation measures, and the files of `mess predict`."""
    run = fitted("tile")
    assert len(held(run).image_ids) == 12 * 4 + 1
    found = workflow.search(run.path, **TWO_EXITS)
    bundle = workflow.export(run.path)
    report = workflow.evaluate(bundle, split="calibration")
    assert report["images"] == 49
    assert report["agreement"]["same_exit"] == 1.0
    assert report["miou"] == pytest.approx(found["predicted"]["miou"], rel=1e-12)
    rows = workflow.predict(bundle, pictures(root), output=tmp_path / "out")
    maps = [Path(row["label_map"]) for row in rows]
    assert of_masks(root, maps) == pytest.approx(found["predicted"]["miou"], rel=1e-12)
    # Tiles of one image leave at exits of their own.
    exits = [exit_["exit_id"] for exit_ in found["exits"]]
    left = np.array([[row["tiles"][name] for name in exits] for row in rows])
    assert left.sum(axis=1).tolist() == [4] * 12 + [1]
    assert ((left > 0).sum(axis=1) > 1).any()
    np.testing.assert_allclose(left.sum(axis=0) / 49, report["exit_rates"])
    deepest = [exits[int(np.flatnonzero(row)[-1])] for row in left]
    assert [row["exit_id"] for row in rows] == deepest
    assert rows[-1]["signal"] is not None or rows[-1]["exit_id"] == exits[-1]


def test_padded_images_are_answered_without_the_padding(
    fitted: Callable[[str], Run], root: Path, tmp_path: Path
) -> None:
    run = fitted("pad")
    found = workflow.search(run.path, **TWO_EXITS)
    bundle = workflow.export(run.path)
    report = workflow.evaluate(bundle, split="calibration")
    assert report["agreement"]["same_exit"] == 1.0
    assert report["miou"] == pytest.approx(found["predicted"]["miou"], rel=1e-12)
    # 88 by 112 in 48 by 64: 48 by 61.
    assert held(run).label.sum(axis=1).max() <= 48 * 61
    loaded = load_bundle(bundle)
    large, *_, small = pictures(root)
    assert loaded(large).label_map.shape == (48, 61)
    assert loaded(small).label_map.shape == (32, 64)
    assert loaded(large).tiles is None
    whole = loaded.answer(loaded.preprocess(large)).label_map
    np.testing.assert_array_equal(loaded(large).label_map, whole[:, 1:62])
    rows = workflow.predict(bundle, [large], output=tmp_path / "out")
    assert np.asarray(Image.open(rows[0]["label_map"])).shape == SHAPE
    assert rows[0]["tiles"] is None


def test_the_command_tells_how_many_tiles_left_where(
    fitted: Callable[[str], Run],
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = fitted("tile")
    workflow.search(run.path, setting="final-only", target="macs", max_error=0.5)
    bundle = workflow.export(run.path)
    image = pictures(root)[0]
    words = ["mess", "predict", str(bundle), str(image), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*words, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    (exit_,) = load_bundle(bundle).manifest["exits"]
    told = json.loads(capsys.readouterr().out)
    (answer,) = told if isinstance(told, list) else told["images"]
    assert answer["tiles"] == {exit_["exit_id"]: 4}


def test_an_anytime_bundle_hands_out_whole_pictures(
    fitted: Callable[[str], Run], root: Path
) -> None:
    run = fitted("tile")
    workflow.search(run.path, **TWO_EXITS)
    bundle = load_bundle(workflow.export(run.path))
    image = pictures(root)[0]
    answers = list(bundle.stream(image))
    assert [answer.exit_index for answer in answers] == [0, 1]
    assert [answer.tiles for answer in answers] == [(4, 0), (0, 4)]
    assert all(answer.label_map.shape == SHAPE for answer in answers)
    with pytest.raises(BundleError, match=r"of \(88, 112\) makes 4 tiles of \(48, 64\)"):
        bundle.preprocess(image)


def test_tiles_of_an_image_certify_together(fitted: Callable[[str], Run], root: Path) -> None:
    run = fitted("tile")
    workflow.search(run.path, **TWO_EXITS)
    bundle = workflow.export(run.path)
    report = workflow.certify([bundle], max_error=0.9, confidence=0.9)
    (tested,) = report["tested"]
    assert (tested["images"], tested["groups"]) == (32, 8)
    plan = json.loads((Path(report["path"]) / "plan.json").read_text())
    assert plan["groups"] == [image_of(item) for item in plan["images"]]
    # An expression is on the id of the image: here all of a split are one group.
    changed(run, {"groups": "^([a-z]+)"})
    with pytest.raises(Exception, match=r"1 group"):
        workflow.certify([bundle], max_error=0.9, confidence=0.9)


def test_nearly_identical_images_are_told_by_whole_images(run: Run, root: Path) -> None:
    """Not by tiles, of which empty ones are alike anywhere."""
    first, second, *_ = pictures(root)
    pixels = np.asarray(Image.open(first)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(second)
    place, listener = changed(run, {"root": root, "fit": "tile"}), Listener()
    workflow.memoise(place.path, reporter=listener)
    (warning,) = [text for text in listener.messages if "nearly identical" in text]
    assert "8 of 49 images are nearly identical to one of another group" in warning
    assert f"such as {first.stem} and {second.stem}" in warning


def test_pictures_without_masks_are_memoised_by_tile(
    fitted: Callable[[str], Run], root: Path, tmp_path: Path
) -> None:
    """As masks would be that the stitched network drew."""
    run = fitted("tile")
    workflow.search(run.path, setting="final-only", target="macs", max_error=0.5)
    workflow.export(run.path)
    site = root / "test" / "images"
    workflow.memoise(run.path, images=site, labels="final", name="site")
    rows = workflow.predict(run.bundle("baseline"), pictures(root, "test"), output=tmp_path / "out")
    drawn = tmp_path / "drawn" / "val"
    (drawn / "masks").mkdir(parents=True)
    for row in rows:
        Path(row["label_map"]).rename(drawn / "masks" / Path(row["label_map"]).name)
    site.rename(drawn / "images")
    (root / "classes.json").rename(tmp_path / "drawn" / "classes.json")
    workflow.memoise(run.path, root=tmp_path / "drawn", name="drawn")
    ours, theirs = held(run, "site"), held(run, "drawn")
    assert ours.image_ids == theirs.image_ids
    for name in ("label", "intersection", "predicted", "lost", "signals"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    assert ours.label.sum() == 8 * 88 * 112


@pytest.mark.parametrize("fit", ["pad", "tile"])
def test_pictures_without_masks_are_evaluated_where_they_count(
    fitted: Callable[[str], Run], root: Path, fit: str
) -> None:
    run = fitted(fit)
    site = root / "test" / "images"
    workflow.memoise(run.path, images=site, labels="final", name="site")
    found = workflow.search(run.path, cache="site", **TWO_EXITS)
    bundle = workflow.export(run.path)
    report = workflow.evaluate(bundle, images=site, labels="final")
    assert report["agreement"]["same_exit"] == 1.0
    assert report["miou"] == pytest.approx(found["predicted"]["miou"], rel=1e-12)
    assert report["baseline"]["miou"] == 1.0


def test_a_bundle_that_fits_images_otherwise_than_the_run_is_refused(
    fitted: Callable[[str], Run],
) -> None:
    run = fitted("pad")
    workflow.search(run.path, **TWO_EXITS)
    bundle = workflow.export(run.path)
    changed(run, {"fit": "stretch"})
    with pytest.raises(BundleError, match=r"fit='pad'.*has .*fit='stretch'"):
        workflow.evaluate(bundle)
