"""A command opens its run once: what is read is handed down, not read again."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mess import workflow
from mess.cache.content import find_parts
from mess.common import file_hashes
from mess.errors import ConfigError, MessError
from mess.runs.run import Run, begin_run

Times = Callable[[list[Path]], set[int]]

_opened: list[str] = []
"""Files that Python opened; what libraries open themselves is unseen."""


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        _opened.append(os.fspath(arguments[0]) if not isinstance(arguments[0], int) else "")


@pytest.fixture(scope="module", autouse=True)
def _listening() -> None:
    sys.addaudithook(_listen)  # which cannot be taken back


@pytest.fixture
def times() -> Times:
    """How often each of some files was opened since the test began, or cleared the list."""
    _opened.clear()
    return lambda paths: {_opened.count(str(path)) for path in paths}


def read_once(run: Run) -> list[Path]:
    """Files that are hashed, or read as text, by whoever needs them."""
    cache = run.cache("calibration")
    return [
        run.config_file,
        run.weights,
        cache / "manifest.json",
        cache / "images.parquet",
        *find_parts(cache / "predictions"),
    ]


def test_a_search_reads_each_file_once(run: Run, times: Times) -> None:
    workflow.search(run.path, target="latency", max_error=0.05)
    assert times(read_once(run)) == {1}


def test_a_comparison_of_policies_does_too(run: Run, times: Times) -> None:
    workflow.search(run.path, policy="all", target="macs", max_error=0.05, max_exits=2)
    assert times(read_once(run)) == {1}


def images_of(run: Run) -> list[Path]:
    root = run.config.data.root
    assert root is not None
    return [path for kind in ("images", "masks") for path in (root / "val" / kind).iterdir()]


def test_a_second_search_reads_no_image(
    run: Run, times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As images are that were not written in the last two seconds.
    monkeypatch.setattr(file_hashes, "time_ns", lambda: time.time_ns() + 3600 * 10**9)
    workflow.search(run.path, target="macs", max_error=0.05)
    assert times(images_of(run)) == {1}
    _opened.clear()
    workflow.search(run.path, target="macs", max_error=0.05)
    assert times(images_of(run)) == {0}
    workflow.cache_verify(run.path)
    assert times(images_of(run)) == {1}


def test_an_export_reads_each_file_once(run: Run, times: Times) -> None:
    result = workflow.search(run.path, target="macs", max_error=0.05)
    _opened.clear()
    workflow.export(run.path)
    files = [*read_once(run), run.classes, Path(result["path"]) / "result.json"]
    assert times(files) == {1}


def test_a_report_reads_the_weights_and_the_cache_once(run: Run, times: Times) -> None:
    workflow.search(run.path, target="macs", max_error=0.05)
    _opened.clear()
    workflow.report(run.path)
    assert times([path for path in read_once(run) if path != run.config_file]) == {1}


def test_a_run_begun_anew_has_its_new_configuration(run: Run) -> None:
    changed = run.config.model_copy(
        update={"memoise": run.config.memoise.model_copy(update={"pixel_thresholds": (0.9,)})}
    )
    assert begin_run(run.path, changed, "run").config == changed
    with pytest.raises(ConfigError, match="another configuration"):
        begin_run(run.path, changed.model_copy(update={"seed": 9}), "run")


def without(key: str) -> Callable[[dict[str, Any]], None]:
    """Takes out a key, such as "exits.0.signal"."""

    def remove(content: Any) -> None:
        *way, last = key.split(".")
        for step in way:
            content = content[int(step) if step.isdigit() else step]
        del content[last]

    return remove


@pytest.mark.parametrize(
    ("key", "named"),
    [("exits.0.signal", r"lacks exits\[0\]\.signal"), ("cache.data", r"lacks cache\.data")],
)
def test_a_result_that_lacks_a_key_is_named_with_it(run: Run, key: str, named: str) -> None:
    found = workflow.search(run.path, target="macs", max_error=0.05)
    path = Path(found["path"]) / "result.json"
    content = json.loads(path.read_text())
    without(key)(content)
    path.write_text(json.dumps(content))
    with pytest.raises(MessError, match=rf"result\.json {named}\. Run `mess search"):
        workflow.export(run.path)
