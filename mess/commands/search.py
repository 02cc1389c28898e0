"""Searching a run's cache. No torch: a search starts at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mess.cache.parquet import write_rows
from mess.cache.predictions.store import PredictionStore
from mess.cache.schema import FRONT
from mess.common.files import write_json
from mess.common.progress import Reporter, Task
from mess.errors import CacheError, MessError, nearest
from mess.runs.costs import DEFAULT_PROFILE, load_costs
from mess.runs.freshness import require_current_data
from mess.runs.fronts import dependencies, earlier_answer, sealed
from mess.runs.identity import CALIBRATION, excluded_exits
from mess.runs.policies import PREFERRED, policy_tables
from mess.runs.run import Run, new_folder
from mess.search.answers.answer import Answer, search
from mess.search.exact.workers import Team
from mess.search.problem.costs import to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.request import ACCURACY, Request
from mess.search.problem.settings import find_setting
from mess.search.sampled.study import SAMPLERS
from mess.signals.registry import PAIR_SIGNALS

EXHAUSTIVE, OPTUNA = "exhaustive", "optuna"
ALGORITHMS = (EXHAUSTIVE, OPTUNA)

TRIALS = 2000
"""Of a study in all, where the caller does not say."""


def search_run(
    place: Run,
    *,
    max_macs: str | float | None,
    checkpoints: Sequence[str],
    profile: str | None,
    reporter: Reporter,
    cache: str = CALIBRATION,
    algorithm: str = EXHAUSTIVE,
    trials: int | None = None,
    sampler: str | None = None,
    policy: str | None = None,
    front: bool = True,
    fresh: bool = False,
    team: Team | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search, write result.json and front.parquet, and return the result with `id` and `path`.

    `cache` names the one of RUN/cache to search; it is refused when it or its data is not current.
    `policy` names the signals that early exits may have, as in `mess.runs.policies`.
    An earlier search's front answers at once where it proves the answer, unless `fresh` is set or
    `algorithm` is `optuna`: that goes on with its own study. `options` are further fields of
    `Request`. Of a `team` that searches together the first process writes.
    """
    _check_algorithm(algorithm, trials, sampler, front=front)
    _amount(max_macs, 1.0)  # what cannot be read is refused before anything is computed
    deadlines = tuple(_checkpoint(text) for text in checkpoints)
    if team and algorithm == OPTUNA:
        raise MessError(
            "torchrun divides the exhaustive search alone. For --algorithm optuna give the same "
            "command several times at once: they share the study."
        )
    if algorithm == OPTUNA and (policy in PAIR_SIGNALS or options.get("shared_threshold")):
        raise MessError(
            "optuna samples a signal and a threshold of each exit. A signal that compares exits, "
            "and a shared threshold, are searched in full and proven: leave --algorithm out."
        )
    if options["target"] != ACCURACY and not (
        checkpoints or any(options[name] is not None for name in ("max_error", "min_miou"))
    ):
        raise MessError(
            f"target {options['target']} without an accuracy to keep gives the cheapest exit, "
            "however bad. Give --max-error (such as 0.01) or --min-miou; or, for anytime, "
            "--checkpoint."
        )
    dependent = find_setting(options["setting"]).signals_decide
    if policy is not None and not dependent:
        raise MessError(
            f"policy {policy} means nothing in the {options['setting']} setting, where no image "
            "leaves by its signal; leave --policy out."
        )
    tables, manifest, policy = policy_tables(place, cache, policy, reporter, team)
    require_current_data(place, PredictionStore(place.cache(cache)), manifest, reporter)
    timed = options["target"] == "latency" or options["max_latency_ms"] is not None
    try:
        costs = load_costs(place, tables, manifest, profile)
    except CacheError as error:
        if timed or profile is not None:
            raise
        reporter.message(f"Latencies are left out: {error}")
        costs = load_costs(place, tables, manifest, None, measured=False)
    if timed and "latency" not in costs:
        raise MessError(
            f"{place.path} has no latency profile {DEFAULT_PROFILE!r}. Measure one with "
            f"{place.command('profile')}, name another with --profile, or use --target macs."
        )
    baseline = costs["macs"].backbone[-1] + costs["macs"].exit[tables.final]
    request = Request(
        max_macs=_amount(max_macs, float(baseline)),
        checkpoints=deadlines,
        **options,
    )
    goal, excluded = Goal.of(tables, to_ticks(tables, costs), request), excluded_exits(place)
    depends = dependencies(goal, costs, manifest, excluded)
    sampling = {}
    if algorithm == OPTUNA:
        sampling = _sampling(place, depends, request, trials, sampler or SAMPLERS[0])
    follows = team is not None and team.rank > 0
    earlier = None
    if not (fresh or sampling or follows):
        earlier = earlier_answer(place, depends, goal, reporter)
    if team:
        # The first process decides for all: a search may end between two looks at the disk.
        fresh = json.loads(team.gather(json.dumps(earlier is None).encode())[0])
    answer = earlier.answer if earlier else None
    if answer is None and (fresh or not follows):
        with reporter.task(f"searching {policy}" if dependent else "searching", 1) as task:
            answer = search(
                tables, costs, request, _progress(task), front=front, team=team, **sampling
            )
    if answer is None or follows:
        assert team
        return json.loads(team.gather(b"")[0])
    result = answer.to_result()
    result["search"]["space"]["excluded"] = excluded
    result["search"]["source"] = earlier.search_id if earlier else None
    result |= {
        "policy": policy if dependent else None,
        "cache": {"name": cache, "weights": manifest["weights"], "data": manifest["data"]},
        "costs": depends["costs"],
        "profile": (profile or DEFAULT_PROFILE) if "latency" in costs else None,
    }
    name = _write(place, depends, answer, result)
    result = {"id": name, "path": str(place.search(name)), **result}
    if team:
        team.gather(json.dumps(result).encode())
    return result


