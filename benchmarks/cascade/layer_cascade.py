"""Per-pixel exits (Deep Layer Cascade) against exits per image, in MACs: Table 3 of MESS.

    python -m benchmarks.cascade.layer_cascade --run DIR [--errors 0.001 0.01 0.1] [--data ROOT]
        [--output FILE]

DIR is a trained and memoised run; nothing is written there. Of each head, the most accurate exit of
points 1 and 3 and the network's own head as the last exit. Label and confidence maps are those that
`memoise.confidence_maps` would store, predicted again on the calibration split. Both policies are
judged by the same measure, see `maps.py`, and tuned on the same images. Prints the gains over
the network run to its end, what 8 bits of a confidence do, and receptive fields. Killed at any
moment, the same command goes on. Takes minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.cascade.macs import CascadeMacs
from benchmarks.cascade.maps import LEVELS, Maps, cheapest
from benchmarks.cascade.receptive_field import chain, input_share, macs_on_map
from benchmarks.cascade.tables import accuracy_table, bits_table, field_table, gains_table
from benchmarks.results import Results, Row, machine_facts
from mess.common.metrics import mean_iou
from mess.common.progress import Silent
from mess.config import Config, parse_config
from mess.data import SegmentationData, open_split
from mess.data.loader import evaluation_loader
from mess.exits import FINAL, ExitArchitecture, parse_exit_id
from mess.networks.backbones.heads import HeadOptions
from mess.networks.candidates import candidates
from mess.networks.heads import build_exit
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.prediction.predict import predict
from mess.runs.network import trained_network
from mess.runs.part_costs import load_costs
from mess.runs.policies import policy_tables
from mess.runs.results import CALIBRATION
from mess.runs.run import find_run
from mess.search.answers.answer import search
from mess.search.problem.costs import Cost
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables

HEADS = ("fcn", "dlb")

POINTS = ((1,), (1, 3))
"""Of the early exits; the last one is the network's own head."""

NO_HEAD = "none"
"""The backbone's last features as the output, to see what the head adds."""

FINE = 2**16
"""Levels of confidence that 8 bits are compared with."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A run, and what its exits say of every image (I) of the calibration split."""

    weights: str
    """Their sha256: figures of another run are other figures."""
    config: Config
    network: OverprovisionedNetwork
    tables: Tables
    cost: dict[str, Cost]
    label: NDArray[np.uint8]
    """(I, H, W)."""
    label_maps: dict[str, NDArray[np.uint8]]
    """Of each exit, (I, h, w)."""
    confidences: dict[str, NDArray[np.uint8]]
    """As memoised, (I, h, w)."""
    exact: dict[str, NDArray[np.float32]]
    """The same before rounding."""

    def maps(self, exits: Sequence[str], confidences: Sequence[NDArray], levels: int) -> Maps:
        """The maps of an instance under confidences of some resolution."""
        label_maps = [self.label_maps[exit_id] for exit_id in exits]
        return Maps.of(label_maps, confidences, self.label, self.tables.label.shape[1], levels)

    def natives(self, exits: Sequence[str]) -> list[tuple[int, int]]:
        """Rows and columns of the later exits' own maps."""
        shapes = [self.label_maps[exit_id].shape for exit_id in exits[1:]]
        return [(height, width) for _, height, width in shapes]

    @property
    def baseline(self) -> float:
        """MACs of the network run to its end."""
        return self.cost["macs"].backbone[-1] + self.cost["macs"].exit[self.tables.final]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--errors", type=float, nargs="+", default=[0.001, 0.01, 0.1])
    parser.add_argument("--data", type=Path, help="where the data set lies now")
    parser.add_argument("--output", type=Path, default=Path("runs/layer-cascade.json"))
    options = parser.parse_args()
    study = opened(options.run, options.data)
    machine = machine_facts("torch", "torchvision", "numpy")
    results = Results(options.output, {**machine, "weights": study.weights})
    measured = [
        results.measure(
            {"part": "accuracy", "exit": exit_id},
            lambda exit_id=exit_id: accuracy(study, exit_id),
        )
        for exit_id in study.label_maps
    ]
    print(f"{accuracy_table(measured)}\n")
    rows = [
        results.measure(
            {"part": "gains", "head": head, "exits": exits, "error": error},
            lambda exits=exits, error=error: gains(study, exits, error),
        )
        for head in HEADS
        for exits in (instance(study.tables, head, points) for points in POINTS)
        for error in options.errors
    ]
    print(f"{gains_table(rows)}\n\n{bits_table(rows)}\n")
    networks = {"the run's": study.config, "drn50": drn50()}
    rows = [
        results.measure(
            {"part": "receptive field", "backbone": name, "head": head},
            lambda name=name, head=head: receptive_field(networks[name], head),
        )
        for name in networks
        for head in (*HEADS, NO_HEAD)
    ]
    print(field_table(rows))


