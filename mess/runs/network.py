"""Opening the trained network of a run."""

from __future__ import annotations

import torch

from mess.compute.memory import keep_memory
from mess.config import Config
from mess.data import ClassTable, read_classes
from mess.errors import MessError
from mess.networks.candidates import candidates
from mess.networks.network import OverprovisionedNetwork, build_network, frozen, load_weights
from mess.runs.run import Run


def trained_network(place: Run, config: Config, device: torch.device) -> OverprovisionedNetwork:
    """The trained network of a run, in eval mode and without gradients. Needs no data."""
    place.require_weights()
    keep_memory()
    classes = class_table(place).num_classes
    blank = without_weights(config)
    network = build_network(blank, candidates(blank, classes), classes)
    load_weights(network, place.weights)
    frozen(network)
    return network.to(device)


def without_weights(config: Config) -> Config:
    """For a network whose weights come from elsewhere than what the backbone starts from."""
    backbone = config.backbone.model_copy(update={"weights": "none"})
    return config.model_copy(update={"backbone": backbone})


def class_table(place: Run) -> ClassTable:
    """Names and colours of the classes a run was trained on."""
    return read_classes(place.classes)[0]


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
