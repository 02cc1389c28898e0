"""Which run a training goes on in, and what of its configuration may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mess import workflow
from mess.config import load_config
from mess.errors import ConfigError, MessError
from mess.runs.run import Run, begin_run


def test_a_run_begun_anew_has_its_new_configuration(run: Run) -> None:
    changed = run.config.model_copy(
        update={"memoise": run.config.memoise.model_copy(update={"pixel_thresholds": (0.9,)})}
    )
    assert begin_run(run.path, changed, "run").config == changed
    with pytest.raises(ConfigError, match="another configuration"):
        begin_run(run.path, changed.model_copy(update={"seed": 9}), "run")


def test_other_data_of_the_same_form_is_another_run_unless_it_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    shutil.copytree(run.path, "runs/first")
    assert begin_run(None, run.config, "new").path == Path("runs/first")
    data = run.config.data.model_copy(update={"root": Path("/elsewhere")})
    elsewhere = run.config.model_copy(update={"data": data})
    assert begin_run(None, elsewhere, "new").path.name.startswith("new-")
    assert begin_run(Path("runs/first"), elsewhere, "new").config == elsewhere


def test_files_that_a_run_names_are_found_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [
        "data.root=images", "data.groups=groups.csv", "backbone.weights=weights.safetensors",
        "training.start=runs/first",
    ]  # fmt: skip
    config = workflow._absolute(load_config("shapes", named))
    assert config.data.root == tmp_path / "images"
    assert config.data.groups == str(tmp_path / "groups.csv")
    assert config.backbone.weights == str(tmp_path / "weights.safetensors")
    assert config.training.start == tmp_path / "runs" / "first"
    pattern = workflow._absolute(load_config("shapes", ["data.groups='^(.*)_'"]))
    assert pattern.data.groups == "^(.*)_"


def test_a_configuration_stays_while_a_process_is_at_work_by_it(run: Run) -> None:
    memoise = run.config.memoise.model_copy(update={"pixel_thresholds": (0.9,)})
    before = run.config_file.read_bytes()
    with run.locked():
        assert begin_run(run.path, run.config, "run").config == run.config
        with pytest.raises(MessError, match="another process is at work"):
            begin_run(run.path, run.config.model_copy(update={"memoise": memoise}), "run")
    assert run.config_file.read_bytes() == before
