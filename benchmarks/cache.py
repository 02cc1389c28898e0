"""What memoising costs beside the network itself, and what its files take up.

    python benchmarks/cache.py [--parts passes separate storage] [--networks mobilenet_v2 drn50]
        [--sizes 180x240 360x480] [--run RUN] [--every N] [--batch N] [--rounds N] [--output FILE]

- passes: memoising against the bare forward of the same network, backbone and every exit, over the
  same images: in turns, nothing counted in the forward. The pass that memoises includes compressing
  the label maps and writing the parts.
- separate: evaluating every exit's network by itself, one after the other, against all at once;
  beside it what the multiply-adds promise.
- storage: a cache of 1,449 images, 337 exits and 21 classes with the default signals, from made-up
  counts of images of 520×520: bytes, seconds to write, to read for a search and to verify; and the
  size of label maps at 65×65.

Networks have 21 classes and random weights and predict all classes, another one at almost every
position: counting has several times more to do than with a trained network. `--run` takes a trained
one instead, with its exits and calibration images. `--every` takes each n-th exit alone. Images are
drawn (`shapes`). Every figure is in FILE as soon as it is measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from random_caches import CacheSize, random_cache
from results import Results, Row, machine_facts

from mess.cache.compression import compress
from mess.cache.predictions.parts import PartRows, write_part
from mess.cache.predictions.store import PredictionStore
from mess.cache.predictions.verify import verify
from mess.cache.predictions.writer import CacheWriter, Gap, Identity
from mess.commands.memoise import part_rows
from mess.common.images import resize_mask
from mess.compute.memory import keep_memory
from mess.config import Config, parse_config
from mess.data import open_split
from mess.data.loader import Batch, evaluation_loader
from mess.exits import FINAL
from mess.networks.candidates import KEPT, Candidate, candidates
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.prediction.predict import predict
from mess.runs.network import trained_network
from mess.runs.run import Run
from mess.search.problem.tables import Tables
from mess.signals.registry import configured_signals

CLASSES = 21
PIXELS_VOC, POSITIONS_VOC = 520 * 520, 65 * 65


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = {"passes": passes, "separate": separate, "storage": storage}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v2", "drn50"])
    parser.add_argument("--sizes", nargs="+", default=["180x240", "360x480"])
    parser.add_argument("--run", type=Path, help="a trained run instead of --networks")
    parser.add_argument("--every", type=int, default=1, help="take each n-th exit")
    parser.add_argument("--batch", type=int, default=8, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/cache-benchmark.json"))
    options = parser.parse_args()
    keep_memory()
    facts = machine_facts("mess", "torch", "numba", "pyarrow")
    results = Results(options.output, facts | {"threads": torch.get_num_threads()})
    for part in options.parts:
        parts[part](options, results)


def passes(options: argparse.Namespace, results: Results) -> None:
    """Memoising against the bare forward."""
    print(
        "| network | image | exits | forward (ms an image) | memoising (ms an image) "
        "| ratio (range) |\n| --- | --- | --- | --- | --- | --- |"
    )
    for case in cases("passes", options):
        row = results.measure(case, partial(measure_passes, case))
        ratios = [m / f for f, m in zip(row["forward"], row["memoising"], strict=True)]
        print(
            f"| {row['network']} | {row['size']} | {row['exits']} "
            f"| {1000 * median(row['forward']):,.0f} | {1000 * median(row['memoising']):,.0f} "
            f"| {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )


def separate(options: argparse.Namespace, results: Results) -> None:
    """All exits at once against each by itself."""
    print(
        "| network | image | exits | at once (s an image) | one by one (s an image) | ratio "
        "| promised by MACs | realised |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for case in cases("separate", options):
        row = results.measure(case, partial(measure_separate, case))
        ratio = median(a / b for a, b in zip(row["one_by_one"], row["at_once"], strict=True))
        print(
            f"| {row['network']} | {row['size']} | {row['exits']} | {median(row['at_once']):.2f} "
            f"| {median(row['one_by_one']):.2f} | {ratio:.2f} | {row['promised']:.2f} "
            f"| {ratio / row['promised']:.2f} |"
        )


def storage(options: argparse.Namespace, results: Results) -> None:
    """Bytes and seconds of a large cache."""
    case = {"part": "storage", "images": 1449, "architectures": 56, "rounds": options.rounds}
    row = results.measure(case, partial(measure_storage, case))
    print(
        f"| images | exits | MB | write (s) | read (s) | verify (s) | label map (bytes) |\n"
        f"| --- | --- | --- | --- | --- | --- | --- |\n"
        f"| {row['images']} | {row['exits']} | {row['bytes'] / 1e6:.1f} | {row['write']:.1f} "
        f"| {median(row['read']):.2f} | {median(row['verify']):.2f} | {row['label_map']:.0f} |"
    )


def cases(part: str, options: argparse.Namespace) -> list[Row]:
    """What is measured of each network and size."""
    chosen = {"every": options.every, "batch": options.batch, "rounds": options.rounds}
    if options.run is not None:
        config = Run(options.run).config
        size = "x".join(map(str, config.data.size))
        network = f"{config.backbone.name}, trained"
        run = str(options.run)
        return [{"part": part, "network": network, "size": size, "run": run, **chosen}]
    return [
        {"part": part, "network": network, "size": size, **chosen}
        for network in options.networks
        for size in options.sizes
    ]


@dataclass(frozen=True)
class Bench:
    """A network with some exits, and one batch of images."""

    config: Config
    network: OverprovisionedNetwork
    rows: list[Candidate]
    batch: Batch

    @classmethod
    def of(cls, case: Row) -> Bench:
        """The network and images of a case."""
        if "run" in case:
            return cls.trained(case)
        height, width = map(int, case["size"].split("x"))
        config = parse_config(
            {
                "data": {"size": [height, width], "workers": 0, "shapes": [1, case["batch"], 1]},
                "backbone": {"name": case["network"]},
            }
        )
        kept = [row for row in candidates(config, CLASSES) if row.status == KEPT]
        rows = [*kept[: -1 : case["every"]], kept[-1]]
        network = build_network(config, rows, CLASSES)
        data = open_split(config.data, "calibration", config.seed)
        (batch,) = evaluation_loader(data, config.data, batch_size=case["batch"])
        normalise(network, batch[0])
        return cls(config, network.eval().requires_grad_(False), rows, batch)

    @classmethod
    def trained(cls, case: Row) -> Bench:
        """Those of a run."""
        place = Run(Path(case["run"]))
        config = place.config
        network = trained_network(place, torch.device("cpu"))
        kept = candidates(config, place.class_table.num_classes)
        rows = [row for row in kept if row.exit_id == FINAL or row.exit_id in network.exits]
        data = open_split(config.data, "calibration", config.seed)
        # From all over the split: neighbours may be frames of one video.
        chosen = np.linspace(0, len(data) - 1, case["batch"]).astype(int).tolist()
        subset = data.select(chosen, data.where)
        (batch,) = evaluation_loader(subset, config.data, batch_size=case["batch"])
        return cls(config, network, [*rows[: -1 : case["every"]], rows[-1]], batch)

    @property
    def exits(self) -> list[str]:
        return [row.exit_id for row in self.rows]

    def forward(self) -> None:
        """Backbone and every exit, nothing else."""
        with torch.inference_mode():
            features = self.network.features(
                self.batch[0].to(memory_format=torch.channels_last, copy=True)
            )
            for exit_id in self.exits:
                self.network.logits(exit_id, features)

    def memoise(self, exits: Sequence[str], folder: Path) -> None:
        """What `mess memoise` does with a batch."""
        specs = configured_signals(self.config.memoise)
        names = tuple(spec.name for spec in specs)
        ids = [str(index) for index in range(len(self.batch[0]))]
        gap = Gap(images=tuple(range(len(ids))), exits=tuple(exits), signal_names=names)
        device = torch.device("cpu")
        ((_, found),) = predict(self.network, [self.batch], specs, device=device, exits=exits)
        rows = part_rows([(ids, found)], gap, self.config.memoise)
        write_part(folder, rows, dict.fromkeys(exits, ""), dict.fromkeys(ids, ""))


def normalise(network: OverprovisionedNetwork, images: torch.Tensor) -> None:
    """Take batch statistics from `images`, and biases from the logits: all classes then occur."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    network.train()
    with torch.no_grad():
        features = network.features(images)
        for exit_id in [*network.exits, FINAL]:
            logits = network.logits(exit_id, features)
            last = [m for m in network.exit_module(exit_id).modules() if hasattr(m, "bias")][-1]
            assert isinstance(last.bias, torch.Tensor)
            last.bias -= logits.mean((0, 2, 3))


