"""Bad requests: one clear message on stderr, exit code 1, nothing lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mess import workflow
from mess.cli import main
from mess.errors import MessError
from mess.run import Run


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> str:
    """The message of a refused command."""
    monkeypatch.setattr("sys.argv", ["mess", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.fixture
def refuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    return lambda *words: refused(capsys, monkeypatch, *(str(word) for word in words))


def test_no_run(
    refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "mess train-overprovisioned" in refuse("search")
    assert str(tmp_path / "nowhere") in refuse("search", "--run", tmp_path / "nowhere")


def test_unknown_configuration_key(refuse: Callable[..., str]) -> None:
    message = refuse("exits", "--set", "trainig.batch_size=3")
    assert "'trainig'" in message
    assert "'training'" in message


def test_unknown_backbone(refuse: Callable[..., str]) -> None:
    message = refuse("exits", "--set", "backbone.name=mobilenet_v3")
    assert "'mobilenet_v3'" in message
    assert "'mobilenet_v2'" in message


def test_search_before_memoising(refuse: Callable[..., str], run: Run) -> None:
    shutil.rmtree(run.cache("calibration"))
    assert "mess memoise" in refuse("search", "--run", run.path, "--target", "macs")


def test_search_before_training_is_over(refuse: Callable[..., str], run: Run) -> None:
    run.weights.unlink()
    assert "mess train-overprovisioned" in refuse("search", "--run", run.path)


def test_cache_of_other_weights(refuse: Callable[..., str], run: Run) -> None:
    weights = bytearray(run.weights.read_bytes())
    weights[-1] ^= 1
    run.weights.write_bytes(weights)
    message = refuse("search", "--run", run.path, "--target", "macs")
    assert "stale" in message
    assert "weights" in message


def test_infeasible_request_writes_nothing(refuse: Callable[..., str], run: Run) -> None:
    message = refuse("search", "--run", run.path, "--target", "macs", "--max-macs", "5")
    assert "5" in message
    assert run.searches() == []


def test_share_that_looks_like_a_percentage(refuse: Callable[..., str], run: Run) -> None:
    assert "0.65" in refuse("search", "--run", run.path, "--min-miou", "65")


def test_missing_latency_profile(refuse: Callable[..., str], run: Run) -> None:
    shutil.rmtree(run.path / "latency")
    assert "mess profile" in refuse("search", "--run", run.path, "--target", "latency")
    assert "gpu" in refuse("search", "--run", run.path, "--profile", "gpu")


def test_altered_bundle(
    refuse: Callable[..., str], run: Run, searched: Callable[..., Path]
) -> None:
    bundle = searched(target="macs", max_error=0.05)
    program = bundle / "segment-1.onnx"
    program.write_bytes(program.read_bytes() + b"x")
    message = refuse("evaluate", bundle)
    assert "segment-1.onnx" in message
    assert "altered" in message


def test_export_before_search(refuse: Callable[..., str], run: Run) -> None:
    assert "mess search" in refuse("export", "--run", run.path)


def test_export_never_overwrites_other_files(run: Run, tmp_path: Path) -> None:
    workflow.search(run.path, target="macs", max_error=0.05)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MessError, match=r"no bundle"):
        workflow.export(run.path, output=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_run_of_another_configuration(refuse: Callable[..., str], run: Run) -> None:
    message = refuse("train-overprovisioned", "--run", run.path, "--set", "seed=9")
    assert str(run.config_file) in message
