"""Checking a bundle without running it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mess.errors import BundleError
from mess.runtime.manifest import CERTIFICATE, read_manifest, require_files


def verify_bundle(path: Path, digest: str | None) -> dict[str, Any]:
    """What the bundle at `path` is; BundleError where it is not what it says, or not `digest`."""
    manifest = read_manifest(path)
    if digest is not None and manifest["digest"] != digest.lower():
        raise BundleError(
            f"bundle {path} has the digest {manifest['digest']}, not {digest}: it is another "
            "bundle. Ask whoever told the digest for theirs."
        )
    require_files(manifest, path)
    return {
        "bundle": str(path),
        "digest": manifest["digest"],
        "format": manifest["format"],
        "files": len(manifest["files"]),
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "exits": [exit_["exit_id"] for exit_ in manifest["exits"]],
        "certificate": manifest.get(CERTIFICATE),
    }
