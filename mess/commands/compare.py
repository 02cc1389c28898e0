"""Every policy on the same network: one search each, their fronts side by side. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

from mess.commands.search import search_and_measure
from mess.commands.search_options import SearchOptions
from mess.common.files import write_json
from mess.common.progress import Reporter
from mess.common.records import Figures
from mess.errors import InfeasibleError
from mess.report.policies import PolicyLine, write_comparison
from mess.runs.cache import RunCache
from mess.runs.intervals import Measured, groups_or_reason, held_against
from mess.runs.policies import known_policies, policy_tables
from mess.runs.results import FoundResult
from mess.runs.run import Run, new_folder
from mess.search.answers.failure_prediction import ranking
from mess.search.exact.workers import Team
from mess.sentences.accuracy import labels_of
from mess.sentences.intervals import policy_name
from mess.signals.registry import PAIR_SIGNALS, distinct


class PolicyAnswer(TypedDict):
    """What the search with one policy found."""

    policy: str
    shared_threshold: bool
    search: str
    """Its identifier."""
    exits: list[str]
    predicted: Figures
    error: float
    configurations: int
    optimal: bool
    failure_prediction: float | None
    """Of the best of the policy's signals; None where none of them tells anything."""
    certificate: NotRequired[dict[str, Any]]
    expected: NotRequired[dict[str, Any]]
    """As result.json has them, where they were asked for."""
    against_best: NotRequired[dict[str, Any]]
    """What it loses to the best and costs more, with intervals, paired image by image."""


class PolicyRefusal(TypedDict):
    """Why there is no answer with a policy."""

    policy: str
    shared_threshold: bool
    infeasible: str


def compare_policies(
    place: Run, options: SearchOptions, reporter: Reporter, team: Team | None = None
) -> dict[str, Any]:
    """Search with every policy of a cache, each with thresholds of its own and with a shared one.

    Each search is written as any other; besides this writes comparison.json, which is returned with
    `id` and `path`, and comparison.html with the fronts.

    policies: a row a search, `PolicyAnswer` or `PolicyRefusal`.
    signals: `mess.search.answers.failure_prediction.ranking` of every signal on this cache.
    best: the `search` that comes first by what was asked for.
    intervals: what `against_best` of the rows rests on. These images chose every answer, and that
        is not corrected for.
    An interrupt (Ctrl-C) ends the comparison with the search at hand, whose row is not `optimal`.
    With a confidence every answer is certified at one that lets all hold together with it, and the
    best is the cheapest of them: whichever is taken, it was not taken by luck.
    """
    cache = place.open_cache(options.cache)
    members = known_policies(cache.manifest)
    scores: dict[str, float] = {}
    results: list[FoundResult] = []
    answers: list[PolicyAnswer] = []
    measured: dict[str, Measured] = {}
    rows: list[PolicyAnswer | PolicyRefusal] = []
    refusals: list[InfeasibleError] = []
    searches = list(_searches(distinct(members), options.max_exits))
    for policy, shared in searches:
        if answers and not answers[-1]["optimal"] and "certificate" not in answers[-1]:
            break  # interrupted
        asked = replace(options, policy=policy, shared_threshold=shared)
        if policy in PAIR_SIGNALS and not cache.manifest["label_maps"]:
            rows.append(_refusal(asked, "it compares label maps, and the cache has none"))
            continue
        if not shared:
            # Signals belong to several policies, and to "any" again.
            scores = _ranked(cache, policy, reporter, team) | scores
        try:
            result, on_images = search_and_measure(
                place, asked, reporter, team, compared=len(searches)
            )
        except InfeasibleError as error:
            refusals.append(error)
            rows.append(_refusal(asked, str(error)))
            continue
        results.append(result)
        if on_images is not None:
            measured[result["id"]] = on_images
        answers.append(_row(asked, result, [scores[name] for name in members[policy]]))
        rows.append(answers[-1])
    if not answers:
        raise refusals[0]
    # Others wait here until the first has written, and return what it tells.
    if team and team.rank:
        return json.loads(team.gather(b"")[0])
    comparison = _comparison(options, results[0], answers, rows, scores)
    comparison["intervals"] = _against_best(place, cache, comparison["best"], answers, measured)
    told = _write(place, comparison, answers, results)
    if team:
        team.gather(json.dumps(told).encode())
    return told


