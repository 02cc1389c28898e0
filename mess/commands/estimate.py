"""What training would take on this machine: hours and memory, of steps that are really done."""

from __future__ import annotations

import resource
import sys
import time
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from mess.common.progress import Reporter
from mess.common.seeds import derive
from mess.compute.device import pick_device
from mess.compute.memory import keep_memory
from mess.config import Config
from mess.data import open_split
from mess.errors import MessError
from mess.networks.candidates import KEPT, candidates, require_early_exit
from mess.networks.network import build_network
from mess.runs.network import without_weights
from mess.training.stage import Stage
from mess.training.stages.recipes import stages_of

_WARM_UP, _TIMED = 1, 3
"""Steps of a stage. The first ones choose algorithms and take memory, and are slower."""


class StageEstimate(TypedDict):
    """What a stage would take."""

    stage: str
    iterations: int
    seconds: float
    """Of an iteration: the mean over the timed steps."""
    hours: float
    memory: int
    """Bytes at most since the command began: on a GPU what tensors took there, else the process."""


class Estimate(TypedDict):
    """What `mess estimate` found."""

    device: str
    memory: int | None
    """Bytes that a GPU has; None on a CPU."""
    batch_size: int
    crop: tuple[int, int]
    exits: int
    parameters: int
    stages: list[StageEstimate]
    hours: float


def estimate(config: Config, device_name: str, reporter: Reporter) -> Estimate:
    """Do a few steps of each stage on random images of the configured size; nothing is kept.

    Raises MessError with what to lower where the memory of a GPU does not suffice.
    """
    keep_memory()
    device = pick_device(device_name)
    classes = open_split(config.data, "train", config.seed).classes
    rows = candidates(config, classes.num_classes)
    require_early_exit(rows)
    # Steps take as long with any weights, and those of the configuration may not be here yet.
    network = build_network(without_weights(config), rows, classes.num_classes, classes.names)
    network.backbone.to(device)
    stages = [
        stage
        for stage in stages_of(network, config, rows, classes.num_classes, device)
        if stage.settings.iterations
    ]
    batch = _batch(config, classes.num_classes, device)
    found: list[StageEstimate] = []
    with reporter.task("steps", (_WARM_UP + _TIMED) * len(stages)) as task:
        for stage in stages:
            try:
                seconds = _seconds(stage, batch)
            except torch.cuda.OutOfMemoryError as error:
                raise MessError(_too_large(stage, config, device)) from error
            task.advance(_WARM_UP + _TIMED)
            found.append(_estimate(stage, seconds, device))
    return Estimate(
        device=str(device),
        memory=torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None,
        batch_size=config.training.batch_size,
        crop=config.data.crop_size,
        exits=sum(row.status == KEPT for row in rows),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        stages=found,
        hours=sum(each["hours"] for each in found),
    )


class _Batch(NamedTuple):
    images: Tensor
    labels: Tensor


def _batch(config: Config, num_classes: int, device: torch.device) -> _Batch:
    generator = torch.Generator().manual_seed(derive(config.seed, "estimate"))
    size = (config.training.batch_size, *config.data.crop_size)
    images = torch.randn(size[0], 3, *size[1:], generator=generator)
    labels = torch.randint(num_classes, size, generator=generator)
    return _Batch(images.to(device, memory_format=torch.channels_last), labels.to(device))


def _seconds(stage: Stage, batch: _Batch) -> float:
    """Of a step, as the loop does it."""
    # Stage 1 trains another early head each time, shallow ones and deep ones.
    steps = [step % stage.settings.iterations for step in range(_WARM_UP + _TIMED)]
    stage.begin()
    for iteration in steps[:_WARM_UP]:
        stage.step(stage.see(*batch), iteration)
    _wait(batch.images.device)
    began = time.perf_counter()
    for iteration in steps[_WARM_UP:]:
        stage.step(stage.see(*batch), iteration)
    _wait(batch.images.device)
    seconds = (time.perf_counter() - began) / _TIMED
    stage.end()
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _estimate(stage: Stage, seconds: float, device: torch.device) -> StageEstimate:
    iterations = stage.settings.iterations
    return StageEstimate(
        stage=stage.name,
        iterations=iterations,
        seconds=seconds,
        hours=seconds * iterations / 3600,
        memory=_most_memory(device),
    )


def _most_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, but for macOS.
    return most if sys.platform == "darwin" else 1024 * most


def _too_large(stage: Stage, config: Config, device: torch.device) -> str:
    has = torch.cuda.mem_get_info(device)[1] / 1e9
    groups = config.training.stage2.groups
    if stage.shares_batches:
        remedy = "Processes under torchrun divide a batch among GPUs."
    else:
        remedy = (
            f"Raise training.stage2.groups above {groups}: exits of other groups are not on the "
            "GPU, and every exit ends with the same weights."
        )
    return (
        f"{stage.name} does not fit into the {has:.0f} GB of {device} with batches of "
        f"{config.training.batch_size}. {remedy} Or lower training.batch_size, or data.size."
    )
