"""Reading and sealing the manifest of a bundle, and reading the files it names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mess.common.framing import Framing, as_fit
from mess.common.normalisation import Normalisation, as_channels
from mess.common.records import (
    DIGEST,
    as_record,
    digest_of,
    read_strictly,
    require_unaltered,
    unknown_key,
    with_digest,
)
from mess.errors import BundleError
from mess.runtime.format import BUNDLE_VERSION, MANIFEST, Manifest, RunManifest
from mess.runtime.soundness import faults, faults_of_facts

MOST_MANIFEST_BYTES = 2**24
"""Tens of times what the largest bundles need, and read in an instant."""

AGAIN = "Export the bundle again."

CERTIFICATE, SIGNATURE = "certificate", "signature"
_NOT_IN_DIGEST = (CERTIFICATE, SIGNATURE, DIGEST)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`; raises BundleError, which names what is wrong.

    Nothing in it has another type, another range or another content than what was written.
    """
    file = path / MANIFEST
    if file.is_symlink():
        raise BundleError(f"{file} is a symbolic link, and a bundle's files lie in its folder.")
    try:
        manifest = read_strictly(file, MOST_MANIFEST_BYTES, AGAIN, BundleError)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}.") from None
    # Before the keys: another version may have others.
    version = manifest.get("bundle_version")
    if version != BUNDLE_VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > BUNDLE_VERSION
        move = "Update mess, or export" if newer else "Export"
        raise BundleError(
            f"{file} has bundle version {version!r}, this version of mess reads {BUNDLE_VERSION}. "
            f"{move} it again with this version."
        )
    found = as_record(manifest, Manifest, file, AGAIN, BundleError)
    if key := unknown_key(manifest, RunManifest):
        raise BundleError(f"{file} has the key {key!r}, which format {version} has not. {AGAIN}")
    if found[DIGEST] != manifest_digest(manifest):
        raise BundleError(
            f"{file} was altered after it was written: its digest is not of what it says. {AGAIN}"
        )
    for fault in faults(found):
        raise BundleError(f"{file} {fault}. {AGAIN}")
    input_of(found, path)
    if (certificate := manifest.get(CERTIFICATE)) is not None:
        _require_certificate(certificate, manifest, file)
    return found


def facts_of(manifest: Manifest, path: Path) -> RunManifest:
    """The manifest with what `mess export` tells; BundleError where it lacks or misstates that."""
    facts = as_record(manifest, RunManifest, path / MANIFEST, AGAIN, BundleError)
    for fault in faults_of_facts(facts):
        raise BundleError(f"{path / MANIFEST} {fault}. {AGAIN}")
    return facts


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 (hexadecimal) over a manifest, and so over its files; not over its certificate."""
    return digest_of({key: manifest[key] for key in manifest if key not in _NOT_IN_DIGEST})


def sealed(manifest: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> dict[str, Any]:
    """A manifest with its digest and, where there is one, the certificate of that bundle.

    A signature it had is of another certificate, and gone.
    """
    kept = {key: manifest[key] for key in manifest if key not in _NOT_IN_DIGEST}
    # Through JSON, which makes lists of tuples.
    whole = with_digest(kept)
    if certificate is not None:
        whole[CERTIFICATE] = with_digest({**certificate, "bundle": whole[DIGEST]})
    return whole


def _require_certificate(
    certificate: Mapping[str, Any], manifest: Mapping[str, Any], file: Path
) -> None:
    if certificate.get("bundle") != manifest[DIGEST] or DIGEST not in certificate:
        raise BundleError(f"{file} has the certificate of another bundle. {AGAIN}")
    require_unaltered(certificate, file, AGAIN, BundleError)


def require_files(manifest: Manifest, path: Path) -> None:
    """Raise BundleError for the first file of the bundle at `path` that is gone or was altered."""
    for name in manifest["files"]:
        file_content(manifest, path, name)


def file_content(manifest: Manifest, path: Path, name: str) -> bytes:
    """The content of a file of the bundle at `path`, which is what the manifest says.

    Raises BundleError for a file that is gone, was altered, or lies elsewhere.
    """
    file, said = path / name, manifest["files"][name]
    if file.is_symlink():
        raise BundleError(f"{file} is a symbolic link, and a bundle's files lie in its folder.")
    if not file.is_file():
        raise BundleError(f"bundle {path} lacks {name}. {AGAIN}")
    # The size first, and no byte more: what is too large is not read.
    with file.open("rb") as opened:
        content = opened.read(said["bytes"] + 1)
    if len(content) != said["bytes"] or hashlib.sha256(content).hexdigest() != said["sha256"]:
        raise BundleError(f"bundle file {file} was altered after its export. {AGAIN}")
    return content


def input_of(manifest: Manifest, path: Path) -> tuple[Framing, Normalisation]:
    """What the network of the bundle at `path` takes; raises BundleError, which names a fault."""
    given = manifest["input"]
    try:
        height, width = given["size"]
        framing = Framing(size=(height, width), fit=as_fit(given["fit"]), overlap=given["overlap"])
        normalisation = Normalisation(
            mean=tuple(given["mean"]),
            std=tuple(given["std"]),
            channels=as_channels(given["channels"]),
            range=given["range"],
        )
        return framing, normalisation
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST} has input = {given}: {error}. {AGAIN}") from error
