"""Checkpoints of a training: safetensors with the position as metadata, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mess.errors import TrainingError
from mess.files import atomic_path


@dataclass(frozen=True)
class Checkpoint:
    """Where training stands: `iteration` steps of `stage` are done, with this state.

    `configuration` is the TOML the state was reached under; another one must not continue it.
    """

    stage: str
    iteration: int
    configuration: str
    tensors: Mapping[str, Tensor]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path`; a kill leaves the old one."""
    position = {
        "stage": checkpoint.stage,
        "iteration": checkpoint.iteration,
        "configuration": checkpoint.configuration,
    }
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"position": json.dumps(position)})


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None where there is none."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            position = json.loads(file.metadata()["position"])
            # An open safetensors file has keys but does not iterate.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"checkpoint {path} is damaged ({error}). Delete it to train from the start."
        ) from error
    return Checkpoint(tensors=tensors, **position)
