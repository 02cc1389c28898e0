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
from mess.runtime.manifest import BUNDLE_VERSION, MANIFEST, read_manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def read(content: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        return read_manifest(Path(folder))


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_what_was_written_is_read(content: dict[str, Any]) -> None:
    content |= {"bundle_version": BUNDLE_VERSION}
    assert read(json.dumps(content).encode()) == content


@given(JSON)
def test_other_content_is_refused(content: Any) -> None:
    if isinstance(content, dict) and content.get("bundle_version") == BUNDLE_VERSION:
        return
    with pytest.raises(BundleError, match=r"manifest\.json (is damaged|has bundle version)"):
        read(json.dumps(content).encode())


@given(st.binary(max_size=20))
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        read(content)
