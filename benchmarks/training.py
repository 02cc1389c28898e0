"""What training all exits together gains, and how near a step comes to what the machine can do.

    python benchmarks/training.py [--parts together precision memory stacking processes
        statistics]
        [--threads N] [--output FILE]

MobileNetV2 at 240×180, batches of 8, random weights: times do not depend on them. Variants take
turns. Parts:
together: a stage 2 step of all exits against a step of each exit alone, by number of exits.
precision: multiply-adds a second of a stage 2 step against one large convolution's, the machine's
    best, in float32 and bfloat16.
memory: the peak of a step beyond parameters and momentum, of all exits, in groups, and of the
    largest exit alone; a process each. Once of tensors, and once of the process, which also keeps
    a compiled kernel for each shape of convolution it met.
stacking: convolutions of several exits on the same features as one with all their channels, and
    as one in groups where each has features of its own, against one by one.
processes: stage 2 in one process and in two, one thread each: time, and the largest difference
    between weights. Run by torchrun.
statistics: stage 1 over two processes with batch statistics of the whole batch and of each
    process's part: time and mIoU, three seeds, on the built-in shapes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import Results, Row, machine_facts
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mess.compute.memory import keep_memory
from mess.config import Config, load_config
from mess.exits import FINAL
from mess.networks.candidates import Candidate, candidates
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.training.stage import Stage
from mess.training.stages import ExitTraining

CLASSES, BATCH, CROP = 11, 8, (162, 216)
CPU = torch.device("cpu")

SPACES = {
    "light": ["exits.crm=[1, 2]", "exits.blocks=[0, 2]"],
    "medium": ["exits.crm=[1, 2, 4]", "exits.blocks=[0, 1, 2]"],
    "whole": ["exits.crm=[1, 2, 4, 8]", "exits.blocks=[0, 1, 2, 3]"],
}
"""Spaces of exits over the shipped configuration for CamVid, by name."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = {
        "together": together,
        "precision": reached,
        "memory": memory,
        "stacking": stacking,
        "processes": processes,
        "statistics": batch_statistics,
    }
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("training.json"))
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    if options.measure_memory:
        print(json.dumps(memory_of(**json.loads(options.measure_memory))))
        return
    results = Results(options.output, machine_facts("torch", "torchvision", "numpy"))
    for part in options.parts:
        rows = parts[part](results, options.threads)
        print(f"\n{part}\n\n{table(rows)}", flush=True)


# ---- Together against alone


def together(results: Results, threads: int) -> list[Row]:
    return of_spaces(results, "together", ("light", "medium"), threads, _together)


def of_spaces(
    results: Results,
    part: str,
    spaces: Sequence[str],
    threads: int,
    measurement: Callable[[str], Row],
) -> list[Row]:
    return [
        results.measure(
            {"part": part, "space": space, "threads": threads}, partial(measurement, space)
        )
        for space in spaces
    ]


def _together(space: str) -> Row:
    config, _, network = build(space)
    whole = stage_of(network, config)
    alone = [stage_of(network, config, exits=[exit_id]) for exit_id in network.exits]
    times: dict[str, list[float]] = {"whole": [], "alone": []}
    timed(whole)
    for stage in alone:
        timed(stage)
    for _ in range(3):
        times["whole"].append(timed(whole))
        times["alone"].append(sum(timed(stage) for stage in alone))
    whole_s, alone_s = (statistics.median(values) for values in times.values())
    return {
        "exits": len(network.exits),
        "together_s": round(whole_s, 3),
        "alone_s": round(alone_s, 3),
        "ratio": round(alone_s / whole_s, 2),
    }


# ---- The machine's limit


def reached(results: Results, threads: int) -> list[Row]:
    return [
        results.measure(
            {"part": "precision", "space": space, "precision": precision, "threads": threads},
            partial(_reached, space, precision),
        )
        # Without instructions for bfloat16 steps of the large space would take minutes.
        for space, precision in (("light", "float32"), ("light", "bfloat16"), ("whole", "float32"))
    ]


def _reached(space: str, precision: str) -> Row:
    config, _, network = build(space, f"training.stage2.precision={precision}")
    stage, limit = stage_of(network, config), Convolution(getattr(torch, precision))
    times = in_turns({"step": lambda: timed(stage), "limit": limit.seconds}, rounds=3)
    macs = step_macs(build(space)[2])
    rate, most = macs / times["step"] / 1e9, Convolution.MACS / times["limit"] / 1e9
    return {
        "exits": len(network.exits),
        "step_gmacs": round(macs / 1e9, 1),
        "seconds": round(times["step"], 2),
        "gmacs_a_s": round(rate, 1),
        "limit": round(most, 1),
        "share": round(rate / most, 3),
    }


