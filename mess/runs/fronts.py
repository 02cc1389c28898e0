"""Answering a search from the front of an earlier one, where that proves the answer.

A front holds the optimum of every question with one limit, so a search that differs from an earlier
one by its limits alone needs no search. No file is taken on trust: a front counts only where it was
made from the very same inputs, where its seal is whole, and where each of its figures comes out
again by the plain definition.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mess import __version__
from mess.cache.parquet import find_facts, read_rows
from mess.cache.predictions.store import CacheManifest
from mess.cache.schema import FRONT
from mess.common.progress import Reporter
from mess.errors import CacheError
from mess.runs.run import Run
from mess.search.answers.answer import Answer
from mess.search.problem.costs import LATENCY, MACS, PARAMS, Cost
from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.front import FrontPoint, proven_optimum
from mess.search.problem.goal import Goal
from mess.search.problem.tables import Tables


class Earlier(NamedTuple):
    """An answer, and the identifier of the search that proved it."""

    search_id: str
    answer: Answer


def dependencies(
    goal: Goal,
    costs: Mapping[str, Cost],
    manifest: CacheManifest,
    excluded: Mapping[str, Any],
) -> dict[str, Any]:
    """All that a front depends on, as JSON: where it is equal, fronts are.

    manifest: of the cache that the tables come from; its `weights` and `data` are used.
    excluded: candidates that no search of the run can find.
    """
    request = goal.request
    return {
        # Another version may search otherwise.
        "version": __version__,
        "weights": manifest["weights"],
        "data": manifest["data"],
        "tables": _fingerprint(_searched(goal.tables)),
        "costs": costs_fingerprint(costs),
        "excluded": dict(excluded),
        "setting": request.setting,
        "max_exits": request.max_exits,
        "thresholds": request.thresholds,
        "latency_stat": request.latency_stat,
        "shared_threshold": request.shared_threshold,
        "metric": goal.front_metric,
        "deadlines": [None if point.early else point.deadline for point in goal.checkpoints],
    }


def costs_fingerprint(costs: Mapping[str, Cost]) -> str:
    """sha256 over the costs of every part in every metric."""
    return _fingerprint(
        {
            f"{metric} {name}": np.asarray(part, dtype=np.float64)
            for metric, cost in sorted(costs.items())
            for name, part in _parts(cost).items()
        }
    )


def sealed(
    depends: Mapping[str, Any], answer: Answer, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The facts to store beside the front of a search, `rows`; None where it proves nothing."""
    if not rows or not all(row["proven"] for row in rows):
        return None
    facts = {
        "depends": dict(depends),
        "space": answer.space,
        "configurations": answer.configurations,
        "evaluated": answer.evaluated,
        "pruned": dict(answer.pruned),
    }
    return facts | {"seal": _seal(facts, rows)}


def earlier_answer(
    place: Run, depends: Mapping[str, Any], goal: Goal, reporter: Reporter
) -> Earlier | None:
    """The answer to `goal` that an earlier search of the run proves, the oldest that does.

    It is what a new search would find; the space and its counts are the earlier search's, `seconds`
    is what reading took. None where no front has the same `depends`, or where that front does not
    settle the goal: it is infeasible, or has a limit on something the front does not show. Says so
    where a file is damaged or altered, and goes without it.
    """
    start = time.perf_counter()
    for search_id in place.searches():
        path = place.search(search_id) / "front.parquet"
        if not path.exists():
            continue
        try:
            facts = find_facts(path)
            if facts is None or facts.get("depends") != depends:
                continue
            front = _checked_front(path, facts, goal)
        except CacheError as error:
            reporter.message(f"The front of {search_id} is not used: {error}")
            continue
        point = proven_optimum(goal, front)
        if point is None:
            # Fronts with the same `depends` are the same, so no other one settles it either.
            return None
        answer = Answer(
            goal=goal,
            configuration=point.payload,
            evaluation=goal.evaluate(point.payload),
            front=front,
            front_proven=True,
            space=facts["space"],
            configurations=facts["configurations"],
            evaluated=facts["evaluated"],
            pruned=facts["pruned"],
            gap=0.0,
            seconds=time.perf_counter() - start,
        )
        return Earlier(search_id, answer)
    return None


def _checked_front(
    path: Path, facts: Mapping[str, Any], goal: Goal
) -> tuple[FrontPoint[Configuration], ...]:
    """The points of a front; raises CacheError where they are not what a search wrote."""
    altered = CacheError(f"{path} was altered after it was written. Delete it.")
    rows = read_rows(path, FRONT)
    unsealed = {name: value for name, value in facts.items() if name != "seal"}
    if facts.get("seal") != _seal(unsealed, rows) or not all(row["proven"] for row in rows):
        raise altered
    points = []
    for order, row in enumerate(rows):
        try:
            configuration = _configuration(goal.tables, row["configuration"])
            evaluation = goal.evaluate(configuration)
        except (KeyError, TypeError, ValueError):
            raise altered from None
        costs = evaluation.costs
        figures = {
            "miou": goal.quality(evaluation),
            "macs": costs[MACS],
            "latency_ms": costs.get(LATENCY),
            "params": costs[PARAMS],
        }
        # Exactly: Parquet keeps float64 as it is, and the same definition gave these figures.
        if any(row[name] != value for name, value in figures.items()):
            raise altered
        cost, miou = evaluation.totals[goal.front_metric], goal.quality_steps(evaluation)
        points.append(FrontPoint(cost, miou, order, configuration))
    return tuple(points)


def _configuration(tables: Tables, text: str) -> Configuration:
    """The configuration that a row of a front holds as JSON."""
    return tuple(
        Choice(
            tables.exit_ids.index(row["exit_id"]),
            None if row["signal"] is None else tables.signal_names.index(row["signal"]),
            row["threshold"],
        )
        for row in json.loads(text)
    )


def _seal(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over the facts and the configurations, so that none can be changed or taken out.

    The figures of the rows need no seal: they follow from the configurations.
    """
    # It guards the next search, which reads a front for what it depends on, whatever result lies
    # beside it. `front_sha256` in result.json guards what shows a search: that these bytes, its
    # figures too, are the front of that very result (`Run.front`).
    content = [dict(facts), [row["configuration"] for row in rows]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parts(value: Tables | Cost) -> dict[str, Any]:
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: part for name, part in found.items() if part is not None}


def _searched(tables: Tables) -> dict[str, Any]:
    """All but lost pixels, which no front hangs on: counted afterwards, they change nothing."""
    return {name: part for name, part in _parts(tables).items() if name != "lost"}


def _fingerprint(parts: Mapping[str, Any]) -> str:
    """sha256 over named arrays: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, part in parts.items():
        array = np.asarray(part)
        # The bytes of an array of objects are addresses, which differ between processes.
        assert array.dtype != np.object_, name
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
