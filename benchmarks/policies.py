"""What exit policies cost, and what their choices of definition change.

    python benchmarks/policies.py [--parts cost table] [--rounds 30] [--output FILE]
    python benchmarks/policies.py --parts definitions --run RUN [--output FILE]

cost: every signal in onnxruntime on one thread, 21 classes at 65×65 (520×520 at stride 8), as a
share of MobileNetV2's forward in the same rounds.
table: Table II of the 2025 paper (256×256; 5, 10, 25, 100 classes) measured again: scikit-image's
variation of information and NumPy's normalised entropy beside ours, at the same resolution and at
native resolution (32×32). "Memoised" is a pair of exits of eight, all compared with all before,
as a search has them.
definitions: on the calibration images of a run, how far the threshold identity is from Canny edges
and a median taken literally, and native from full resolution.

Variants take turns; medians count. Results accumulate in FILE.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from results import Results, Row, machine_facts
from scipy import ndimage
from scipy.stats import rankdata
from skimage.feature import canny
from skimage.metrics import variation_of_information
from torch import Tensor, nn

from mess.config import parse_config
from mess.data import open_split
from mess.data.loader import evaluation_loader
from mess.exits import FINAL
from mess.export.programs import write_program
from mess.export.segments import Segment
from mess.networks.candidates import candidates
from mess.networks.network import build_network
from mess.profiling.timing import interleaved
from mess.runs.network import trained_network
from mess.runs.run import Run
from mess.runtime.onnx_program import OnnxProgram
from mess.signals.builtin import (
    ConfidentShare,
    MeanConfidence,
    NormalisedEntropy,
    VariationOfInformation,
)
from mess.signals.maps import PixelMaps, joint_histogram, variation
from mess.signals.measure import SignalModule, maps_at
from mess.signals.signal import FULL, Signal
from mess.signals.variation import variations

SIZE, STRIDE, CLASSES = 520, 8, 21

PAPER_SIZE, PAPER_CLASSES = 256, (5, 10, 25, 100)

PAPER_MS = {5: (5.62, 5.89), 10: (11.3, 6.71), 25: (32.6, 6.99), 100: (122.0, 8.73)}
"""NE and VI of the 2025 paper's Table II."""

SIGNALS: list[Signal] = [
    *(
        ConfidentShare(confidence, 0.8, edges)
        for confidence in ("top1", "entropy")
        for edges in (False, True)
    ),
    MeanConfidence(),
    NormalisedEntropy(),
    VariationOfInformation(),
]

