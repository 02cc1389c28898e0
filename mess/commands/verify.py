"""Checking a bundle without running it, and signing it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mess.common.files import write_json
from mess.errors import BundleError
from mess.runtime.format import MANIFEST
from mess.runtime.manifest import CERTIFICATE, SIGNATURE, read_manifest, require_files
from mess.runtime.signature import require_signature, signature_of


def sign_bundle(path: Path, private_key: Path) -> dict[str, Any]:
    """Sign the bundle at `path` after checking it; what it is."""
    found, manifest = verify_bundle(path, None, None), read_manifest(path)
    signature = signature_of(manifest, private_key)
    write_json(path / MANIFEST, {**manifest, SIGNATURE: signature})
    return {**found, "signed": True}


def verify_bundle(path: Path, digest: str | None, public_key: Path | None) -> dict[str, Any]:
    """What the bundle at `path` is.

    Raises BundleError where it is not what it says, not `digest`, or not signed by the other half
    of `public_key`.
    """
    manifest = read_manifest(path)
    if public_key is not None:
        require_signature(manifest, path, public_key)
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
        "signed": SIGNATURE in manifest,
        "signed_by": None if public_key is None else str(public_key),
    }
