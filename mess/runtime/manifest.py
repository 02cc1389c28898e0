"""The manifest of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mess.errors import BundleError

MANIFEST = "manifest.json"


BUNDLE_VERSION = 1


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle at `path`."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}.") from None
    except ValueError as error:
        raise BundleError(f"{file} is damaged: {error}. Export the bundle again.") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{file} is damaged: it is no JSON object. Export the bundle again.")
    if manifest.get("bundle_version") != BUNDLE_VERSION:
        raise BundleError(
            f"{file} has bundle version {manifest.get('bundle_version')}, this version of mess "
            f"reads {BUNDLE_VERSION}."
        )
    return manifest