def measure_passes(case: Row) -> Row:
    """Seconds an image of every round."""
    bench = Bench.of(case)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], None]] = {
            "forward": bench.forward,
            "memoising": lambda: bench.memoise(bench.exits, Path(folder)),
        }
        return {"exits": len(bench.exits), **in_turns(ways, case)}


def measure_separate(case: Row) -> Row:
    """Seconds an image of every round, and the ratio of multiply-adds."""
    bench = Bench.of(case)
    apart = sum(row.path_macs for row in bench.rows)
    together = bench.rows[-1].backbone_macs + sum(row.exit_macs for row in bench.rows)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], None]] = {
            "at_once": lambda: bench.memoise(bench.exits, Path(folder)),
            "one_by_one": lambda: one_by_one(bench, Path(folder)),
        }
        figures = in_turns(ways, case)
    return {"exits": len(bench.exits), "promised": apart / together, **figures}


def one_by_one(bench: Bench, folder: Path) -> None:
    """Every exit's network by itself: the blocks up to its point, the exit, its statistics."""
    for row in bench.rows:
        network = alone(bench.network, row)
        single = Bench(bench.config, network, [row], bench.batch)
        single.memoise([FINAL], folder)


def alone(network: OverprovisionedNetwork, row: Candidate) -> OverprovisionedNetwork:
    """The network that ends with an exit."""
    backbone = type(network.backbone)(
        dict(
            zip(
                network.backbone.names[: network.points[row.point - 1] + 1],
                network.backbone.blocks,
                strict=False,
            )
        ),
        network.exit_module(row.exit_id),
    )
    return OverprovisionedNetwork(backbone, network.points[: row.point], {}).eval()