def _searches(policies: Sequence[str], max_exits: int) -> Iterator[tuple[str, bool]]:
    """Each policy, and again with a shared threshold where there are two of them to share one."""
    for policy in policies:
        yield policy, False
        # The last exit has no threshold, and where exits are compared nor has the first.
        if max_exits > (3 if policy in PAIR_SIGNALS else 2):
            yield policy, True


def _ranked(
    cache: RunCache, policy: str, reporter: Reporter, team: Team | None
) -> dict[str, float]:
    tables, _ = policy_tables(cache, policy, reporter, team)
    return ranking(tables)


def _refusal(asked: SearchOptions, reason: str) -> PolicyRefusal:
    return {
        "policy": str(asked.policy),
        "shared_threshold": asked.shared_threshold,
        "infeasible": reason,
    }


def _row(asked: SearchOptions, result: FoundResult, scores: Sequence[float]) -> PolicyAnswer:
    row: PolicyAnswer = {
        "policy": str(asked.policy),
        "shared_threshold": asked.shared_threshold,
        "search": result["id"],
        "exits": [exit_["exit_id"] for exit_ in result["exits"]],
        "predicted": result["predicted"],
        "error": result["error"],
        "configurations": result["search"]["configurations"],
        "optimal": result["search"]["optimal"],
        "failure_prediction": _finite(max(scores, key=_known)),
    }
    if "certificate" in result:
        row["certificate"] = result["certificate"]
    if "expected" in result:
        row["expected"] = result["expected"]
    return row


def _comparison(
    options: SearchOptions,
    first: FoundResult,
    answers: Sequence[PolicyAnswer],
    rows: Sequence[PolicyAnswer | PolicyRefusal],
    scores: Mapping[str, float],
) -> dict[str, Any]:
    """The content of comparison.json."""
    # Rows differ in it: each says its own.
    constraints = {k: v for k, v in first["constraints"].items() if k != "shared_threshold"}
    return {
        "target": options.target,
        "cache": options.cache,
        "labels": labels_of(first),
        "baseline": first["baseline"],
        "constraints": constraints,
        "best": min(answers, key=lambda row: _merit(row, options.target))["search"],
        "policies": list(rows),
        "signals": {
            name: _finite(score)
            for name, score in sorted(scores.items(), key=lambda item: -_known(item[1]))
        },
    }


def _against_best(
    place: Run,
    cache: RunCache,
    best: str,
    answers: Sequence[PolicyAnswer],
    measured: Mapping[str, Measured],
) -> dict[str, Any]:
    """Put `against_best` into the rows of the others; what is said of all of them."""
    groups = groups_or_reason(place, cache.image_fingerprints)
    others = [row for row in answers if row["search"] != best]
    told, rows = held_against(
        measured[best],
        [measured[row["search"]] for row in others],
        groups,
        cache.manifest["classes"],
        place.config.seed,
    )
    for answer, row in zip(others, rows, strict=bool(rows)):
        answer["against_best"] = row
    return told


def _write(
    place: Run,
    comparison: Mapping[str, Any],
    answers: Sequence[PolicyAnswer],
    results: Sequence[FoundResult],
) -> dict[str, Any]:
    """Write the comparison's folder; `results` are those of the searches that found the answers."""
    folder = new_folder(place.path / "comparisons", f"policies-{comparison['target']}")
    write_json(folder / "comparison.json", comparison)
    lines = [
        PolicyLine(name=policy_name(row), points=place.front(result["id"], result), row=row)
        for row, result in zip(answers, results, strict=True)
    ]
    write_comparison(folder / "comparison.html", comparison, lines)
    return {"id": folder.name, "path": str(folder), **comparison}


def _merit(row: PolicyAnswer, target: str) -> tuple[bool, float, float]:
    """What is smallest for the best answer."""
    predicted, certificate = row["predicted"], row.get("certificate")
    broken = certificate is not None and not certificate["holds"]
    if target == "accuracy":
        # Of certified answers what is certain counts, not what was found.
        miou = predicted["miou"] if certificate is None else certificate["least_miou"]
        return broken, -miou, predicted["macs"]
    cost = predicted["latency_ms" if target == "latency" else target]
    return broken, cost, -predicted["miou"]


def _known(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _finite(score: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(score) else score
