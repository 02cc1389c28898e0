"""A bundle's manifest, whatever the file holds: what was written, or one message."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mess.errors import BundleError
from mess.runtime.manifest import BUNDLE_VERSION, MANIFEST, Manifest, read_manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


NUMBER = st.floats(allow_nan=False, allow_infinity=False)
EXIT = st.fixed_dictionaries(
    {
        "exit_id": st.text(),
        "segment": st.text(),
        "outputs": st.lists(st.text(), max_size=3),
        "answer": st.text(),
        "signal": st.none() | st.dictionaries(st.text(), JSON, max_size=2),
        "threshold": st.none() | NUMBER,
        "exit_rate": st.none() | NUMBER,
        "macs": NUMBER,
    }
)
WHOLE = st.fixed_dictionaries(
    {
        "bundle_version": st.sampled_from([1, BUNDLE_VERSION]),
        "format": st.text(),
        "input": st.fixed_dictionaries(
            {
                "size": st.lists(st.integers(), min_size=2, max_size=2),
                "mean": st.lists(NUMBER, min_size=3, max_size=3),
                "std": st.lists(NUMBER, min_size=3, max_size=3),
            }
        ),
        "exits": st.lists(EXIT, min_size=1, max_size=3),
        "histograms": st.dictionaries(
            st.text(), st.dictionaries(st.text(), st.lists(NUMBER, max_size=2), max_size=2)
        ),
        "files": st.dictionaries(st.text(), st.text(), max_size=3),
    }
)


def read(content: bytes) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        return read_manifest(Path(folder), Manifest)


@given(WHOLE, st.dictionaries(st.text().map("more {}".format), JSON, max_size=3))
def test_what_was_written_is_read(content: dict[str, Any], more: dict[str, Any]) -> None:
    assert read(json.dumps(more | content).encode()) == more | content


@given(WHOLE, st.data())
def test_a_key_that_is_missing_is_named(content: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([name for name in content if name != "bundle_version"]))
    del content[key]
    with pytest.raises(BundleError, match=f"lacks {key}. Export the bundle again"):
        read(json.dumps(content).encode())


@given(WHOLE, st.data())
def test_a_key_that_an_exit_lacks_is_named(content: dict[str, Any], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(content["exits"]) - 1))
    key = data.draw(st.sampled_from(list(content["exits"][number])))
    del content["exits"][number][key]
    with pytest.raises(BundleError, match=rf"lacks exits\[{number}\]\.{key}\. Export"):
        read(json.dumps(content).encode())


@given(WHOLE, st.sampled_from(["macs", "threshold", "exit_rate"]), st.booleans())
def test_a_truth_is_no_number(content: dict[str, Any], key: str, truth: bool) -> None:
    """Though it is one to Python."""
    content["exits"][0][key] = truth
    with pytest.raises(BundleError, match=rf"exits\[0\]\.{key} = {truth}"):
        read(json.dumps(content).encode())


@given(JSON)
def test_other_content_is_refused(content: Any) -> None:
    if isinstance(content, dict) and content.get("bundle_version") in (1, BUNDLE_VERSION):
        return
    with pytest.raises(BundleError, match=r"manifest\.json (is damaged|has bundle version)"):
        read(json.dumps(content).encode())


@given(st.binary(max_size=20))
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        read(content)
