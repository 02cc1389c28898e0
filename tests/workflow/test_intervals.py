"""Intervals through the commands: `mess evaluate`, `mess search`, `--policy all`, `mess report`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mess import workflow
from mess.cache.parquet import read_rows
from mess.cache.schema import EXITS
from mess.cli.app import main
from mess.common.files import write_text
from mess.common.metrics import VOID
from mess.config import load_config
from mess.data.shapes import CLASSES
from mess.runs.run import Run
from mess.sentences.intervals import interval_lines
from mess.sentences.new_images import new_images_lines

Searched = Callable[..., Path]

CALIBRATION_IDS = [f"calibration-{number:05d}" for number in range(40)]
TEST_IDS = [f"test-{number:05d}" for number in range(24)]


def routed(run: Run) -> dict[str, Any]:
    """Options of a search whose answer sends some images each way."""
    rows = [row for row in read_rows(run.exits, EXITS) if row["status"] == "trained"]
    paths = sorted(row["backbone_macs"] + row["exit_macs"] for row in rows)
    return {"target": "accuracy", "max_macs": (paths[0] + paths[-1]) / 2, "max_exits": 2}


def configure(run: Run, **values: object) -> None:
    overrides = [f"data.{key}={json.dumps(str(value))}" for key, value in values.items()]
    write_text(run.config_file, load_config(run.config_file, overrides).to_toml())


def write_groups(path: Path, groups: dict[str, Any]) -> Path:
    lines = [f"{name},{group}" for name, group in groups.items()]
    path.write_text("\n".join(["image_id,group", *lines]))
    return path


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["mess", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0


def rare_in(masks: Path) -> list[str]:
    """Classes that fewer than six masks have."""
    counts = np.zeros(CLASSES.num_classes, dtype=np.int64)
    for file in masks.iterdir():
        present = np.unique(np.array(Image.open(file)))
        counts[present[present != VOID]] += 1
    return [name for name, count in zip(CLASSES.names, counts, strict=True) if count < 6]


def figures(intervals: dict[str, Any]) -> list[dict[str, float]]:
    """Every figure with an interval."""
    found = [intervals[key] for key in ("miou", "error", "macs", "latency_ms")]
    found += [intervals["baseline"]["miou"], *intervals["exit_rates"]]
    common = [row for row in intervals["classes"] if row["class"] not in intervals["rare"]]
    return found + [row[key] for row in common for key in ("iou", "error")]


def test_every_figure_of_an_evaluation_has_its_interval(run: Run, searched: Searched) -> None:
    report = workflow.evaluate(searched(**routed(run)), split="test")
    intervals = report["intervals"]
    about = ("confidence", "images", "groups", "strength", "reason", "searched")
    assert [intervals[key] for key in about] == [0.95, 24, 24, "full", None, 0]
    assert intervals["rare"] == rare_in(Path(str(run.config.data.root)) / "test" / "masks")
    for figure in figures(intervals):
        assert figure["low"] <= figure["value"] <= figure["high"]
    for key in ("macs", "latency_ms"):
        assert intervals[key]["value"] == pytest.approx(report[key])
        assert intervals[key]["low"] < intervals[key]["high"]
    assert [rate["value"] for rate in intervals["exit_rates"]] == pytest.approx(
        report["exit_rates"]
    )
    rows, all_of_them = intervals["classes"], {"miou": report["miou"], "error": report["error"]}
    for key, of_class in (("miou", "iou"), ("error", "error")):
        values = {row["class"]: row[of_class]["value"] for row in rows}
        assert np.mean(list(values.values())) == pytest.approx(all_of_them[key])
        common = [value for name, value in values.items() if name not in intervals["rare"]]
        assert intervals[key]["value"] == pytest.approx(np.mean(common))
        assert intervals[key]["low"] < intervals[key]["high"]
    # It is made without luck, and is JSON.
    again = workflow.evaluate(Path(report["bundle"]), split="test")["intervals"]
    for key in ("miou", "error", "macs", "exit_rates", "classes"):
        assert again[key] == intervals[key]
    assert json.loads(json.dumps(intervals)) == intervals


def test_search_and_evaluation_agree_on_the_images_that_chose(
    run: Run, searched: Searched, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """From what is memoised and from really running: but for the number of draws."""
    bundle = searched(**routed(run))
    found = run.result(run.searches()[-1]).get("intervals", {})
    measured = workflow.evaluate(bundle, split="calibration")["intervals"]
    assert found["searched"] == measured["searched"] == 40
    for key in ("miou", "error", "macs"):
        assert found[key]["value"] == pytest.approx(measured[key]["value"], abs=1e-9)
        width = measured[key]["high"] - measured[key]["low"]
        assert found[key]["low"] == pytest.approx(measured[key]["low"], abs=0.15 * width)
        assert found[key]["high"] == pytest.approx(measured[key]["high"], abs=0.15 * width)
    assert found["exit_rates"] == measured["exit_rates"]
    command(monkeypatch, "evaluate", str(bundle), "--split", "calibration")
    told = " ".join(capsys.readouterr().out.split())
    assert "On all images like these 40 images, at 95%: mIoU" in told
    assert "40 of these 40 images chose the instance: on others it loses more." in told


def test_a_search_says_how_little_its_images_tell(run: Run) -> None:
    found = workflow.search(run.path, **routed(run))
    error = found["intervals"]["error"]
    assert error["low"] < found["error"] < error["high"]
    line = new_images_lines(found)[0]
    between = f"between {error['low']:.4f} and {error['high']:.4f} (95%, not corrected for"
    assert between in line
    assert line.startswith("All this is of the images that were searched")
    # What is read off an earlier front is the same.
    again = workflow.search(run.path, **routed(run))
    assert again["search"]["source"] == found["id"]
    assert again["intervals"] == found["intervals"]
    # The whole network has no error to be unsure of.
    whole = workflow.search(run.path, setting="final-only", target="accuracy")
    assert whole["intervals"]["error"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert whole["intervals"]["exit_rates"] == []
    assert "not corrected" not in new_images_lines(whole)[0]


def test_too_few_groups_have_no_intervals_and_few_have_weak_ones(
    run: Run, searched: Searched, tmp_path: Path
) -> None:
    bundle = searched(**routed(run))
    # All ids but the last two digits: a single group.
    configure(run, groups="^(.*)..$")
    report = workflow.evaluate(bundle, split="test")
    assert report["intervals"]["strength"] is None
    assert "miou" not in report["intervals"]
    (line,) = interval_lines(report["intervals"])
    assert line.startswith("No intervals: 24 images in 1 group are too few")
    assert workflow.search(run.path, **routed(run))["intervals"]["groups"] is None
    # Eight groups.
    groups = {name: index % 8 for index, name in enumerate(TEST_IDS)}
    configure(run, groups=write_groups(tmp_path / "groups.csv", groups))
    weak = workflow.evaluate(bundle, split="test")["intervals"]
    assert (weak["groups"], weak["strength"]) == (8, "weak")
    assert any("8 groups tell little about others" in line for line in interval_lines(weak))
    # The file has no group for the calibration images, which is told and stops nothing.
    told = workflow.search(run.path, **routed(run))["intervals"]
    assert "40 of 40 images no group, such as 'calibration-00000'" in told["reason"]


def test_a_class_of_few_images_is_rare(
    run: Run, searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is said about it, nor about a mean that holds it."""
    bundle = searched(**routed(run))
    root = Path(shutil.copytree(str(run.config.data.root), tmp_path / "images"))
    masks = {file: np.array(Image.open(file)) for file in (root / "test" / "masks").iterdir()}
    having = {c: [f for f, mask in masks.items() if (mask == c).any()] for c in range(1, 6)}
    # The one that most images have, of which five keep it.
    which = max(having, key=lambda class_: len(having[class_]))
    for file in having[which][5:]:
        Image.fromarray(np.where(masks[file] == which, VOID, masks[file])).save(file)
    configure(run, root=root)
    name = CLASSES.names[which]
    command(monkeypatch, "evaluate", str(bundle), "--json")
    report = json.loads(capsys.readouterr().out)
    intervals = report["intervals"]
    assert name in intervals["rare"]
    assert intervals["rare"] == rare_in(root / "test" / "masks")
    row = intervals["classes"][which]
    assert (row["class"], row["groups"]) == (name, 5)
    assert row["iou"]["value"] > 0
    assert (row["iou"]["low"], row["error"]["high"]) == (None, None)
    others = [
        row["iou"]["value"] for row in intervals["classes"] if row["class"] not in intervals["rare"]
    ]
    assert intervals["miou"]["value"] == pytest.approx(np.mean(others))
    assert intervals["miou"]["value"] != pytest.approx(report["miou"], abs=1e-6)
    command(monkeypatch, "evaluate", str(bundle))
    told = " ".join(capsys.readouterr().out.split())
    named = ", ".join(intervals["rare"])
    assert f"Too rare to promise anything about: {named}; mIoU and error here leave" in told