def _write(
    place: Run, depends: Mapping[str, Any], answer: Answer, result: Mapping[str, Any]
) -> str:
    """Write the search's folder and return its name."""
    folder = new_folder(place.path / "searches", _name(answer.goal.request, result["policy"]))
    rows = answer.front_rows()
    write_rows(folder / "front.parquet", rows, FRONT, sealed(depends, answer, rows))
    write_json(folder / "result.json", result)
    return folder.name


def _check_algorithm(
    algorithm: str, trials: int | None, sampler: str | None, *, front: bool
) -> None:
    if algorithm not in ALGORITHMS:
        raise MessError(f"unknown algorithm {algorithm!r}; {nearest(algorithm, ALGORITHMS)}")
    if algorithm == OPTUNA:
        if not front:
            raise MessError(
                "--no-front means nothing to optuna, whose front is what it has sampled; leave it "
                "out."
            )
        return
    for name, value in (("trials", trials), ("sampler", sampler)):
        if value is not None:
            raise MessError(
                f"{name} {value} means nothing to the exhaustive search, which covers its whole "
                f"space. Add --algorithm optuna, or leave --{name} out."
            )


def _sampling(
    place: Run, depends: Mapping[str, Any], request: Request, trials: int | None, sampler: str
) -> dict[str, Any]:
    """Options of `search`; the study is that of the same cache, costs, request and sampler."""
    content = json.dumps([dict(depends), asdict(request), sampler], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {
        "algorithm": OPTUNA,
        "trials": TRIALS if trials is None else trials,
        "sampler": sampler,
        "seed": place.config().seed,
        "storage": place.study(key),
    }


def _progress(task: Task) -> Callable[[int, int], None]:
    """A searcher's (done, total) as shares of a task whose total is 1."""
    reached = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reached
        share = done / total if total else 1.0
        task.advance(share - reached)
        reached = share

    return report


def _amount(value: str | float | None, baseline: float) -> float | None:
    """A number, or a multiple of the baseline written as "0.5x"."""
    if not isinstance(value, str):
        return value
    text, scale = (value[:-1], baseline) if value.endswith("x") else (value, 1.0)
    try:
        return float(text) * scale
    except ValueError:
        raise MessError(
            f"max_macs is a number or a multiple of the baseline such as 0.5x, got {value!r}."
        ) from None


def _checkpoint(text: str) -> tuple[float, float]:
    cost, _, miou = text.partition("=")
    try:
        return float(cost), float(miou)
    except ValueError:
        raise MessError(f"a checkpoint is COST=MIOU such as 5.0=0.6, got {text!r}.") from None


def _name(request: Request, policy: str | None) -> str:
    """A readable identifier, such as input-dependent-latency-max-error-0.01."""
    limits = {
        name.replace("_", "-"): f"{value:g}" if value < 10_000 else f"{value:.0f}"
        for name, value in request.constraints().items()
        if name not in ("latency_stat", "max_exits", "checkpoints", "shared_threshold")
    }
    parts = [request.setting, request.target, *(f"{k}-{v}" for k, v in limits.items())]
    parts += ["p90"] * (request.latency_stat == "p90")
    if policy is not None and policy != PREFERRED[0]:
        parts.append(policy)
    return "-".join(parts + ["one-threshold"] * request.shared_threshold)
