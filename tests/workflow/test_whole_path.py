"""Train, search, export, run: the cache's answer is what the instance really does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mess import load_bundle, workflow
from mess.cache.parquet import read_rows
from mess.cache.predictions.store import PredictionStore
from mess.cache.schema import EXITS
from mess.common.progress import Silent, Task
from mess.errors import BundleError, MessError
from mess.runs.run import Run
from tests.seeds import seeded

pytestmark = pytest.mark.numerics

SETTINGS = {
    "input-dependent": {"target": "macs", "max_error": 0.05},
    "anytime": {"target": "accuracy"},
    "budgeted": {"target": "macs", "max_error": 0.1},
    "final-only": {"target": "macs", "max_error": 0.1},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_bundle_does_what_the_search_predicted(
    run: Run, searched: Callable[..., Path], setting: str
) -> None:
    bundle = searched(setting=setting, **SETTINGS[setting])
    report = workflow.evaluate(bundle, split="calibration")
    agreement = report["agreement"]
    assert agreement["same_exit"] >= 0.999
    assert report["miou"] == pytest.approx(agreement["predicted_miou"], abs=1e-4)
    assert report["macs"] == pytest.approx(agreement["predicted_macs"], rel=1e-3)
    assert report["images"] == 40
    exits = json.loads((bundle / "manifest.json").read_text())["exits"]
    # Where every exit answers on the way, each does for every image.
    rates = [exit_["exit_rate"] for exit_ in exits]
    assert report["exit_rates"] == pytest.approx(rates)
    assert sum(rates) == pytest.approx(len(rates) if setting == "anytime" else 1.0)


def test_an_input_dependent_answer_uses_its_thresholds(
    run: Run, searched: Callable[..., Path]
) -> None:
    """A request between two exits' costs is met by sending some images each way."""
    rows = [row for row in read_rows(run.exits, EXITS) if row["status"] == "trained"]
    paths = sorted(row["backbone_macs"] + row["exit_macs"] for row in rows)
    limit = (paths[0] + paths[-1]) / 2
    bundle = searched(target="accuracy", max_macs=limit, max_exits=2)
    report = workflow.evaluate(bundle, split="calibration")
    assert report["macs"] <= limit
    assert report["agreement"]["same_exit"] >= 0.999


def test_an_anytime_bundle_is_measured_at_every_exit(
    run: Run, searched: Callable[..., Path]
) -> None:
    """The request asks for an early exit, which delivers what was promised."""
    whole = workflow.search(run.path, setting="final-only", target="accuracy")
    deadline = 0.9 * whole["baseline"]["macs"]
    bundle = searched(setting="anytime", target="macs", checkpoints=[f"{deadline}=0.01"])
    result = json.loads((run.search(run.searches()[-1]) / "result.json").read_text())
    report = workflow.evaluate(bundle, split="calibration")
    assert len(report["exits"]) == len(result["exits"]) >= 2
    for measured, promised in zip(report["exits"], result["exits"], strict=True):
        assert measured["exit_id"] == promised["exit_id"]
        assert measured["miou"] == pytest.approx(promised["miou"], abs=1e-4)
        assert measured["macs"] == pytest.approx(promised["delivered"]["macs"], rel=1e-3)
    assert report["exits"][0]["macs"] <= deadline


def test_an_early_exit_can_be_asked_for_without_a_deadline(
    run: Run, searched: Callable[..., Path]
) -> None:
    """Table 7 of the MESS paper: the least overhead with an early exit that is accurate enough."""
    least = workflow.search(run.path, setting="final-only", target="accuracy")["baseline"]["miou"]
    asked = {"setting": "anytime", "target": "macs", "checkpoints": [f"early={0.5 * least}"]}
    bundle = searched(**asked)
    found = json.loads((run.search(run.searches()[-1]) / "result.json").read_text())
    assert found["constraints"]["checkpoints"] == [[None, 0.5 * least]]
    (point,) = found["checkpoints"]
    assert point["cost"] is None
    early, last = found["exits"]
    assert point["miou"] == early["miou"] >= 0.5 * least
    assert last["exit_id"] == "final"
    report = workflow.evaluate(bundle, split="calibration")
    assert report["exit_rates"] == [1.0, 1.0]
    assert report["exits"][0]["miou"] == pytest.approx(early["miou"], abs=1e-4)
    before = run.searches()[-1]
    assert workflow.search(run.path, **asked)["search"]["source"] == before
    with pytest.raises(MessError, match="leave --confidence and --expect out"):
        workflow.search(run.path, **asked, confidence=0.9)


