"""Which device a process computes on."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from mess.compute.processes import ALONE
from mess.errors import MessError


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine.

    Raises MessError where processes would have to share one, which their messages cannot.
    """
    here = ALONE.here
    if device.type != "cuda" or not dist.is_torchelastic_launched() or here == 1:
        return device
    if device.index is not None or here > torch.cuda.device_count():
        raise MessError(
            f"{here} processes on this machine cannot share --device {device}; it has "
            f"{torch.cuda.device_count()} GPUs. Start one process a GPU with --device cuda, or use "
            "--device cpu."
        )
    chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    # For what asks for "cuda" without a number.
    torch.cuda.set_device(chosen)
    return chosen


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise MessError(f"--device is auto, cpu, cuda or cuda:N, got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MessError(
            f"--device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices. "
            "Use --device cpu, or auto."
        )
    return device