def opened(path: Path, root: Path | None) -> Study:
    """The run, and one pass of the network over its calibration split."""
    run = find_run(path)
    config = run.config
    if root is not None:
        data_config = config.data.model_copy(update={"root": root.resolve()})
        config = config.model_copy(update={"data": data_config})
    cache = run.open_cache(CALIBRATION)
    tables, _ = policy_tables(cache, "share", Silent())
    cost = load_costs(run, cache, tables, None)
    network = trained_network(run, torch.device("cpu"))
    wanted = [exit_id for head in HEADS for exit_id in instance(tables, head, POINTS[-1])]
    exits = list(dict.fromkeys(wanted))
    data = open_split(config.data, "calibration", config.seed)
    label, exact = really_run(network, data, config, exits)
    batches = [
        predictions
        for _, predictions in predict(
            network, evaluation_loader(data, config.data, batch_size=8), (),
            device=torch.device("cpu"), exits=exits, confidence_maps=exits,
        )
    ]  # fmt: skip

    def stored(name: str) -> dict[str, NDArray[np.uint8]]:
        return {e: np.concatenate([getattr(some[e], name) for some in batches]) for e in exits}

    return Study(
        weights=run.weights_sha256, config=config, network=network, tables=tables, cost=cost,
        label=label, label_maps=stored("label_map"), confidences=stored("confidence_map"),
        exact=exact,
    )  # fmt: skip