def test_a_certificate_names_rare_classes(run: Run, tmp_path: Path) -> None:
    """Those that too few of its groups have, whatever the number of images."""
    label = run.open_cache("calibration").tables.label
    names = list(run.open_cache("calibration").manifest["classes"])
    # Images with the class make up five groups, the others are groups of their own.
    which = int(np.argmin((label > 0).sum(axis=0)))
    there = label[:, which] > 0
    groups = {
        name: f"with-{n % 5}" if has else name
        for n, (name, has) in enumerate(zip(CALIBRATION_IDS, there, strict=True))
    }
    configure(run, groups=write_groups(tmp_path / "groups.csv", groups))
    options: dict[str, Any] = {"target": "macs", "max_exits": 2, "max_error": 0.3}
    found = workflow.search(run.path, **options, confidence=0.9)
    assert found["certificate"]["rare_classes"] == [names[which]]
    told = " ".join(new_images_lines(found))
    assert f"Too rare to promise anything about: {names[which]}; the certificate is" in told


def test_every_exit_that_answers_has_its_interval(run: Run, searched: Searched) -> None:
    whole = workflow.search(run.path, setting="final-only", target="accuracy")
    deadline = 0.9 * whole["baseline"]["macs"]
    bundle = searched(setting="anytime", target="macs", checkpoints=[f"{deadline}=0.01"])
    report = workflow.evaluate(bundle, split="calibration")
    rows, intervals = report["exits"], report["intervals"]
    assert intervals["rare"] == []
    assert len(rows) == len(intervals["exits"]) >= 2
    for row, told in zip(rows, intervals["exits"], strict=True):
        assert row["exit_id"] == told["exit_id"]
        assert told["miou"]["value"] == pytest.approx(row["miou"])
        assert told["miou"]["low"] < row["miou"] < told["miou"]["high"]
        assert told["error"]["value"] == pytest.approx(report["baseline"]["miou"] - row["miou"])
    # Every image is answered by all exits, at the same cost.
    assert intervals["exit_rates"] == []
    assert intervals["macs"]["low"] == intervals["macs"]["high"] == report["macs"]


