"""Opening the trained network of a run."""

from __future__ import annotations

import torch

from mess.compute.memory import keep_memory
from mess.config import Config
from mess.networks.candidates import Candidate
from mess.networks.network import OverprovisionedNetwork, build_network, frozen
from mess.networks.weights import load_weights
from mess.runs.run import Run


def trained_network(place: Run, device: torch.device) -> OverprovisionedNetwork:
    """The trained network of a run, in eval mode and without gradients. Needs no data."""
    place.require_weights()
    keep_memory()
    classes = place.class_table
    blank = without_weights(place.config)
    rows = [Candidate.from_row(row) for row in place.candidate_rows]
    network = build_network(blank, rows, classes.num_classes, classes.names)
    load_weights(network, place.weights)
    frozen(network)
    return network.to(device)


def without_weights(config: Config) -> Config:
    """For a network whose weights come from elsewhere than what the backbone starts from."""
    backbone = config.backbone.model_copy(update={"weights": "none"})
    return config.model_copy(update={"backbone": backbone})