def test_a_torch_bundle_answers_as_the_onnx_one(run: Run, searched: Callable[..., Path]) -> None:
    onnx = searched(target="macs", max_error=0.05)
    torch = workflow.export(run.path, format="torch")
    image = np.random.default_rng(seeded(0)).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    ours, theirs = load_bundle(onnx)(image), load_bundle(torch, trust=True)(image)
    assert ours.exit_id == theirs.exit_id
    assert np.mean(ours.label_map == theirs.label_map) > 0.999
    # Its programs are code, and to evaluate one of the run's own is no more to trust it.
    with pytest.raises(BundleError, match="--trust"):
        workflow.evaluate(torch)
    report = workflow.evaluate(torch, trust=True)
    assert report["bundle"] == str(torch)


def test_evaluation_reports_the_network_run_to_its_end(
    run: Run, searched: Callable[..., Path]
) -> None:
    report = workflow.evaluate(searched(target="macs", max_error=0.05), split="test")
    assert report["split"] == "test"
    assert report["images"] == 24
    assert report["error"] == pytest.approx(report["baseline"]["miou"] - report["miou"])
    assert report["macs"] <= report["baseline"]["macs"]
    assert report["latency_ms"] > 0


@pytest.mark.parametrize("fault", ["gone", "other"])
def test_without_the_searched_cache_all_but_agreement_is_told(
    run: Run, searched: Callable[..., Path], fault: str
) -> None:
    bundle = searched(target="macs", max_error=0.05)
    told = Told()
    if fault == "gone":
        shutil.rmtree(run.cache("calibration"))
    else:
        store = PredictionStore(run.cache("calibration"))
        recorded = {**store.manifest(), "data": "of other images"}
        del recorded["schema_version"]
        store.write_manifest(recorded)
    report = workflow.evaluate(bundle, split="calibration", reporter=told)
    assert report["images"] == 40
    assert "agreement" not in report
    # Before the images are run.
    assert "agrees with its search is not told: " in told.lines[0]
    assert told.lines[1] == "evaluating on calibration"


class Told:
    """Messages and names of tasks, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def task(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Task]:
        self.lines.append(name)
        return Silent().task(name, total, done)


def test_an_altered_baseline_is_exported_again(run: Run, searched: Callable[..., Path]) -> None:
    bundle = searched(target="macs", max_error=0.05)
    program = run.bundle("baseline") / "segment-1.onnx"
    content = bytearray(program.read_bytes())
    whole = bytes(content)
    content[len(content) // 2] ^= 1
    program.write_bytes(content)
    with pytest.raises(MessError, match=r"segment-1\.onnx was altered .*Export"):
        workflow.evaluate(bundle)
    workflow.export(run.path)
    assert program.read_bytes() == whole


def test_predictions_are_palette_images_of_the_image_s_own_size(
    run: Run, searched: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = searched(target="macs", max_error=0.05)
    image = tmp_path / "photo.png"
    Image.fromarray(np.full((90, 70, 3), 127, np.uint8)).save(image)
    rows = workflow.predict(bundle, [image], output=tmp_path / "out")
    with Image.open(rows[0]["label_map"]) as picture:
        assert picture.mode == "P"
        assert picture.size == (70, 90)
        assert np.asarray(picture).max() < 6


def test_a_finished_run_is_not_trained_again(run: Run) -> None:
    before = run.weights.stat().st_mtime_ns
    workflow.train_overprovisioned(run=run.path)
    assert run.weights.stat().st_mtime_ns == before


def test_result_json_has_the_keys_others_rely_on(run: Run) -> None:
    found = workflow.search(run.path, target="latency", max_error=0.05)
    result = json.loads((Path(found["path"]) / "result.json").read_text())
    assert {
        "setting", "target", "constraints", "exits", "predicted", "baseline", "error", "search",
        "cache",
    } <= result.keys()  # fmt: skip
    assert {"miou", "macs", "latency_ms", "params"} == result["predicted"].keys()
    assert {
        "algorithm", "space", "configurations", "evaluated", "optimal", "gap", "seconds",
    } <= result["search"].keys()  # fmt: skip
    for exit_ in result["exits"]:
        assert {"exit_id", "signal", "threshold", "exit_rate"} <= exit_.keys()
    assert result["exits"][-1]["signal"] is None
    assert result["exits"][-1]["threshold"] is None