def test_policies_are_held_against_the_best_image_by_image(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["--policy", "all", "--target", "macs", "--max-error", "0.05", "--max-exits", "2"]
    command(monkeypatch, "search", "--run", str(run.path), *words, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["intervals"]["groups"], found["intervals"]["strength"]) == (40, "full")
    rows = [row for row in found["policies"] if "infeasible" not in row]
    (best,) = (row for row in rows if row["search"] == found["best"])
    assert "against_best" not in best
    differs = False
    for row in rows:
        if row["search"] == found["best"]:
            continue
        paired = row["against_best"]
        for key in ("miou", "macs", "latency_ms"):
            sign, name = (-1, "error") if key == "miou" else (1, key)
            difference = sign * (row["predicted"][key] - best["predicted"][key])
            assert paired[name]["value"] == pytest.approx(difference, rel=1e-6, abs=1e-9)
            assert paired[name]["low"] <= paired[name]["value"] <= paired[name]["high"]
        if row["exits"] == best["exits"]:
            # Both ran on the same images: a difference is far more certain than a figure.
            single = run.result(row["search"]).get("intervals", {})["macs"]
            width = paired["macs"]["high"] - paired["macs"]["low"]
            differs |= width < 0.9 * (single["high"] - single["low"])
    assert differs
    page = (Path(found["path"]) / "comparison.html").read_text()
    assert re.search(r"paired on the same 40\s+images in 40 groups", page)
    command(monkeypatch, "search", "--run", str(run.path), *words)
    told = " ".join(capsys.readouterr().out.split())
    assert "Against * on the same 40 images (95%, not corrected for having searched):" in told


def test_the_report_shows_intervals(run: Run, searched: Searched) -> None:
    searched(**routed(run))
    page = " ".join(workflow.report(run.path).read_text(encoding="utf-8").split())
    told = run.result(run.searches()[-1]).get("intervals", {})
    assert "Intervals at 95 % for all images like these 40 in 40 groups. These images chose" in page
    for row in told["classes"]:
        assert f"{100 * row['iou']['low']:.1f} % to {100 * row['iou']['high']:.1f} %" in page
    assert f"between {told['error']['low']:.4f} and {told['error']['high']:.4f} (95%" in page
    configure(run, groups="^(.*)..$")
    workflow.search(run.path, **routed(run))
    page = workflow.report(run.path).read_text(encoding="utf-8")
    assert "No intervals: 40 images in 1 group are too few" in page
