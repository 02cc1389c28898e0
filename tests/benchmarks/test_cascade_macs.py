"""MACs of per-pixel exits on a tiny network, against counting layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from benchmarks.cascade.macs import CascadeMacs
from benchmarks.cascade.receptive_field import chain, macs_on_map, needs
from mess.config import Config
from mess.exits import FINAL
from mess.networks.candidates import candidates
from mess.networks.network import OverprovisionedNetwork, build_network, export_copy
from tests.conftest import MakeConfig
from tests.seeds import seeded

CLASSES = 3
SIZE = (32, 48)
NATIVE = (4, 6)


@pytest.fixture(scope="module")
def config(make_config: MakeConfig) -> Config:
    return make_config(
        exits={
            "blocks": [0, 1],
            "rdi": [False, True],
            "heads": ["fcn", "dlb"],
            "dlb_channels": 4,
            "max_exit_cost": 9.0,
            "max_exit_share": 9.0,
        }
    )


@pytest.fixture(scope="module")
def network(config: Config) -> OverprovisionedNetwork:
    return export_copy(build_network(config, candidates(config, CLASSES), CLASSES))


@pytest.fixture(scope="module")
def costs(config: Config) -> dict[str, tuple[int, int]]:
    """The backbone up to an exit, and the exit, as the candidates have them."""
    rows = candidates(config, CLASSES)
    return {row.exit_id: (row.backbone_macs, row.exit_macs) for row in rows}


INSTANCES = [
    ("p1-crm1-b0-fcn", FINAL),
    ("p1-crm2-b1-rdi-fcn", "p2-crm1-b0-fcn", FINAL),
    ("p1-crm1-b0-fcn", "p2-crm2-b0-dlb", FINAL),
    ("p1-crm1-b0-fcn", "p2-crm1-b0-fcn"),
    ("p1-crm1-b0-fcn", "p3-crm1-b0-fcn", FINAL),
]


@pytest.mark.parametrize("exits", INSTANCES)
def test_with_every_pixel_active_everything_is_computed_and_with_none_the_first_exit(
    exits: tuple[str, ...],
    network: OverprovisionedNetwork,
    costs: dict[str, tuple[int, int]],
) -> None:
    cascade = CascadeMacs.of(network, exits, SIZE)
    all_exits = costs[exits[-1]][0] + sum(costs[exit_id][1] for exit_id in exits)
    everything = [np.ones((2, *NATIVE), np.bool_) for _ in exits[1:]]
    assert cascade.count(everything).tolist() == [all_exits] * 2
    assert cascade.whole == all_exits
    nothing = [np.zeros((2, *NATIVE), np.bool_) for _ in exits[1:]]
    assert cascade.count(nothing).tolist() == [sum(costs[exits[0]])] * 2


@pytest.mark.parametrize("exits", INSTANCES)
def test_each_position_is_counted_once_for_all_later_exits(
    exits: tuple[str, ...], network: OverprovisionedNetwork
) -> None:
    """By following each exit's own path from the first exit's features, and uniting them."""
    rng = np.random.default_rng(seeded(len(exits)))
    active = [rng.random((6, *NATIVE)) < 0.1]
    for _ in exits[2:]:
        active.append(active[-1] & (rng.random((6, *NATIVE)) < 0.5))
    cascade = CascadeMacs.of(network, exits, SIZE)
    start = network.point(exits[0])
    expected = np.full(6, cascade.first)
    united: dict[int, tuple[int, NDArray[np.bool_]]] = {}
    _, shape = macs_on_map(chain(network, 0, start), (3, *SIZE))
    for exit_id, mask in zip(exits[1:], active, strict=True):
        body = chain(network, start, network.point(exit_id))
        wanted = mask.reshape(6, -1)
        own = len(needs(body, shape, wanted).layers)
        found = needs(nn.Sequential(body, network.exit_module(exit_id)), shape, wanted).layers
        for index, layer in enumerate(found[:own]):
            cost, before = united.get(index, (layer.macs, np.zeros_like(layer.positions)))
            united[index] = cost, before | layer.positions
        expected += sum(layer.macs * layer.positions.sum(1) for layer in found[own:])
    expected += sum(cost * positions.sum(1) for cost, positions in united.values())
    assert cascade.count(active).tolist() == expected.tolist()


def test_one_pixel_before_a_deeplab_head_needs_the_whole_backbone(
    network: OverprovisionedNetwork, costs: dict[str, tuple[int, int]]
) -> None:
    one = np.zeros((1, *NATIVE), np.bool_)
    one[0, 0, 0] = True
    deeplab, plain = "p3-crm1-b0-dlb", "p3-crm1-b0-fcn"
    first = "p1-crm1-b0-fcn"
    least = costs[deeplab][0] + costs[first][1]
    assert CascadeMacs.of(network, (first, deeplab), SIZE).count([one])[0] > least
    assert CascadeMacs.of(network, (first, plain), SIZE).count([one])[0] < least


def test_exits_that_are_no_cascade_are_refused(network: OverprovisionedNetwork) -> None:
    with pytest.raises(ValueError, match="from shallow to deep"):
        CascadeMacs.of(network, (FINAL, "p1-crm1-b0-fcn"), SIZE)
    with pytest.raises(ValueError, match="two exits or more"):
        CascadeMacs.of(network, (FINAL,), SIZE)