def really_run(
    network: OverprovisionedNetwork, data: SegmentationData, config: Config, exits: Sequence[str]
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
    """Labels, and the exits' float32 confidences."""
    labels: list[NDArray] = []
    found: dict[str, list[NDArray]] = {exit_id: [] for exit_id in exits}
    with torch.inference_mode():
        for images, label_BHW, _ in evaluation_loader(data, config.data, batch_size=8):
            labels.append(label_BHW.numpy().astype(np.uint8))
            features = network.features(images.to(memory_format=torch.channels_last))
            for exit_id, some in found.items():
                logits = network.logits(exit_id, features)
                some.append(logits.softmax(1).amax(1).numpy())
    return np.concatenate(labels), {e: np.concatenate(some) for e, some in found.items()}


def instance(tables: Tables, head: str, points: Sequence[int]) -> list[str]:
    """The most accurate early exit with a head at each of the points, and the final exit."""
    label = tables.label.sum(0)
    miou = np.asarray(mean_iou(tables.intersection.sum(1), tables.predicted.sum(1), label))
    chosen = []
    for point in points:
        known = [
            index
            for index, exit_id in enumerate(tables.exit_ids)
            if exit_id != FINAL
            and tables.point[index] == point
            and parse_exit_id(exit_id)[1].head == head
        ]
        if not known:
            raise SystemExit(f"the run has no {head} exit at point {point}")
        chosen.append(tables.exit_ids[max(known, key=lambda index: miou[index])])
    return [*chosen, FINAL]


def accuracy(study: Study, exit_id: str) -> Row:
    """MIoU of an exit by nearest neighbour, and as the search has it."""
    tables, index = study.tables, study.tables.exit_ids.index(exit_id)
    counts = tables.intersection[index].sum(0), tables.predicted[index].sum(0)
    maps = study.maps([exit_id], [], LEVELS)
    return {
        "nearest": maps.miou(maps.label_maps[0]),
        "bilinear": float(mean_iou(*counts, tables.label.sum(0))),
    }


def gains(study: Study, exits: list[str], error: float) -> Row:
    """Both policies tuned on the same exits."""
    maps = study.maps(exits, [study.confidences[e] for e in exits[:-1]], LEVELS)
    least = maps.miou(maps.label_maps[-1]) - error
    mious = maps.mious()
    choices = cheapest(mious, least)
    cost, thresholds = min((lc_macs(study, exits, maps, choice), choice) for choice in choices)
    nearby = by_nearest(study, exits)
    own = _restricted(study.tables, exits)
    answer = maps.answering(thresholds)
    found: Row = {
        "lc": study.baseline / cost,
        "lc_thresholds": thresholds,
        "lc_choices": len(choices),
        "lc_pixels": np.bincount(answer.ravel(), minlength=len(exits)).tolist(),
        "lc_images": float((answer > 0).any((1, 2)).mean()),
        "lc_miou": float(mious[thresholds]),
        "lc_active_alone": study.baseline / active_alone(study, exits, maps, thresholds),
        "ours": ours(study, nearby, exits, error),
        "ours_bilinear": ours(study, own, exits, error),
        "in_float": in_float(study, exits, thresholds, maps, cost),
    }
    if len(exits) == 2:
        found["fine"] = fine(study, exits, error)
    return found


def lc_macs(study: Study, exits: Sequence[str], maps: Maps, thresholds: Sequence[int]) -> float:
    """MACs of an image, mean over all."""
    active = maps.active(thresholds, study.natives(exits))
    return float(_cascade(study, tuple(exits)).count(active).mean())


_known: dict[tuple[str, ...], CascadeMacs] = {}


def _cascade(study: Study, exits: tuple[str, ...]) -> CascadeMacs:
    if exits not in _known:
        _known[exits] = CascadeMacs.of(study.network, exits, study.config.data.size)
    return _known[exits]


def active_alone(
    study: Study, exits: Sequence[str], maps: Maps, thresholds: Sequence[int]
) -> float:
    """MACs of an image if an active pixel needed nothing but itself: what LC would like to save."""
    macs, where = study.cost["macs"], [study.tables.exit_ids.index(e) for e in exits]
    backbone = macs.backbone[study.tables.point[where]]
    parts = np.diff(backbone, prepend=0.0) + macs.exit[where]
    answer = maps.answering(thresholds)
    return float(sum(part * (answer >= depth).mean() for depth, part in enumerate(parts)))


def _restricted(tables: Tables, exits: Sequence[str]) -> Tables:
    """The tables of some exits alone."""
    where = [tables.exit_ids.index(exit_id) for exit_id in exits]
    return replace(
        tables,
        exit_ids=tuple(exits),
        point=tables.point[where],
        intersection=tables.intersection[where],
        predicted=tables.predicted[where],
        signals=tables.signals[where],
    )


def by_nearest(study: Study, exits: Sequence[str]) -> Tables:
    """The tables of some exits with the counts of their nearest-neighbour label maps."""
    counts = []
    for exit_id in exits:
        maps = study.maps([exit_id], [], LEVELS)
        counts.append(maps.counts(maps.label_maps[0]))
    intersection, predicted = (
        np.stack(some).astype(np.int32) for some in zip(*counts, strict=True)
    )
    return replace(_restricted(study.tables, exits), intersection=intersection, predicted=predicted)


def ours(study: Study, tables: Tables, exits: Sequence[str], error: float) -> Row:
    """The best thresholds on shares of confident pixels (Eq. 7), by the exact search."""
    where = [study.tables.exit_ids.index(exit_id) for exit_id in exits]
    columns = [study.tables.signal_names.index(name) for name in tables.signal_names]
    costs = {}
    for metric, cost in study.cost.items():
        own = {f.name: getattr(cost, f.name)[where] for f in fields(cost) if f.name != "backbone"}
        costs[metric] = replace(cost, **{**own, "signal": own["signal"][:, columns]})
    request = Request(
        target="macs", max_error=error, max_exits=len(exits), thresholds=tables.images
    )
    answer = search(tables, costs, request, front=False)
    result = answer.to_result()
    return {
        "gain": study.baseline / answer.evaluation.costs["macs"],
        "optimal": result["search"]["optimal"],
        "exits": {row["exit_id"]: row["exit_rate"] for row in result["exits"]},
        "signals": [[row["signal"], row["threshold"]] for row in result["exits"][:-1]],
        "miou": answer.evaluation.miou,
    }


def in_float(
    study: Study, exits: Sequence[str], thresholds: Sequence[int], maps: Maps, cost: float
) -> Row:
    """The same thresholds on float32 confidences of really running the network."""
    reached = [
        (study.exact[exit_id] >= np.float32(threshold / (LEVELS - 1))).astype(np.uint8)
        for exit_id, threshold in zip(exits[:-1], thresholds, strict=True)
    ]
    exact, all_reached = study.maps(exits, reached, 2), [1] * len(reached)
    return {
        "moved": float((exact.answering(all_reached) != maps.answering(thresholds)).mean()),
        "miou": exact.miou(exact.composite(all_reached)) - maps.miou(maps.composite(thresholds)),
        "macs": lc_macs(study, exits, exact, all_reached) / cost - 1,
    }


def fine(study: Study, exits: Sequence[str], error: float) -> Row:
    """The best threshold of two exits with 16 bits of confidence."""
    confidence = np.rint(study.exact[exits[0]].astype(np.float64) * (FINE - 1)).astype(np.int64)
    maps = study.maps(exits, [confidence], FINE)
    ((threshold,),) = cheapest(maps.mious(), maps.miou(maps.label_maps[-1]) - error)
    return {
        "lc": study.baseline / lc_macs(study, exits, maps, [threshold]),
        "threshold": threshold / (FINE - 1),
    }


def drn50() -> Config:
    """The network of the paper's Table 3, for its receptive fields alone."""
    exits = {"points": 6, "crm": [8], "blocks": [0], "heads": ["fcn"]}
    return parse_config(
        {"data": {"size": [520, 520]}, "backbone": {"name": "drn50"}, "exits": exits}
    )


def receptive_field(config: Config, head: str) -> Row:
    """Share of the features at points 1 and 3 that one pixel in the middle of the output needs."""
    network = build_network(config, candidates(config, 21), 21)
    last = len(network.points)
    size = config.data.size
    _, (channels, _, _) = macs_on_map(chain(network, 0, last), (3, *size))
    module: nn.Module = nn.Identity()
    if head != NO_HEAD:
        architecture = ExitArchitecture(1, 0, False, head)
        module = build_exit(
            architecture, channels, 21, HeadOptions(width=config.exits.dlb_channels)
        )
    shares = {}
    for point in (1, 3):
        _, shape = macs_on_map(chain(network, 0, point), (3, *size))
        shares[str(point)] = input_share(nn.Sequential(chain(network, point, last), module), shape)
    return {"size": list(size), "shares": shares}


if __name__ == "__main__":
    main()
