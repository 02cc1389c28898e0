"""What every process of a training does first, done once: the forkserver's children have it done.

Imports, the tracing that counts multiply-adds, and the loading of compiled loops take half of a
tiny training's time. Nothing here computes a gradient, for autograd's threads would not be forked.
"""

from __future__ import annotations

import tomllib

import pandas  # noqa: F401  (pyarrow imports it when the first table is written)
import pyarrow.dataset  # noqa: F401  (as above)
import torch

from mess.config import parse_config
from mess.data import open_split
from mess.data.loader import evaluation_loader
from mess.networks.candidates import candidates
from mess.networks.network import build_network, frozen
from mess.prediction.predict import predict
from mess.signals.registry import configured_signals
from tests.workflow.children import CONFIG


def warm_up() -> None:
    """Predict with a network that is not trained."""
    torch.set_num_threads(1)
    config = parse_config(tomllib.loads(CONFIG))
    data = open_split(config.data, "calibration", config.seed)
    classes = data.classes.num_classes
    network = build_network(config, candidates(config, classes), classes)
    frozen(network)
    loader = evaluation_loader(data, config.data, batch_size=2)
    signals = configured_signals(config.memoise)
    next(iter(predict(network, loader, signals, device=torch.device("cpu"))))


warm_up()
