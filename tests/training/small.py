"""A small training: two images of noise a batch, every stage in one call."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from mess.common.progress import Reporter, Silent
from mess.compute.processes import ALONE, Processes
from mess.config import Config, parse_config
from mess.data.loader import Batch
from mess.networks.candidates import Candidate, candidates
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.training.logs import MetricsLog
from mess.training.loop import Training
from mess.training.stage import Batches
from mess.training.stages.recipes import keeps_best, stages_of
from tests.seeds import seeded

CLASSES = 4
CPU = torch.device("cpu")
EPOCH = 2


def batch(stage: str, iteration: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seeded(1000 * ord(stage[-1]) + iteration))
    images = torch.randn(2, 3, 32, 48, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 32, 48), generator=generator)
    return images, labels.masked_fill(torch.rand(2, 32, 48, generator=generator) < 0.1, 255)


def batches(
    seed_name: str, iterations: int, start: int, sharing: Processes, every: int = 1
) -> Iterator[Batch]:
    assert sharing == ALONE
    for iteration in range(start, iterations, every):
        yield *batch(seed_name, iteration), torch.arange(2)


@cache
def _rows(toml: str) -> list[Candidate]:
    return candidates(parse_config(tomllib.loads(toml)), CLASSES)


def rows_of(config: Config) -> list[Candidate]:
    """The candidates, laid out once a configuration."""
    return _rows(config.to_toml())


def build(config: Config) -> OverprovisionedNetwork:
    return build_network(config, rows_of(config), CLASSES)


def run_training(
    config: Config,
    folder: Path,
    *,
    batches: Batches = batches,
    reporter: Reporter | None = None,
    after_stage: Callable[[OverprovisionedNetwork, str], None] = lambda network, stage: None,
    score: Callable[[str, int, str], float] = lambda stage, iteration, exit_id: 0.0,
) -> OverprovisionedNetwork:
    """All stages in `folder`, from its checkpoint where there is one."""
    folder.mkdir(exist_ok=True)
    network = build(config)

    def judge(
        stage: str, iteration: int, exits: Sequence[str], mine: Sequence[str]
    ) -> dict[str, float]:
        assert mine == exits
        network.eval()
        after_stage(network, stage)
        return {exit_id: score(stage, iteration, exit_id) for exit_id in exits}

    Training(
        network=network,
        config=config,
        batches=batches,
        checkpoint=folder / "checkpoint",
        log=MetricsLog(folder / "metrics"),
        reporter=reporter or Silent(),
        device=CPU,
        judge=judge,
        best=folder / "best" if keeps_best(config) else None,
        epoch=EPOCH,
    ).run(stages_of(network, config, rows_of(config), CLASSES, CPU))
    return network


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