class Convolution:
    """Forward and backward of one large 3×3 convolution, channels last."""

    CHANNELS, SIZE = 256, (64, 64)
    MACS = 3 * BATCH * SIZE[0] * SIZE[1] * CHANNELS * CHANNELS * 9

    def __init__(self, dtype: torch.dtype) -> None:
        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype).to(memory_format=torch.channels_last)

        channels = self.CHANNELS
        self._input = make(BATCH, channels, *self.SIZE).requires_grad_()
        self._weight = make(channels, channels, 3, 3).requires_grad_()
        self._gradient = make(BATCH, channels, *self.SIZE)

    def seconds(self) -> float:
        begun = time.perf_counter()
        output = F.conv2d(self._input, self._weight, padding=1)
        torch.autograd.grad(output, [self._input, self._weight], self._gradient)
        return time.perf_counter() - begun


def step_macs(network: OverprovisionedNetwork) -> float:
    """Multiply-adds of a step: backbone and final head forward, exits forward and backward.

    Counted as they are computed: without taps that only meet padding, and without gradients for
    features, which a frozen backbone has no use for.
    """
    meta = network.to("meta").eval()
    image = torch.empty(BATCH, 3, *CROP, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as once:
        features = meta.features(image)
        meta.logits(FINAL, features)
    meta.exits.train()
    with FlopCounterMode(display=False) as exits:
        for exit_id in meta.exits:
            meta.logits(exit_id, features).sum().backward()
    return (once.get_total_flops() + exits.get_total_flops()) / 2


# ---- Memory


def memory(results: Results, threads: int) -> list[Row]:
    variants: list[Row] = [
        {"space": space, "exits": exits} for space in SPACES for exits in ("all", "largest")
    ]
    variants += [{"space": "whole", "exits": "group of 4"}]
    measured = [
        results.measure(
            {"part": "memory", **variant, "threads": threads},
            lambda variant=variant: _in_own_process(variant, threads),
        )
        for variant in variants
    ]
    for row in measured:
        (largest,) = (
            other
            for other in measured
            if other["space"] == row["space"] and other["exits"] == "largest"
        )
        for name in ("tensors", "process"):
            row[f"{name}_ratio"] = round(row[f"{name}_mb"] / largest[f"{name}_mb"], 2)
    return measured


def _in_own_process(variant: Row, threads: int) -> Row:
    command = [
        sys.executable, __file__, "--threads", str(threads), "--measure-memory", json.dumps(variant)
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(space: str, exits: str) -> Row:
    """Peak of the process beyond what it held before the steps and the momentum."""
    config, rows, network = build(space)
    costs = {row.exit_id: row.exit_macs for row in rows if row.exit_id in network.exits}
    params = {row.exit_id: row.params for row in rows if row.exit_id in network.exits}
    chosen = list(network.exits)
    if exits == "largest":
        chosen = [max(costs, key=lambda exit_id: costs[exit_id])]
    elif exits == "group of 4":
        from mess.compute.processes import divided

        chosen = divided(params, 4)[0]
    stage = ExitTraining(network, config, CLASSES, CPU, loss="pfd", exits=chosen)
    # The libraries' own memory comes with the first work, whatever it is.
    Convolution(torch.float32).seconds()
    # What was freed since would count as if it were still in use.
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident()
    stage.begin()
    for _ in range(3):
        timed(stage)
    momentum = 4 * sum(params[exit_id] for exit_id in chosen)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "trained": len(chosen),
        "parameters_mb": round(4 * sum(params.values()) / 1e6, 1),
        "momentum_mb": round(momentum / 1e6, 1),
        "tensors_mb": round(_tensor_peak(stage) / 1e6, 1),
        "process_mb": round((peak - before - momentum) / 1e6, 1),
    }


def _tensor_peak(stage: Stage) -> int:
    """Bytes of tensors that a step holds at most beyond those before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        timed(stage)
    recorded: Any = profile.profiler
    changes = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


# ---- Stacking


def stacking(results: Results, threads: int) -> list[Row]:
    return [
        results.measure(
            {"part": "stacking", "exits": exits, "channels": channels, "threads": threads},
            lambda exits=exits, channels=channels: _stacked(exits, channels),
        )
        for exits, channels in ((4, 96), (4, 48), (4, 24), (8, 12))
    ]


def _stacked(exits: int, channels: int) -> Row:
    """Forward and backward of a 3×3 convolution of each exit on the feature maps of a batch."""
    shape = (BATCH, channels, CROP[0] // 8 + 1, CROP[1] // 8)
    shared, own = _Features(shape), _Features((BATCH, exits * channels, *shape[2:]))
    kernel = (channels, channels, 3, 3)
    each = [torch.randn(kernel).requires_grad_() for _ in range(exits)]
    together = torch.randn(exits * channels, *kernel[1:]).requires_grad_()
    times = in_turns(
        {
            "alone": lambda: sum(shared.seconds(weight, 1) for weight in each),
            "stacked": lambda: shared.seconds(together, 1),
            "grouped": lambda: own.seconds(together, exits),
        },
        rounds=15,
    )
    return {
        **{f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in times.items()},
        "stacked_ratio": round(times["alone"] / times["stacked"], 2),
        "grouped_ratio": round(times["alone"] / times["grouped"], 2),
    }


class _Features:
    """Feature maps, channels last, that convolutions are run on."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._maps = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()

    def seconds(self, weight: Tensor, groups: int) -> float:
        begun = time.perf_counter()
        output = F.conv2d(self._maps, weight, padding=1, groups=groups)
        torch.autograd.grad(output, [self._maps, weight], torch.ones_like(output))
        return time.perf_counter() - begun


# ---- Processes


def processes(results: Results, threads: int) -> list[Row]:
    del threads  # one each
    return [
        results.measure({"part": "processes", "space": space}, lambda space=space: _divided(space))
        for space in ("light", "medium")
    ]


def _divided(space: str) -> Row:
    """Stage 2 of a run on shapes, by one process and by two, twice in turns.

    Of so few images all are drawn in the first step, which is not timed.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    weights = {}
    settings = [
        *SPACES[space], "data.kind=shapes", "data.shapes=[8, 4, 4]", "data.holdout=0",
        "data.workers=0", "training.stage1.iterations=0", "training.stage2.iterations=10",
    ]  # fmt: skip
    for _ in range(2):
        for count in times:
            with tempfile.TemporaryDirectory() as folder:
                times[count].append(_torchrun(Path(folder) / "run", "camvid", settings, count))
                weights[count] = load_file(Path(folder) / "run" / "network.safetensors")
    one, two = (min(values) for values in times.values())
    difference = max(
        float((weights[1][name].double() - weights[2][name].double()).abs().max())
        for name in weights[1]
    )
    exits = {name.split(".")[1] for name in weights[1] if name.startswith("exits.")}
    return {
        "exits": len(exits),
        "one_s": round(one, 2),
        "two_s": round(two, 2),
        "ratio": round(two / one, 3),
        "largest_difference": difference,
    }


def batch_statistics(results: Results, threads: int) -> list[Row]:
    del threads
    rows = []
    for count, kind in ((1, "global"), (2, "global"), (2, "process")):
        for seed in range(3):
            case = {"part": "statistics", "processes": count, "of": kind, "seed": seed}
            rows.append(
                results.measure(case, lambda c=count, k=kind, s=seed: _pretraining(c, k, s))
            )
    return rows


def _pretraining(count: int, kind: str, seed: int) -> Row:
    settings = [
        "training.stage1.iterations=150", "training.stage2.iterations=1", "data.workers=0",
        f"training.batch_norm={kind}", f"seed={seed}", "data.holdout=0.2",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        seconds = _torchrun(run, "shapes", settings, count, stage="stage1")
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        (miou,) = (row[FINAL] for row in rows if row["stage"] == "stage1-holdout")
    return {"seconds": round(seconds, 2), "miou": round(miou, 4)}


def _torchrun(
    run: Path, config: str, settings: Sequence[str], count: int, stage: str = "stage2"
) -> float:
    """Train a run with so many processes of one thread each; the seconds of a stage's steps."""
    seconds = run.parent / "seconds"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(count), str(Path(__file__).with_name("training_process.py")), str(run), config, stage,
        str(seconds), *settings,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return float(seconds.read_text(encoding="utf-8"))


# ---- Shared


def build(space: str, *settings: str) -> tuple[Config, list[Candidate], OverprovisionedNetwork]:
    """The configuration for CamVid with another space, its candidates, and the network."""
    config = load_config("camvid", ["data.root=.", *SPACES[space], *settings])
    rows = candidates(config, CLASSES)
    return config, rows, build_network(config, rows, CLASSES)


def stage_of(
    network: OverprovisionedNetwork, config: Config, exits: Sequence[str] | None = None
) -> ExitTraining:
    stage = ExitTraining(network, config, CLASSES, CPU, loss="pfd", exits=exits)
    stage.begin()
    return stage


def timed(stage: Stage) -> float:
    """The seconds of one step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, *CROP, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (BATCH, *CROP), generator=generator)
    begun = time.perf_counter()
    stage.step(stage.see(images, labels), 0)
    return time.perf_counter() - begun


def in_turns(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            seconds = step()
            if number:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if name != "part"]
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(row[name]) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
