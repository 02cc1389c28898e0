"""What each exit computes, as a fingerprint of its weights. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mess.common.images import PREPROCESSING
from mess.common.normalisation import IMAGENET
from mess.config import Config
from mess.errors import WeightsError
from mess.exits import FINAL

_VERSION = 4
"""Raise it with any change to networks, counts or signals that changes a number."""

_BACKBONE, _EXITS = "backbone.", "exits."


def pipeline_fingerprint(config: Config) -> str:
    """sha256 (hexadecimal) over what decides predictions besides weights and images."""
    backbone = {"name": config.backbone.name, "options": config.backbone.options}
    if config.backbone.outputs is not None:
        # Nothing where it is not set: predictions of before there was a choice stay what they are.
        backbone["outputs"] = config.backbone.outputs
    taken = config.data.normalisation
    content = [_VERSION, PREPROCESSING, taken.mean, taken.std, backbone]
    if (taken.channels, taken.range) != (IMAGENET.channels, IMAGENET.range):
        # For the same reason.
        content.append([taken.channels, taken.range])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def exit_fingerprints(weights: Path, exit_ids: Iterable[str], config: Config) -> dict[str, str]:
    """By exit, sha256 (hexadecimal) over pipeline, backbone, head and the exit's weights.

    The head is part of every exit's, since exits are compared with the final one. Images and their
    size have fingerprints of their own.
    """
    header = pipeline_fingerprint(config).encode()
    try:
        with safe_open(weights, framework="numpy") as file:
            # An open safetensors file has keys but does not iterate.
            names = sorted(file.keys())
            # Hashed once: each exit goes on from its digest. What `final` runs is all in it.
            trunk = _digest(file, [name for name in names if name.startswith(_BACKBONE)], header)
            return {
                exit_id: trunk.hexdigest()
                if exit_id == FINAL
                else _digest(
                    file,
                    [name for name in names if name.startswith(f"{_EXITS}{exit_id}.")],
                    trunk.digest(),
                ).hexdigest()
                for exit_id in exit_ids
            }
    except SafetensorError as error:
        raise WeightsError(f"{weights} is not safetensors: {error}.") from error


def _digest(file: Any, names: Iterable[str], start: bytes) -> Any:
    digest = hashlib.sha256(start)
    for name in names:
        tensor = np.ascontiguousarray(file.get_tensor(name))
        # Bytes alone could be those of other tensors, divided otherwise.
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        digest.update(tensor.data)
    return digest
