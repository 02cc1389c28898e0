"""Checkpoints of a training: safetensors with the position as metadata, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mess.common.files import atomic_path
from mess.compute.processes import Processes
from mess.errors import TrainingError


@dataclass(frozen=True)
class Checkpoint:
    """Where training stands: `iteration` steps of `stage` are done, with this state.

    `configuration` is the TOML the state was reached under; another one must not continue it.
    `settled` names the file beside it with those tensors that no step of the stage changes; the
    checkpoint of a finished stage holds all.
    """

    stage: str
    iteration: int
    configuration: str
    tensors: Mapping[str, Tensor]
    settled: str | None = None


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, shares: Sequence[str] = ()) -> None:
    """Replace the checkpoint at `path`; a kill leaves the old one.

    `shares` are files beside it that hold what other processes trained.
    """
    position = {
        "stage": checkpoint.stage,
        "iteration": checkpoint.iteration,
        "configuration": checkpoint.configuration,
        "shares": list(shares),
        "settled": checkpoint.settled,
    }
    # Contiguous: safetensors refuses the channels-last layout that networks are trained in.
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()
    }
    with atomic_path(path) as temporary:
        # As one text: safetensors' metadata maps strings to strings.
        save_file(tensors, temporary, metadata={"position": json.dumps(position)})


def save_settled(path: Path, checkpoint: Checkpoint) -> str:
    """Write what a stage does not change beside the checkpoint at `path`; the file's name.

    Checkpoints of the stage name it, and hold the rest.
    """
    # Whatever run of the stage writes it, the content is the same: an old checkpoint that names it
    # loses nothing.
    name = f"{path.stem}-{checkpoint.stage}-settled-0{path.suffix}"
    save_checkpoint(path.with_name(name), checkpoint)
    return name


def save_whole(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path` by one of a single process."""
    save_checkpoint(path, checkpoint)
    # Only now: until here the old checkpoint needed them.
    _remove_shares(path, kept=[checkpoint.settled])


def save_divided(path: Path, checkpoint: Checkpoint, processes: Processes) -> None:
    """Replace the checkpoint at `path` by one of which every process has tensors of its own."""
    # The step is in the names of shares, and the file that names them comes last: a kill before it
    # leaves the old checkpoint with the shares that it names.
    step = f"{checkpoint.stage}-{checkpoint.iteration}"
    shares = [f"{path.stem}-{step}-{rank}{path.suffix}" for rank in range(1, processes.count)]
    if not processes.is_first:
        save_checkpoint(path.with_name(shares[processes.rank - 1]), checkpoint)
    processes.wait()
    if processes.is_first:
        save_checkpoint(path, checkpoint, shares=shares)
        # Only now: until here the old checkpoint needed its own.
        _remove_shares(path, kept=[*shares, checkpoint.settled])


def load_checkpoint(
    path: Path, remedy: str = "Delete it to train from the start."
) -> Checkpoint | None:
    """The checkpoint at `path`, with its shares, or None where there is none.

    Raises TrainingError, which ends in `remedy`, where it is damaged.
    """
    if not path.exists():
        return None
    try:
        position, tensors = _read(path)
        for share in [*position.pop("shares", []), *filter(None, [position.get("settled")])]:
            tensors |= _read(path.with_name(share))[1]
        return Checkpoint(tensors=tensors, **position)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"checkpoint {path} is damaged ({error}). {remedy}") from error


def remove_checkpoint(path: Path) -> None:
    """Delete the checkpoint at `path` and its shares, where there are any."""
    path.unlink(missing_ok=True)
    _remove_shares(path, kept=())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        position = json.loads(file.metadata()["position"])
        # An open safetensors file has keys but does not iterate.
        return position, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _remove_shares(path: Path, kept: Sequence[str | None]) -> None:
    for share in path.parent.glob(f"{path.stem}-*-*-*{path.suffix}"):
        if share.name not in kept:
            share.unlink()
