"""Opening the trained network of a run."""

from __future__ import annotations

import torch

from mess.candidates import candidates
from mess.config import Config
from mess.data import ClassTable, open_split
from mess.errors import MessError
from mess.network import OverprovisionedNetwork, build_network, frozen, load_weights
from mess.run import Run


def trained_network(place: Run, config: Config, device: torch.device) -> OverprovisionedNetwork:
    """The trained network of a run, in eval mode and without gradients."""
    place.require_weights()
    classes = class_table(config).num_classes
    # The weights file replaces whatever the backbone would start from.
    blank = config.model_copy(
        update={"backbone": config.backbone.model_copy(update={"weights": "none"})}
    )
    network = build_network(blank, candidates(blank, classes), classes)
    load_weights(network, place.weights)
    frozen(network)
    return network.to(device)


def class_table(config: Config) -> ClassTable:
    """Names and colours of the configured data's classes."""
    return open_split(config.data, "train", config.seed).classes


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise MessError(f"--device {name!r} is no torch device: {error}.") from error