PARTS = ("cost", "table", "definitions")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=list(PARTS[:2]), choices=PARTS)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", type=int, default=101)
    parser.add_argument("--output", type=Path, default=Path("policies.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine_facts("torch", "onnxruntime", "numpy", "scipy", "scikit-image", "numba")
    results = Results(options.output, facts)
    if "cost" in options.parts:
        results.measure({"part": "cost"}, lambda: measure_cost(options.rounds))
    if "table" in options.parts:
        for classes in PAPER_CLASSES:
            case = {"part": "table", "classes": classes}
            results.measure(case, lambda c=classes: measure_table(c, options.rounds))
    if "definitions" in options.parts:
        if options.run is None:
            parser.error("--parts definitions needs --run")
        case = {"part": "definitions", "images": options.images}
        results.measure(case, lambda: measure_definitions(Run(options.run), options.images))
    print("\n\n".join(tables(results)))


# ---- What a signal costs beside the network


def measure_cost(rounds: int) -> Row:
    """Medians in milliseconds."""
    config = parse_config(
        {
            "data": {"kind": "shapes", "size": [SIZE, SIZE]},
            "backbone": {"name": "mobilenet_v2"},
            "exits": {"crm": [1], "blocks": [0], "rdi": [False], "heads": ["fcn"]},
        }
    )
    network = build_network(config, candidates(config, CLASSES), CLASSES)
    baseline = Segment(network, 0, network.point(FINAL), FINAL)
    side = SIZE // STRIDE
    image = {"features": torch.randn(1, 3, SIZE, SIZE, generator=_generator())}
    parts: dict[str, tuple[nn.Module, Mapping[str, Tensor]]] = {"baseline": (baseline, image)}
    for signal in SIGNALS:
        inputs = {"logits": _logits(CLASSES, side)}
        if signal.compares:
            inputs["previous_labels"] = _labels(CLASSES, side)
        parts[signal.name] = SignalModule(signal, (SIZE, SIZE)), inputs
    medians = _medians({name: _program(*part) for name, part in parts.items()}, rounds)
    return {"milliseconds": medians, "rounds": rounds}


# ---- The 2025 paper's Table II


_EXITS, _IMAGES = 8, 32
"""What is compared in one call, as a search does."""

_PAIRS = np.array([(a, b) for b in range(_EXITS) for a in range(b)])
"""Each exit with every one before it."""


class _LabelVariation(nn.Module):
    """Variation of information of two label maps that are there already."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes = classes

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return variation(joint_histogram(first, second, self._classes))


class _EntropyOfProbabilities(nn.Module):
    """What NumPy computes, as a program: the least that onnxruntime can do for it."""

    def forward(self, probability_BChw: Tensor) -> Tensor:
        terms = (probability_BChw * probability_BChw.log()).sum((1, 2, 3))
        pixels = probability_BChw.shape[2] * probability_BChw.shape[3]
        return -terms / (pixels * math.log(probability_BChw.shape[1]))


def measure_table(classes: int, rounds: int) -> Row:
    """Medians in milliseconds, of maps with regions as networks predict them."""
    native = PAPER_SIZE // STRIDE
    sides = {"full": PAPER_SIZE, "native": native}
    return {
        "entropy_ms": _entropy_medians(classes, sides, rounds),
        "variation_ms": _variation_medians(classes, sides, rounds),
        "rounds": rounds,
    }


def _entropy_medians(classes: int, sides: Mapping[str, int], rounds: int) -> dict[str, float]:
    runs: dict[str, Callable[[], Any]] = {}
    for where, side in sides.items():
        logits = _logits(classes, side)
        signal = SignalModule(NormalisedEntropy(), (side, side))
        runs[f"ours, {where}"] = _program(signal, {"logits": logits})
        probability = logits.softmax(1)
        runs[f"onnxruntime, {where}"] = _program(_EntropyOfProbabilities(), {"p": probability})
        logits_Chw, single = logits[0].numpy(), probability[0].numpy()
        runs[f"numpy from logits, {where}"] = lambda x=logits_Chw: _numpy_entropy(_numpy_softmax(x))
        runs[f"numpy, {where}"] = lambda p=single: _numpy_entropy(p)
        if where == "full":
            double = single.astype(np.float64)
            runs["numpy float64, full"] = lambda p=double: _numpy_entropy(p)
    return _medians(runs, rounds)


def _variation_medians(classes: int, sides: Mapping[str, int], rounds: int) -> dict[str, float]:
    runs: dict[str, Callable[[], Any]] = {}
    for where, side in sides.items():
        first, second = _labels(classes, side), _labels(classes, side, seed=1)
        a, b = first[0].numpy(), second[0].numpy()
        runs[f"scikit-image, {where}"] = lambda a=a, b=b: variation_of_information(a, b)
        runs[f"exported, {where}"] = _program(
            _LabelVariation(classes), {"first": first, "second": second}
        )
        images = [
            torch.cat([_labels(classes, side, seed=_EXITS * i + e) for i in range(_IMAGES)]).numpy()
            for e in range(_EXITS)
        ]
        runs[f"memoised, {where}"] = lambda maps=images: list(
            variations(maps, _PAIRS, classes, threads=1)
        )
    medians = _medians(runs, rounds)
    for where in sides:
        medians[f"memoised, {where}"] /= len(_PAIRS) * _IMAGES
        # Called again and again, its code and data stay in the processor's caches.
        name = f"exported, {where}"
        medians[f"{name}, warm"] = _medians({name: runs[name]}, 10 * rounds)[name]
    return medians


def _numpy_softmax(logits_Chw: NDArray[np.floating]) -> NDArray[np.floating]:
    odds = np.exp(logits_Chw - logits_Chw.max(axis=0))
    return odds / odds.sum(axis=0)


def _numpy_entropy(probability_Chw: NDArray[np.floating]) -> float:
    """Eq. 1 of the paper, averaged over the pixels."""
    terms = probability_Chw * np.log(probability_Chw)
    return float(np.mean(-terms.sum(axis=0)) / np.log(len(probability_Chw)))


# ---- What the definitions change


def measure_definitions(run: Run, images: int) -> Row:
    """Signals by one definition against the other, over the images of every early exit."""
    config = run.config
    network = trained_network(run, torch.device("cpu")).eval()
    data = open_split(config.data, "calibration", config.seed)
    chosen = np.unique(np.linspace(0, len(data) - 1, images).round().astype(int)).tolist()
    loader = evaluation_loader(data.select(chosen, data.where), config.data, batch_size=8)
    exits = [
        e for e in network.exits if "crm1-b0-fcn" in e and network.point(e) < network.point(FINAL)
    ]
    size = config.data.size
    found: dict[str, list[NDArray[np.float64]]] = {}
    with torch.inference_mode():
        for batch, _, _ in loader:
            features = network.features(batch)
            for exit_id in exits:
                logits = network.logits(exit_id, features)
                for name, values in _definitions(logits, size):
                    found.setdefault(f"{exit_id} {name}", []).append(values)
    signals = {name: np.concatenate(values) for name, values in found.items()}
    rows = {}
    names = dict.fromkeys(name.partition(" ")[2] for name in signals)
    for reference, others in _COMPARED.items():
        for other in others:
            assert {reference, other} <= names.keys()
            rows[f"{other} against {reference}"] = _agreement(signals, exits, reference, other)
    return {"exits": exits, "compared": rows}


_COMPARED = {
    "literal": ("identity, full",),
    "identity, full": ("identity, native",),
    "plain, full": ("plain, native",),
    "ne, full": ("ne, native",),
    "mean, full": ("mean, native",),
    "band, literal": ("band, full",),
}

_THRESHOLD = 0.8


def _definitions(
    logits_BChw: Tensor, size: tuple[int, int]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    native, full = PixelMaps(logits_BChw), maps_at(FULL, logits_BChw, size)
    for where, maps in (("native", native), ("full", full)):
        yield f"identity, {where}", _of(ConfidentShare("top1", _THRESHOLD, True), maps)
        yield f"plain, {where}", _of(ConfidentShare("top1", _THRESHOLD, False), maps)
        yield f"ne, {where}", _of(NormalisedEntropy(), maps)
        yield f"mean, {where}", _of(MeanConfidence(), maps)
    yield "band, full", full.edges_Bhw.mean((1, 2)).double().numpy()
    bands, literal = [], []
    for label, top1 in zip(full.labels_Bhw.numpy(), full.confidence("top1").numpy(), strict=True):
        # Eqs. 8-9 word for word, with Canny's usual smoothing; erosion of what is no edge.
        edges = np.asarray(canny(label.astype(float), sigma=1.0), dtype=np.bool_)
        window = np.ones((full.stride, full.stride))
        others = ndimage.binary_erosion(~edges, window, border_value=1)
        band = ~np.asarray(others, dtype=np.bool_)
        median = ndimage.median_filter(top1, size=4 * full.stride + 1, mode="nearest")
        literal.append((np.where(band, median, top1) >= np.float32(_THRESHOLD)).mean())
        bands.append(band.mean())
    yield "literal", np.array(literal)
    yield "band, literal", np.array(bands)


def _of(signal: Signal, maps: PixelMaps) -> NDArray[np.float64]:
    return signal.of(maps).double().numpy()


def _agreement(
    signals: Mapping[str, NDArray[np.float64]], exits: Sequence[str], reference: str, other: str
) -> Row:
    differences, ranks = [], []
    for exit_id in exits:
        a, b = signals[f"{exit_id} {reference}"], signals[f"{exit_id} {other}"]
        differences.append(b - a)
        ranks.append(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
    all_of = np.concatenate(differences)
    return {
        "mean_difference": float(all_of.mean()),
        "mean_absolute": float(np.abs(all_of).mean()),
        "largest": float(np.abs(all_of).max()),
        "least_rank_correlation": float(min(ranks)),
    }


# ---- Tables


def tables(results: Results) -> Iterator[str]:
    for row in results.of("cost"):
        medians = row["milliseconds"]
        baseline = medians["baseline"]
        lines = [
            f"MobileNetV2 at {SIZE}×{SIZE}, one thread: {baseline:.1f} ms\n",
            "| signal | µs | of the forward |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {name} | {1000 * ms:.0f} | {100 * ms / baseline:.2f}% |"
            for name, ms in medians.items()
            if name != "baseline"
        ]
        yield "\n".join(lines)
    if rows := results.of("table"):
        yield from _paper_table(rows)
    for row in results.of("definitions"):
        lines = [
            "| | mean difference | mean absolute | largest | rank correlation, at least |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {name} | {d['mean_difference']:+.4f} | {d['mean_absolute']:.4f} | "
            f"{d['largest']:.4f} | {d['least_rank_correlation']:.3f} |"
            for name, d in row["compared"].items()
        ]
        yield "\n".join(lines)


def _paper_table(rows: Sequence[Row]) -> Iterator[str]:
    entropy = {
        "NumPy, float64": "numpy float64, full",
        "NumPy": "numpy, full",
        "onnxruntime": "onnxruntime, full",
        "NumPy from logits": "numpy from logits, full",
        "ours from logits": "ours, full",
        "NumPy, native": "numpy, native",
        "NumPy from logits, native": "numpy from logits, native",
        "ours, native": "ours, native",
    }
    lines = ["| classes | paper | " + " | ".join(entropy) + " |"]
    lines.append("| --- |" + " --- |" * (1 + len(entropy)))
    for row in rows:
        paper, _ = PAPER_MS[row["classes"]]
        cells = [f"{row['entropy_ms'][name]:.3f}" for name in entropy.values()]
        lines.append(f"| {row['classes']} | {paper:.1f} | {' | '.join(cells)} |")
    yield "Normalised entropy, milliseconds, 256×256\n\n" + "\n".join(lines)

    lines = [
        "| classes | paper | scikit-image | memoised | faster | native | faster | "
        "exported | faster | native | faster |",
        "| --- |" + " --- |" * 10,
    ]
    for row in rows:
        _, paper = PAPER_MS[row["classes"]]
        ms = row["variation_ms"]
        reference = ms["scikit-image, full"]
        cells = [f"{row['classes']}", f"{paper:.2f}", f"{reference:.2f}"]
        for name in ("memoised, full", "memoised, native", "exported, full", "exported, native"):
            cells += [f"{ms[name]:.4f}", f"{reference / ms[name]:.0f}×"]
        lines.append(f"| {' | '.join(cells)} |")
    yield "Variation of information, milliseconds, 256×256\n\n" + "\n".join(lines)


# ---- Inputs and programs


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _logits(classes: int, side: int, seed: int = 0) -> Tensor:
    """Smooth fields, so that classes form regions, (1, C, side, side)."""
    coarse = torch.randn(1, classes, 9, 9, generator=_generator(seed)) * 4
    return nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")


def _labels(classes: int, side: int, seed: int = 2) -> Tensor:
    return _logits(classes, side, seed).argmax(1).to(torch.uint8)


def _program(module: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.onnx"
        write_program(module, inputs, ["output"], path, "onnx")
        program = OnnxProgram(path.read_bytes(), 1)
    values = [program.to_value(value.numpy()) for value in inputs.values()]
    return lambda: program(*values)


def _medians(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    begun = time.monotonic()
    seconds = interleaved(list(runs.values()), rounds, lambda: None)
    print(f"  {time.monotonic() - begun:.0f} s")
    medians = 1000 * np.median(seconds, axis=0)
    return dict(zip(runs, medians.tolist(), strict=True))


if __name__ == "__main__":
    main()
