"""What a bundle is, of which nothing was run."""

from __future__ import annotations

from typing import Any


def verified_lines(found: dict[str, Any]) -> list[str]:
    """What `mess verify` found of a bundle that is what it says."""
    exits, files = len(found["exits"]), found["files"]
    lines = [
        f"{found['bundle']} is what was exported: {exits} {'exit' if exits == 1 else 'exits'}, "
        f"{files} {found['format']} programs, {found['bytes'] / 1e6:.1f} MB.",
        f"Digest: {found['digest']}",
    ]
    if found["signed_by"]:
        lines.append(f"Signed by the key whose public half is {found['signed_by']}.")
    elif found["signed"]:
        lines.append("It is signed; --public-key checks by whom.")
    certificate = found["certificate"]
    if certificate is None:
        return [*lines, "It carries no certificate."]
    holds = "holds" if certificate.get("holds") is True else "does not hold"
    confidence = certificate.get("confidence")
    at = f" at {100 * confidence:g}%" if isinstance(confidence, int | float) else ""
    return [*lines, f"It carries a certificate that {holds}{at}, unaltered."]
