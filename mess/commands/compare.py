"""Every policy on the same network: one search each, their fronts side by side. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mess.cache.parquet import read_rows
from mess.cache.schema import FRONT
from mess.commands.search import EXHAUSTIVE, search_run
from mess.common.files import write_json
from mess.common.progress import Reporter
from mess.errors import InfeasibleError, MessError
from mess.report.policies import PolicyLine, write_comparison
from mess.runs.policies import ANY, known_policies, policy_tables
from mess.runs.run import Run, new_folder
from mess.search.answers.failure_prediction import ranking
from mess.search.exact.workers import Team
from mess.search.problem.settings import SETTINGS, find_setting
from mess.signals.registry import PAIR_SIGNALS, distinct


def compare_policies(
    place: Run,
    *,
    cache: str,
    shared_threshold: bool,
    reporter: Reporter,
    team: Team | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search with every policy of a cache, each with thresholds of its own and with a shared one.

    `options` are those of `search_run`. Each search is written as any other; besides this writes
    comparison.json, which is returned with `id` and `path`, and comparison.html with the fronts.

    policies: a row a search: `policy`, `shared_threshold`, `search` (its id), `exits`, `predicted`,
        `error`, `configurations`, `optimal` and `failure_prediction`, of the best of its signals;
        or `infeasible`, the reason.
    signals: `mess.search.answers.failure_prediction.ranking` of every signal on this cache.
    best: the `search` that comes first by what was asked for.
    An interrupt (Ctrl-C) ends the comparison with the search at hand, whose row is not `optimal`.
    """
    if not find_setting(options["setting"]).signals_decide:
        fitting = " or ".join(s.name for s in SETTINGS.values() if s.signals_decide)
        raise MessError(
            f"policies decide in the {fitting} setting alone, got {options['setting']}."
        )
    if options["algorithm"] != EXHAUSTIVE or shared_threshold:
        raise MessError(
            "--policy all searches every policy exhaustively, with thresholds of its own and with "
            "a shared one. Leave --algorithm and --shared-threshold out, or name one policy."
        )
    _, manifest, _ = policy_tables(place, cache, ANY, reporter)
    members = known_policies(manifest)
    scores: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    refusals: list[InfeasibleError] = []
    results: list[dict[str, Any]] = []
    for policy, shared in _searches(distinct(members), options["max_exits"]):
        if results and not results[-1]["search"]["optimal"]:
            break  # interrupted
        row = {"policy": policy, "shared_threshold": shared}
        if policy in PAIR_SIGNALS and not manifest["label_maps"]:
            rows.append({**row, "infeasible": "it compares label maps, and the cache has none"})
            continue
        if not shared:
            tables, _, _ = policy_tables(place, cache, policy, reporter, team)
            scores |= {n: s for n, s in ranking(tables).items() if n not in scores}
        try:
            result = search_run(
                place, cache=cache, policy=policy, shared_threshold=shared, reporter=reporter,
                team=team, **options,
            )  # fmt: skip
        except InfeasibleError as error:
            refusals.append(error)
            rows.append({**row, "infeasible": str(error)})
            continue
        results.append(result)
        best = max((scores[name] for name in members[policy]), key=_known)
        rows.append({**row, **_figures(result), "failure_prediction": _finite(best)})
    found = [row for row in rows if "infeasible" not in row]
    if not results:
        raise refusals[0]
    comparison = {
        "target": options["target"],
        "cache": cache,
        "baseline": results[0]["baseline"],
        "constraints": _constraints(results[0]),
        "best": min(found, key=lambda row: _merit(row, options["target"]))["search"],
        "policies": rows,
        "signals": {
            name: _finite(score)
            for name, score in sorted(scores.items(), key=lambda item: -_known(item[1]))
        },
    }
    if team and team.rank:
        return json.loads(team.gather(b"")[0])
    folder = new_folder(place.path / "comparisons", f"policies-{options['target']}")
    write_json(folder / "comparison.json", comparison)
    lines = [
        PolicyLine(
            name=f"{row['policy']}{', one threshold' * row['shared_threshold']}",
            points=_front(place, row["search"]),
            row=row,
        )
        for row in found
    ]
    write_comparison(folder / "comparison.html", comparison, lines)
    told = {"id": folder.name, "path": str(folder), **comparison}
    if team:
        team.gather(json.dumps(told).encode())
    return told


def _searches(policies: Sequence[str], max_exits: int) -> Iterator[tuple[str, bool]]:
    """Each policy, and again with a shared threshold where there are two of them to share one."""
    for policy in policies:
        yield policy, False
        if max_exits > (3 if policy in PAIR_SIGNALS else 2):
            yield policy, True


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "search": result["id"],
        "exits": [exit_["exit_id"] for exit_ in result["exits"]],
        "predicted": result["predicted"],
        "error": result["error"],
        "configurations": result["search"]["configurations"],
        "optimal": result["search"]["optimal"],
    }


def _constraints(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result["constraints"].items() if k != "shared_threshold"}


def _merit(row: Mapping[str, Any], target: str) -> tuple[float, float]:
    predicted = row["predicted"]
    if target == "accuracy":
        return -predicted["miou"], predicted["macs"]
    return predicted["latency_ms" if target == "latency" else target], -predicted["miou"]


def _front(place: Run, search_id: str) -> list[dict[str, Any]]:
    path = place.search(search_id) / "front.parquet"
    return read_rows(path, FRONT) if path.exists() else []


def _known(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _finite(score: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(score) else score