def in_turns(ways: dict[str, Callable[[], None]], case: Row) -> dict[str, list[float]]:
    """Seconds an image of every round of each way; one round before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(case["rounds"] + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append((time.perf_counter() - start) / case["batch"])
    return {name: values[1:] for name, values in seconds.items()}


def measure_storage(case: Row) -> Row:
    """A cache of made-up counts, written and read."""
    size = CacheSize(images=case["images"], architectures=case["architectures"], signals=8)
    tables, _ = random_cache(size, 0)
    with tempfile.TemporaryDirectory() as folder:
        store = PredictionStore(Path(folder) / "calibration")
        write = write_made_up(store, tables)
        ways: dict[str, Callable[[], object]] = {
            "read": lambda: store.read({}),
            "verify": lambda: verify(store),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(case["rounds"]):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
        size_bytes = sum(file.stat().st_size for file in store.directory.rglob("*.*"))
    return {
        "exits": tables.exits,
        "bytes": size_bytes,
        "write": write,
        **seconds,
        "label_map": float(np.mean(label_map_bytes())),
    }


def write_made_up(store: PredictionStore, tables: Tables) -> float:
    """Seconds that the parts take; counts are those of VOC's images, and so are the signals."""
    # The model's counts are those of smaller images; what is scaled gets low digits of its own.
    rng = np.random.default_rng(0)
    factor = PIXELS_VOC / tables.label.sum(axis=1).mean()
    hits = scaled(rng, tables.intersection, factor)
    wrong = scaled(rng, tables.predicted - tables.intersection, factor)
    signals = (np.rint(tables.signals * POSITIONS_VOC) / POSITIONS_VOC).astype(np.float32)
    identity = made_up_identity(tables)
    ids = list(identity.images)
    writer = CacheWriter(store, identity)
    (gap,) = writer.begin(
        lambda indices: [
            {"image_id": ids[i], "height": 520, "width": 520, "label": label.tolist()}
            for i, label in zip(indices, hits[-1] + wrong[-1], strict=True)
        ]
    )
    start = time.perf_counter()
    for first in range(0, len(ids), 32):
        some = slice(first, first + 32)
        nothing = np.full((len(ids[some]), tables.exits), None, dtype=object)
        rows = PartRows(
            images=tuple(ids[some]),
            exits=tables.exit_ids,
            signal_names=tables.signal_names,
            intersection=hits[:, some].swapaxes(0, 1),
            predicted=(hits + wrong)[:, some].swapaxes(0, 1),
            agreement=hits[:, some].sum(axis=2).T.astype(np.int32),
            lost=(hits[-1:, some] - hits[:, some]).clip(min=0).sum(axis=2).T.astype(np.int32),
            signals=signals[:, some].swapaxes(0, 1),
            label_map=nothing,
            confidence_map=nothing,
        )
        writer.write(gap, rows)
    seconds = time.perf_counter() - start
    writer.finish(dict.fromkeys(tables.exit_ids, (65, 65)))
    return seconds


def made_up_identity(tables: Tables) -> Identity:
    """Of as many exits and images as the tables have, named as VOC's are."""
    return Identity(
        classes=tuple(f"class {c}" for c in range(CLASSES)),
        exits=dict.fromkeys(tables.exit_ids, "0" * 64),
        images={f"2007_{i:06d}": f"{i:064x}" for i in range(tables.images)},
        signals=tuple({"name": name} for name in tables.signal_names),
        weights="0" * 64,
        pipeline="0" * 64,
        data="0" * 64,
        source={"kind": "voc", "split": "calibration", "root": None},
        label_maps=False,
        confidence_maps=(),
    )


def scaled(rng: np.random.Generator, counts: np.ndarray, factor: float) -> np.ndarray:
    """Counts times `factor`; those that are 0 stay."""
    return np.where(counts, counts * factor + rng.integers(0, 8, counts.shape), 0).astype(np.int32)


def label_map_bytes() -> list[int]:
    """Of drawn masks at 65×65, easy and hard ones."""
    config = parse_config({"data": {"size": [520, 520], "shapes": [1, 200, 1]}})
    data = open_split(config.data, "calibration", config.seed)
    return [len(compress(resize_mask(data.read(i)[1], (65, 65)))) for i in range(len(data))]


if __name__ == "__main__":
    main()
