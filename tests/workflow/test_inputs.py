"""A network that takes other numbers than ImageNet's: from training images to its bundle."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from mess import workflow
from mess.common.images import PREPROCESSING
from mess.common.normalisation import IMAGENET
from mess.config import Config, DataConfig, parse_config
from mess.data import open_split
from mess.data.sets import EvaluationSet, TrainingSet
from mess.errors import BundleError, CacheError
from mess.runs.fingerprints import _VERSION, pipeline_fingerprint
from mess.runs.run import Run

OTHER: dict[str, Any] = {
    "mean": [100.0, 110.0, 120.0], "std": [60.0, 50.0, 40.0], "channels": "bgr", "range": 255.0,
}  # fmt: skip


def changed(run: Run, data: Mapping[str, Any]) -> Run:
    """The run with other keys in `data`, as one edits its configuration by hand."""
    values = tomllib.loads(run.config_file.read_text())
    values["data"] |= data
    run.config_file.write_text(parse_config(values).to_toml())
    return Run(run.path)


def test_images_reach_the_network_as_it_takes_them() -> None:
    config = DataConfig(
        size=(24, 32), shapes=(2, 2, 2), holdout=0.0, crop=1.0, scale=(1.0, 1.0), flip=0.0, **OTHER
    )
    data = open_split(config, "train", seed=1)
    expected = torch.from_numpy(config.normalisation.apply(data.sized(1)[0]))
    assert torch.equal(EvaluationSet(data, config)[1][0], expected)
    assert torch.equal(TrainingSet(data, config)[(1, 5)][0], expected)


def test_the_cache_is_of_what_the_network_takes_and_the_bundle_takes_it_too(run: Run) -> None:
    """Red and blue exchanged: the made network then sees other classes."""
    before = run.open_cache("calibration").tables.intersection
    swapped = changed(run, {"channels": "bgr"})
    with pytest.raises(CacheError, match="made for other pipeline"):
        _ = swapped.open_cache("calibration").tables
    workflow.memoise(run.path)
    found = workflow.search(run.path, target="macs", max_error=0.02, max_exits=2)
    assert not np.array_equal(Run(run.path).open_cache("calibration").tables.intersection, before)
    bundle = workflow.export(run.path)
    assert json.loads((bundle / "manifest.json").read_text())["input"]["channels"] == "bgr"
    report = workflow.evaluate(bundle, split="calibration")
    assert report["agreement"]["same_exit"] == 1.0
    assert report["miou"] == pytest.approx(found["predicted"]["miou"], abs=1e-9)
    assert report["baseline"]["miou"] == pytest.approx(found["baseline"]["miou"], abs=1e-9)


def test_a_bundle_that_takes_other_images_than_the_run_is_refused(run: Run) -> None:
    workflow.search(run.path, target="macs", max_error=0.02, max_exits=2)
    bundle = workflow.export(run.path)
    changed(run, {"range": 255.0})
    with pytest.raises(BundleError, match=r"range=1\.0.*has .*range=255\.0.*export it again"):
        workflow.evaluate(bundle)


def test_fingerprints_are_those_of_before_unless_something_else_is_taken() -> None:
    config = Config()
    content = [
        _VERSION,
        PREPROCESSING,
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
        {"name": "mobilenet_v2", "options": {}},
    ]
    before = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert pipeline_fingerprint(config) == before
    others = [{key: value} for key, value in OTHER.items()]
    prints = {pipeline_fingerprint(parse_config({"data": other})) for other in [{}, OTHER, *others]}
    assert len(prints) == 6


def test_configurations_of_before_are_read_unchanged() -> None:
    assert parse_config({"data": {"size": [24, 32]}}).data.normalisation == IMAGENET
