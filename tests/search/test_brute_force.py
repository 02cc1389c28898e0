"""The searches against their definition: plain loops over every configuration, in fractions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest

from mess.errors import InfeasibleError
from mess.search.answers.answer import Answer, search
from mess.search.problem.costs import Cost
from mess.search.problem.request import Request
from mess.search.problem.settings import SETTINGS
from mess.search.problem.tables import Tables
from tests.search.spaces import space_of
from tests.seeds import seeded

CACHES = 500
STEPS = 10**12
Selected = tuple[tuple[int, int, float], ...]


class Candidate(NamedTuple):
    """A configuration with (exit, signal, threshold) for each exit; the last has (exit, -1, 0)."""

    selected: Selected
    miou: Fraction
    cost: dict[str, Fraction]
    delivered: tuple[tuple[dict[str, Fraction], Fraction], ...] = ()


def miou_of(tables: Tables, exit_of_image: list[int]) -> Fraction:
    ious = []
    for c in range(tables.label.shape[1]):
        hits = sum(int(tables.intersection[e, i, c]) for i, e in enumerate(exit_of_image))
        predicted = sum(int(tables.predicted[e, i, c]) for i, e in enumerate(exit_of_image))
        union = predicted + sum(int(row[c]) for row in tables.label) - hits
        if union:
            ious.append(Fraction(hits, union))
    return sum(ious, Fraction(0)) / len(ious)


def run(tables: Tables, costs: Mapping[str, Cost], selected: Selected, stat: str) -> Candidate:
    answering = []
    for i in range(tables.images):
        depth = 0
        while depth < len(selected) - 1:
            e, s, t = selected[depth]
            if float(tables.signals[e, i, s]) >= t:
                break
            depth += 1
        answering.append(depth)
    cost = {}
    for metric, parts in costs.items():
        paths = []
        for depth, (e, _, _) in enumerate(selected):
            path = Fraction(float(parts.backbone[tables.point[e]])) + Fraction(
                float(parts.answer[e])
            )
            for m in range(depth + 1):
                path += Fraction(float(parts.exit[selected[m][0]]))
                if m < depth:
                    path += Fraction(float(parts.resume[selected[m][0]]))
                if m < len(selected) - 1:
                    path += Fraction(float(parts.signal[selected[m][0], selected[m][1]]))
            paths.append(path)
        if metric == "params":
            cost[metric] = paths[-1]
        elif metric == "latency" and stat == "p90":
            depth = 0
            while sum(a <= depth for a in answering) * 10 < tables.images * 9:
                depth += 1
            cost[metric] = paths[depth]
        else:
            cost[metric] = sum((paths[a] for a in answering), Fraction(0)) / tables.images
    return Candidate(selected, miou_of(tables, [selected[a][0] for a in answering]), cost)


def run_anytime(tables: Tables, costs: Mapping[str, Cost], selected: Selected) -> Candidate:
    delivered, delay = [], dict.fromkeys(costs, Fraction(0))
    for e, _, _ in selected:
        at = {}
        for metric, parts in costs.items():
            delay[metric] += Fraction(float(parts.exit[e]))
            at[metric] = (
                Fraction(float(parts.backbone[tables.point[e]]))
                + delay[metric]
                + Fraction(float(parts.answer[e]))
            )
            delay[metric] += Fraction(float(parts.resume[e]))
        delivered.append((at, miou_of(tables, [e] * tables.images)))
    cost, miou = delivered[-1]
    return Candidate(selected, miou, cost, tuple(delivered))


def measured(
    tables: Tables, costs: Mapping[str, Cost], setting: str, size: int, stat: str
) -> list[Candidate]:
    """Every configuration of up to four exits."""
    space = space_of(tables, Request(setting=setting, thresholds=size, max_exits=4))
    if setting == "anytime":
        return [run_anytime(tables, costs, selected_of(c)) for c in space]
    return [run(tables, costs, selected_of(c), stat) for c in space]


def reached(candidate: Candidate, metric: str, deadline: Fraction | None) -> Fraction:
    """Without a deadline by exits before the last."""
    if deadline is None:
        return max((miou for _, miou in candidate.delivered[:-1]), default=Fraction(0))
    return max(
        (miou for cost, miou in candidate.delivered if cost[metric] <= deadline),
        default=Fraction(0),
    )


def expect(
    candidates: list[Candidate], tables: Tables, costs: Mapping[str, Cost], request: Request
) -> tuple[Candidate | None, list[Candidate]]:
    """The best candidate under the tie rule, and the front."""
    final = ((tables.exit_ids.index("final"), -1, 0.0),)
    baseline = run(tables, costs, final, request.latency_stat)
    limits = {
        "latency": request.max_latency_ms,
        "macs": request.max_macs,
        "params": request.max_params,
    }
    limits = {metric: Fraction(v) for metric, v in limits.items() if v is not None}
    least = Fraction(0)
    if request.min_miou is not None:
        least = max(least, Fraction(request.min_miou))
    if request.max_error is not None:
        least = max(least, baseline.miou - Fraction(request.max_error))
    metric = request.target
    if metric == "accuracy":
        metric = next(iter(limits), "latency" if "latency" in costs else "macs")
    checkpoints = []
    if request.setting == "anytime":
        checkpoints = [
            (None if c is None else Fraction(c), Fraction(m)) for c, m in request.checkpoints
        ] or [(baseline.cost[metric] / 2, Fraction(0) if request.target == "accuracy" else least)]

    # A limit is rounded to a whole step of the total: it admits what it was copied from.
    steps_of = {"macs": tables.images, "params": tables.images, "latency": tables.images * 10**9}

    def quality(candidate: Candidate) -> Fraction:
        if not checkpoints:
            return candidate.miou
        got = [reached(candidate, metric, cost) for cost, _ in checkpoints]
        return sum(got, Fraction(0)) / len(got)

    def allowed(candidate: Candidate) -> bool:
        steps = [(candidate.miou, least)]
        steps += [(reached(candidate, metric, cost), miou) for cost, miou in checkpoints]
        return all(round(a * STEPS) >= round(b * STEPS) for a, b in steps) and all(
            candidate.cost[m] * steps_of[m] <= round(limit * steps_of[m])
            for m, limit in limits.items()
        )

    def rank(candidate: Candidate) -> tuple[Any, ...]:
        size = (len(candidate.selected), candidate.selected)
        if request.target == "accuracy":
            return (-quality(candidate), candidate.cost[metric], *size)
        return (candidate.cost[request.target], -quality(candidate), *size)

    front: list[Candidate] = []
    by_cost = sorted(
        candidates, key=lambda c: (c.cost[metric], -quality(c), len(c.selected), c.selected)
    )
    for c in by_cost:
        if not front or quality(c) > quality(front[-1]):
            front.append(c)
    return min(filter(allowed, candidates), key=rank, default=None), front


def requests(
    rng: np.random.Generator,
    tables: Tables,
    candidates: dict[str, list[Candidate]],
    stat: str,
    size: int,
) -> Iterator[Request]:
    """All settings and targets; limits lie exactly on candidates, or a little beside them."""
    for setting, target in product(candidates, ("latency", "macs", "params", "accuracy")):
        near = candidates[setting][rng.integers(len(candidates[setting]))]
        limits: dict[str, Any] = {}
        for name, metric in (
            ("max_latency_ms", "latency"),
            ("max_macs", "macs"),
            ("max_params", "params"),
        ):
            if rng.random() < 0.35 and near.cost[metric] > 0:
                limits[name] = float(near.cost[metric]) * float(rng.choice([1.0, 1.0, 1.3]))
        if rng.random() < 0.5:
            limits["min_miou"] = float(near.miou)
        if rng.random() < 0.5:
            limits["max_error"] = float(rng.choice([0.0, 0.02, 0.1]))
        if setting == "anytime" and rng.random() < 0.7:
            unit = {"macs": 1000.0, "latency": 1 / 64, "params": 10.0}
            metric = Request(setting=setting, target=target, **limits).cost_metric(unit)
            limits["checkpoints"] = tuple(
                (
                    None if rng.random() < 0.3 else float(rng.integers(1, 30)) * unit[metric],
                    float(rng.choice([0, 0.2, 0.4])),
                )
                for _ in range(rng.integers(1, 4))
            )
        yield Request(
            setting=setting,
            target=target,
            latency_stat=stat,
            thresholds=size,
            max_exits=int(rng.integers(1, 5)),
            **limits,
        )


def selected_of(configuration: Any) -> Selected:
    return tuple(
        (c.exit, -1 if c.signal is None else c.signal, 0.0 if c.threshold is None else c.threshold)
        for c in configuration
    )


def check(answer: Answer, best: Candidate, front: list[Candidate]) -> None:
    assert selected_of(answer.configuration) == best.selected
    assert answer.evaluation.miou == pytest.approx(float(best.miou), abs=1e-12)
    for metric, cost in best.cost.items():
        assert answer.evaluation.costs[metric] == pytest.approx(float(cost), rel=1e-12)
    assert [selected_of(point.payload) for point in answer.front] == [c.selected for c in front]


@pytest.mark.parametrize("seed", range(CACHES))
def test_search_equals_the_enumeration(make_cache: Any, seed: int) -> None:
    rng = np.random.default_rng(seeded(seed))
    deep = seed % 5 == 0
    tables, costs = make_cache(
        rng,
        points=4 if deep else int(rng.integers(1, 4)),
        images=int(rng.integers(1, 7)),
        classes=int(rng.integers(1, 5)),
        signals=int(rng.integers(0, 2 if deep else 3)),
        twins=seed % 3 == 0,
    )
    stat, size = str(rng.choice(["mean", "p90"])), int(rng.integers(1, 4))
    candidates = {name: measured(tables, costs, name, size, stat) for name in SETTINGS}
    for request in requests(rng, tables, candidates, stat, size):
        space = [c for c in candidates[request.setting] if len(c.selected) <= request.max_exits]
        best, front = expect(space, tables, costs, request)
        if best is None:
            with pytest.raises(InfeasibleError, match="no configuration"):
                search(tables, costs, request, threads=1)
            continue
        answer = search(tables, costs, request, threads=1)
        check(answer, best, front)
        assert answer.configurations == len(space)


def test_exact_ties_go_to_the_smaller_threshold_before_the_smaller_last_exit() -> None:
    """Two ways to 10 of 12 pixels with as many parameters; the kernel meets the wrong one first."""
    hits = np.array([[4, 2, 0], [0, 3, 3], [0, 0, 4]], dtype=np.int32)[:, :, None]
    tables = Tables(
        exit_ids=("p1-crm1-b0-fcn", "p2-crm1-b0-fcn", "final"),
        point=np.array([1, 2, 2]),
        label=np.full((3, 1), 4),
        intersection=hits,
        predicted=hits,
        signals=np.tile(np.array([[0.75], [0.5], [0.25]], dtype=np.float32), (3, 1, 1)),
        signal_names=("top1",),
    )
    part = Cost(
        backbone=np.array([0.0, 4.0, 8.0]),
        exit=np.ones(3),
        signal=np.zeros((3, 1)),
        answer=np.zeros(3),
        resume=np.zeros(3),
        compared=np.zeros(3),
    )
    costs = {"macs": part, "params": part}
    answer = search(tables, costs, Request(target="params", min_miou=10 / 12))
    expected = ((0, 0, 0.375), (2, -1, 0.0))
    assert selected_of(answer.configuration) == expected
    assert selected_of(answer.front[-1].payload) == expected
