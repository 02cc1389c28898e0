"""Compile the loops that most tests need, once: python -m tests.compiled.

Numba keeps them beside the code. Workers that start without would each compile the same.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mess.data.shapes import CLASSES
from mess.prediction.compiled import CompiledStatistics
from mess.search.answers.answer import search
from mess.search.problem.costs import Cost
from mess.search.problem.request import SETTINGS, Request
from mess.search.problem.tables import Tables
from mess.signals.builtin import ConfidentShare
from mess.signals.variation import variations
from tests.search.conftest import cost, tables
from tests.search.test_policies import one_signal, with_pairs
from tests.seeds import seeded


def main() -> None:
    begun = time.perf_counter()
    search_each_way()
    count_a_batch()
    compare_label_maps()
    print(f"Loops compiled, or found compiled, in {time.perf_counter() - begun:.0f} s.")


def search_each_way() -> None:
    rng = np.random.default_rng(seeded(28))
    made = tables(rng, points=3, per_point=3, images=12, classes=4, signals=2, twins=False)
    costs: dict[str, Cost] = {
        metric: cost(rng, made, unit, metric == "latency", twins=False)
        for metric, unit in (("macs", 1000), ("latency", 1 / 64), ("params", 10))
    }
    for setting in SETTINGS:
        for target in ("latency", "accuracy"):
            for stat in ("mean", "p90"):
                request = Request(
                    setting=setting, target=target, latency_stat=stat, thresholds=4, max_error=0.9
                )
                search(made, costs, request)
    pairs: Tables = with_pairs(rng, made)
    shared = Request(setting="input-dependent", target="macs", max_error=0.9, shared_threshold=True)
    for request in (shared, Request(setting="input-dependent", target="macs", max_error=0.9)):
        search(made, costs, request)
        search(pairs, {name: one_signal(each) for name, each in costs.items()}, request)


def count_a_batch() -> None:
    classes = CLASSES.num_classes
    logits = torch.randn(2, classes, 6, 8)
    labels = torch.randint(0, classes, (2, 48, 64))
    signals = [ConfidentShare("top1", 0.5, edges) for edges in (False, True)]
    with ThreadPoolExecutor(1) as pool:
        for layout in (torch.contiguous_format, torch.channels_last):
            laid_out = logits.contiguous(memory_format=layout)
            statistics = CompiledStatistics(labels, laid_out, signals, pool, 1)
            statistics.add("final", laid_out, confidence_map=False)
            statistics.collect()


def compare_label_maps() -> None:
    maps = [np.zeros((2, *shape), np.uint8) for shape in ((6, 8), (12, 16))]
    for _ in variations(maps, np.array([[0, 1]]), 2, threads=1):
        pass


if __name__ == "__main__":
    main()
