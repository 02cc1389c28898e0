"""Signatures of bundles: Ed25519, by `cryptography`, which only who signs or checks needs.

What is signed is the digest of the manifest, which is of all files with it, and that of the
certificate, so that neither can be exchanged.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mess.common.records import DIGEST
from mess.errors import BundleError, MessError
from mess.runtime.format import SIGNATURES, Signature
from mess.runtime.manifest import CERTIFICATE, SIGNATURE

_PURPOSE = b"mess bundle"
"""Else a signature of the same key for something else could pass for one of a bundle."""

_MOST_KEY_BYTES = 2**16


def signature_of(manifest: Mapping[str, Any], private_key: Path) -> Signature:
    """The signature of a bundle by the private key in a PEM file.

    Raises MessError where the file holds no Ed25519 key without a passphrase.
    """
    _require_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _key(private_key, "private", lambda content: load_pem_private_key(content, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_key(private_key, "private")
    value = base64.b64encode(key.sign(_message(manifest))).decode("ascii")
    return {"algorithm": SIGNATURES, "value": value}


def require_signature(manifest: Mapping[str, Any], path: Path, public_key: Path) -> None:
    """Raise BundleError unless the bundle at `path` is signed by the key whose public half is here.

    Raises MessError where the PEM file `public_key` holds no Ed25519 public key.
    """
    _require_library()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _key(public_key, "public", load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise _other_key(public_key, "public")
    signature = manifest.get(SIGNATURE)
    if signature is None:
        raise BundleError(
            f"bundle {path} is not signed, and {public_key} was to check it. Ask who made it to "
            "sign it: mess sign BUNDLE --key FILE."
        )
    try:
        key.verify(base64.b64decode(signature["value"]), _message(manifest))
    except InvalidSignature:
        raise BundleError(
            f"bundle {path} is not signed by the key of {public_key}: it, its certificate or its "
            "signature is another one's. Do not run it before you know whose."
        ) from None


def _message(manifest: Mapping[str, Any]) -> bytes:
    certificate = manifest.get(CERTIFICATE)
    parts = manifest[DIGEST], "none" if certificate is None else certificate[DIGEST]
    return b"\n".join([_PURPOSE, *(part.encode("ascii") for part in parts)])


def _require_library() -> None:
    if find_spec("cryptography") is None:
        raise MessError(
            'signatures need the package cryptography: pip install "mess[sign]", on a device '
            "pip install cryptography."
        )


def _key(file: Path, half: str, read: Callable[[bytes], Any]) -> Any:
    # What OpenSSL raises for kinds of keys that it does not know.
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_KEY_BYTES)
        return read(content)
    except OSError as error:
        raise MessError(f"the {half} key {file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _other_key(file, half) from error


def _other_key(file: Path, half: str) -> MessError:
    made = (
        "openssl genpkey -algorithm ed25519 -out key.pem"
        if half == "private"
        else "openssl pkey -in key.pem -pubout -out public.pem"
    )
    return MessError(
        f"{file} holds no Ed25519 {half} key in PEM, without a passphrase; `{made}` makes one."
    )
