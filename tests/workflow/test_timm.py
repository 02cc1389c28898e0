"""A model of timm from its name to a bundle that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mess import workflow

CONFIG = """
seed = 3
[data]
kind = "shapes"
size = [48, 64]
shapes = [16, 24, 16]
workers = 0
[backbone]
name = "timm"
options = { model = "mobilenetv3_small_050" }
[exits]
points = 2
crm = [1]
blocks = [0]
rdi = [false]
heads = ["fcn"]
[training]
batch_size = 8
[training.stage1]
iterations = 6
[training.stage2]
iterations = 4
[memoise]
pixel_thresholds = [0.2, 0.5]
"""


def test_a_timm_model_is_trained_searched_exported_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Measuring latency would export every part a second time.
    monkeypatch.setattr(workflow, "_profile_is_current", lambda _: True)
    config = tmp_path / "timm.toml"
    config.write_text(CONFIG)
    rows = workflow.exits(config)
    assert [row["block"] for row in rows] == ["blocks.4.1", "blocks.5.0", "blocks.5.0"]
    assert {row["output_stride"] for row in rows} == {8}
    run = workflow.train_overprovisioned(config, run=tmp_path / "run")
    early = rows[0]["backbone_macs"] + rows[0]["exit_macs"]
    found = workflow.search(
        run.path, setting="anytime", target="macs", checkpoints=[f"{1.01 * early}=0.001"]
    )
    assert [exit_["exit_id"] for exit_ in found["exits"]] == ["p1-crm1-b0-fcn", "final"]
    report = workflow.evaluate(workflow.export(run.path), split="calibration")
    assert report["images"] == 24
    assert report["agreement"]["same_exit"] >= 0.999
    for measured, promised in zip(report["exits"], found["exits"], strict=True):
        assert measured["miou"] == pytest.approx(promised["miou"], abs=1e-4)
        assert measured["macs"] == pytest.approx(promised["delivered"]["macs"], rel=1e-3)
