"""The exact search of one case, measured; as a script, in a process of its own with its memory.

    python benchmarks/search_exact.py CASE

A case is a JSON object with the sizes of the random cache, the request, `seed`, `front` and
`threads`. Prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

from random_caches import Cache, CacheSize, random_cache
from results import Row

from mess.search.answers.answer import search
from mess.search.exact.cover import collect
from mess.search.exact.resolution import EXACT, FINE
from mess.search.exact.workers import Workers
from mess.search.guarantees.certify import certify_cross
from mess.search.guarantees.groups import Groups
from mess.search.problem.costs import MACS, to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request


def main() -> None:
    case = json.loads(sys.argv[1])
    size, request = cache_size(case), request_of(case)
    cached_cache(size, case["seed"])
    warm_up(request, size.signals)
    before = memory_mb("VmRSS")
    figures = measure(case)
    print(json.dumps(figures | {"resident_mb": before, "peak_mb": memory_mb("VmHWM")}))


def measure_apart(case: Row) -> Row:
    """`measure` in a fresh process, with the memory resident before and the most until the end."""
    command = [sys.executable, __file__, json.dumps(case)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(case: Row) -> Row:
    """Seconds, counts, and what the answer is like; everything was compiled before.

    `total` is the answer's cost in steps over all images, `saved` how many times less than the
    baseline's, `rates` the share of images of each of its exits.
    """
    size, request = cache_size(case), request_of(case)
    tables, costs = cached_cache(size, case["seed"])
    warm_up(request, size.signals)
    start = time.perf_counter()
    answer = search(tables, costs, request, threads=case["threads"], front=case["front"])
    seconds = time.perf_counter() - start
    total = answer.evaluation.totals[request.target]
    return {
        "seconds": seconds,
        "configurations": answer.configurations,
        "evaluated": answer.evaluated,
        "total": total,
        "saved": answer.goal.baseline.totals[request.target] / total,
        "rates": answer.evaluation.exit_rates,
    }


def measure_promise(case: Row) -> Row:
    """Seconds of what a promise on new images takes beside the answer.

    `certificate` is cross-fitted from all images; `front` is the whole space's, exactly or to the
    resolution that certificates are found with, and `points` what it has.
    """
    size, request = cache_size(case), request_of(case)
    tables, costs = cached_cache(size, case["seed"])
    warm_up(request, size.signals)
    goal, workers = Goal.of(tables, to_ticks(tables, costs), request), Workers(case["threads"])
    start = time.perf_counter()
    if case["promise"] == "certificate":
        groups = Groups.alone(size.images)
        certificate = certify_cross(goal, groups, 0.95, case["seed"], workers)
        found = {"certified": certificate.margin is not None}
    else:
        resolution = EXACT if case["promise"] == "exact front" else FINE
        found = {"points": len(collect(goal, resolution, workers))}
    return {"seconds": time.perf_counter() - start, **found}


def cache_size(case: Row) -> CacheSize:
    """Sizes of the random cache of a case."""
    return CacheSize(
        images=case["images"],
        classes=case.get("classes", 21),
        architectures=case["architectures"],
        signals=case["signals"],
    )


def request_of(case: Row) -> Request:
    """What a case asks for."""
    return Request(
        target=MACS,
        max_error=case["error"],
        max_exits=case["max_exits"],
        thresholds=case["thresholds"],
    )


@lru_cache(maxsize=1)
def cached_cache(size: CacheSize, seed: int) -> Cache:
    """The last cache that was asked for is kept."""
    return random_cache(size, seed)


def warm_up(request: Request, signals: int) -> None:
    """Have everything compiled that a search for `request` needs."""
    tables, costs = random_cache(CacheSize(images=40, architectures=2, signals=signals), seed=0)
    for front in (False, True):
        search(tables, costs, request, threads=1, front=front)


def memory_mb(field: str) -> float:
    """Memory of this process: VmRSS is what is resident now, VmHWM the most that ever was."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
