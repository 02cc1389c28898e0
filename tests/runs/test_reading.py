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
from mess.cache.parquet import read_facts, read_rows, write_rows
from mess.cache.schema import FRONT
from mess.common import file_hashes
from mess.errors import BundleError, CacheError, MessError
from mess.runs.run import Run

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


def without(key: str) -> Callable[[dict[str, Any]], None]:
    """Takes out a key, such as "exits.0.signal"."""

    def remove(content: Any) -> None:
        *way, last = key.split(".")
        for step in way:
            content = content[int(step) if step.isdigit() else step]
        del content[last]

    return remove


def lower_the_bound(content: dict[str, Any]) -> None:
    content["certificate"]["bounds"][0] /= 2


def lower_the_expected_error(content: dict[str, Any]) -> None:
    content["expected"]["error"]["high"] = 0.001


def move_a_threshold(content: dict[str, Any]) -> None:
    content["exits"][0]["threshold"] = 0.123


@pytest.mark.parametrize(
    ("options", "alter"),
    [
        ({"confidence": 0.9}, lower_the_bound),
        ({"expect": True}, lower_the_expected_error),
        ({}, move_a_threshold),
    ],
)
def test_a_result_that_was_altered_is_refused(
    run: Run, options: dict[str, Any], alter: Callable[[dict[str, Any]], None]
) -> None:
    asked: dict[str, Any] = {"target": "macs", "max_error": 0.2, "max_exits": 2, **options}
    found = workflow.search(run.path, **asked)
    path = Path(found["path"]) / "result.json"
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content))
    altered = rf"result\.json was altered after it was written.*Run `mess search --run {run.path}`"
    with pytest.raises(MessError, match=altered):
        workflow.export(run.path)
    # The report goes without it and says so; with no other search that is all it tells of any.
    assert "result.json was altered after it was written" in workflow.report(run.path).read_text()
    # The next move mends it: the front beside the result is whole, so it answers at once.
    again = workflow.search(run.path, **asked)
    assert again["search"]["source"] == found["id"]
    assert again["exits"] == found["exits"]
    workflow.export(run.path)
    # Without a digest a result is of an earlier version, and taken as it is.
    del content["digest"]
    path.write_text(json.dumps(content))
    workflow.export(run.path, search=found["id"])


def test_a_front_that_was_altered_is_not_drawn(run: Run) -> None:
    found = workflow.search(run.path, target="macs", max_error=0.2, max_exits=2)
    path = Path(found["path"]) / "front.parquet"
    rows, facts = read_rows(path, FRONT), read_facts(path)
    rows[0]["miou"] += 0.01
    write_rows(path, rows, FRONT, facts)
    with pytest.raises(CacheError, match=r"front\.parquet was altered.*Run `mess search"):
        run.front(found["id"], run.result(found["id"]))
    assert "front.parquet was altered after it was written" in workflow.report(run.path).read_text()
    # A later search goes without it, too, and the answer itself is whole.
    again = workflow.search(run.path, target="macs", max_error=0.3, max_exits=2)
    assert again["search"]["source"] is None
    workflow.export(run.path, search=found["id"])


def test_a_bundle_whose_certificate_was_altered_is_not_loaded(run: Run) -> None:
    workflow.search(run.path, target="macs", max_error=0.2, max_exits=2, confidence=0.9)
    bundle = workflow.export(run.path)
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    lower_the_bound(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"manifest\.json was altered.*Export the bundle again"):
        workflow.evaluate(bundle, run=run.path, split="calibration")
    workflow.evaluate(workflow.export(run.path), run=run.path, split="calibration")


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
