"""Signed bundles: whose, and of what."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    load_pem_private_key,
)

from mess.errors import BundleError, MessError
from mess.runtime.format import MANIFEST
from mess.runtime.manifest import read_manifest, sealed
from mess.runtime.signature import require_signature, signature_of
from tests.keys import pem, write_keys
from tests.runtime.test_manifest import WHOLE


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Files of the private and the public half of a new key."""
    return lambda name: write_keys(tmp_path / name)


def written(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest on the disk, and as it is read back."""
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return dict(read_manifest(folder))


@pytest.mark.parametrize("certificate", [None, {"holds": True}])
def test_what_is_signed_is_accepted_by_the_other_half_alone(
    certificate: dict[str, Any] | None, keys: Callable[..., Any], tmp_path: Path
) -> None:
    (private, public), (_, stranger) = keys("own"), keys("stranger")
    manifest = sealed(WHOLE, certificate)
    signed = manifest | {"signature": signature_of(manifest, private)}
    read = written(tmp_path / "bundle", signed)
    require_signature(read, tmp_path, public)
    with pytest.raises(BundleError, match="not signed by the key of .*stranger"):
        require_signature(read, tmp_path, stranger)
    # Neither the bundle nor its certificate can be another one, nor be left out or added.
    others = [
        sealed(WHOLE | {"setting": "anytime"}, certificate),
        sealed(WHOLE, {"holds": False}),
        sealed(WHOLE, {"holds": True} if certificate is None else None),
    ]
    for other in others:
        read = written(tmp_path / "bundle", other | {"signature": signed["signature"]})
        with pytest.raises(BundleError, match="not signed by the key"):
            require_signature(read, tmp_path, public)


def test_a_signature_does_not_move_the_digest(keys: Callable[..., Any], tmp_path: Path) -> None:
    private, _ = keys("own")
    manifest = sealed(WHOLE, None)
    signed = written(tmp_path / "bundle", manifest | {"signature": signature_of(manifest, private)})
    assert signed["digest"] == manifest["digest"]
    # Certified anew it is no longer what was signed.
    assert "signature" not in sealed(signed, {"holds": True})


def test_it_is_the_text_that_the_documents_tell(keys: Callable[..., Any]) -> None:
    private, _ = keys("own")
    manifest = sealed(WHOLE, {"holds": True})
    # Ed25519 has no chance in it: the same key gives the same signature.
    own = load_pem_private_key(private.read_bytes(), None)
    assert isinstance(own, Ed25519PrivateKey)
    text = f"mess bundle\n{manifest['digest']}\n{manifest['certificate']['digest']}"
    expected = base64.b64encode(own.sign(text.encode())).decode()
    assert signature_of(manifest, private)["value"] == expected


def test_an_unsigned_bundle_is_refused_where_a_key_is_given(
    keys: Callable[..., Any], tmp_path: Path
) -> None:
    _, public = keys("own")
    with pytest.raises(BundleError, match="is not signed, and .*public.pem was to check it"):
        require_signature(sealed(WHOLE, None), tmp_path, public)


@pytest.mark.parametrize(
    "signature",
    [
        {"algorithm": "ed25519", "value": ""},
        {"algorithm": "ed25519", "value": "A" * 88},
        {"algorithm": "ed25519", "value": "é" * 86 + "=="},
        {"algorithm": "rsa", "value": "A" * 86 + "=="},
        {"algorithm": "ed25519"},
        {"algorithm": "ed25519", "value": "A" * 86 + "==", "key": "mine"},
        "mine",
        None,
    ],
)
def test_what_cannot_be_a_signature_is_refused_when_it_is_read(
    signature: Any, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="signature"):
        written(tmp_path / "bundle", sealed(WHOLE, None) | {"signature": signature})


def test_files_that_hold_no_such_key_are_refused(keys: Callable[..., Any], tmp_path: Path) -> None:
    _, public = keys("own")
    manifest = sealed(WHOLE, None)
    other = tmp_path / "other.pem"
    contents = [
        b"",
        b"no key",
        pem(generate_private_key(SECP256R1())),
        pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret")),
        public.read_bytes(),
    ]
    for content in contents:
        other.write_bytes(content)
        with pytest.raises(MessError, match="holds no Ed25519 private key"):
            signature_of(manifest, other)
    for content in (b"", pem(Ed25519PrivateKey.generate())):
        other.write_bytes(content)
        with pytest.raises(MessError, match="holds no Ed25519 public key"):
            require_signature(manifest, tmp_path, other)
    with pytest.raises(MessError, match="cannot be read"):
        signature_of(manifest, tmp_path / "missing.pem")
    with pytest.raises(MessError, match="cannot be read"):
        require_signature(manifest, tmp_path, tmp_path)


def test_without_the_library_the_move_is_told(
    keys: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys("own")
    monkeypatch.setattr("mess.runtime.signature.find_spec", lambda _: None)
    for attempt in (
        lambda: signature_of(sealed(WHOLE, None), private),
        lambda: require_signature(sealed(WHOLE, None), tmp_path, public),
    ):
        with pytest.raises(MessError, match="pip install cryptography"):
            attempt()
