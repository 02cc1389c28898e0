"""Searching a run's cache. No torch: a search starts at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from mess.cache.parquet import write_rows
from mess.cache.schema import FRONT
from mess.commands.lost_pixels import require_lost_pixels
from mess.commands.new_images import Promised, is_fast, of_new_images, require_same_labels
from mess.commands.search_options import OPTUNA, SearchOptions
from mess.common.files import sha256, write_json
from mess.common.progress import Reporter, Task
from mess.common.records import with_digest
from mess.errors import CacheError, InfeasibleError, MessError
from mess.runs.cache import RunCache
from mess.runs.freshness import require_current_data
from mess.runs.fronts import dependencies, earlier_answer, sealed
from mess.runs.intervals import Measured, groups_or_reason, intervals_of, measured_answer
from mess.runs.part_costs import DEFAULT_PROFILE, load_costs
from mess.runs.policies import PREFERRED, policy_tables
from mess.runs.results import FoundResult
from mess.runs.run import Run, new_folder
from mess.search.answers.answer import Answer, search
from mess.search.exact.workers import Team
from mess.search.guarantees.intervals import FEWER_DRAWS
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables
from mess.search.sampled.study import SAMPLERS
from mess.sentences.accuracy import against

TRIALS = 2000
"""Of a study in all, where the caller does not say."""


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What is searched, and all that the answer hangs on."""

    place: Run
    options: SearchOptions
    policy: str | None
    """The one that decides; None in settings where no image leaves by its signal."""
    tables: Tables
    costs: Mapping[str, Cost]
    goal: Goal
    depends: Mapping[str, Any]
    labels: str
    """What the cache was counted against."""


def search_run(
    place: Run,
    options: SearchOptions,
    reporter: Reporter,
    team: Team | None = None,
    compared: int = 1,
) -> FoundResult:
    """Search, write result.json and front.parquet, and return the result with `id` and `path`.

    Of a `team` that searches together the first process writes. `compared` is the number of
    searches of which one will be taken: what is said of new images then holds for all together.
    """
    return search_and_measure(place, options, reporter, team, compared)[0]


def search_and_measure(
    place: Run,
    options: SearchOptions,
    reporter: Reporter,
    team: Team | None = None,
    compared: int = 1,
) -> tuple[FoundResult, Measured | None]:
    """As `search_run`, and what the answer did image by image; None for who does not write."""
    if team and (options.expect or options.confidence is not None):
        raise MessError(
            "torchrun divides a search without --confidence and --expect alone; leave them out."
        )
    if team and options.algorithm == OPTUNA:
        raise MessError(
            "torchrun divides the exhaustive search alone. For --algorithm optuna give the same "
            "command several times at once: they share the study."
        )
    require_same_labels(place, options)
    require_lost_pixels(place, options)
    question = _ask(place, options, reporter, team)
    try:
        answer, source = _answer(question, reporter, team)
    except InfeasibleError as error:
        raise InfeasibleError(against(str(error), question.labels)) from error
    # Others wait here until the first has written, and return what it tells.
    if team and team.rank:
        return json.loads(team.gather(b"")[0]), None
    assert answer
    promised = of_new_images(place, options, answer, question.costs, reporter, compared)
    measured = measured_answer(promised.answer)
    result = _write(question, answer, source, promised, measured)
    if team:
        team.gather(json.dumps(result).encode())
    return result, measured


def _ask(place: Run, options: SearchOptions, reporter: Reporter, team: Team | None) -> _Question:
    """Read what is searched; refuses a cache that, or whose data, is not current."""
    cache = place.open_cache(options.cache)
    tables, policy = policy_tables(cache, options.policy, reporter, team)
    require_current_data(place, cache, reporter)
    costs = _costs(place, cache, tables, options, reporter)
    baseline_macs = costs["macs"].backbone[-1] + costs["macs"].exit[tables.final]
    goal = Goal.of(tables, to_ticks(tables, costs), options.request(float(baseline_macs)))
    return _Question(
        place=place,
        options=options,
        policy=policy if goal.setting.signals_decide else None,
        tables=tables,
        costs=costs,
        goal=goal,
        depends=dependencies(goal, costs, cache.manifest, place.excluded_exits),
        labels=cache.manifest["labels"],
    )


def _costs(
    place: Run, cache: RunCache, tables: Tables, options: SearchOptions, reporter: Reporter
) -> Mapping[str, Cost]:
    """Latencies are left out where there are none and nothing asks for them."""
    try:
        costs = load_costs(place, cache, tables, options.profile)
    except CacheError as error:
        if options.is_timed or options.profile is not None:
            raise
        reporter.message(f"Latencies are left out: {error}")
        costs = load_costs(place, cache, tables, None, measured=False)
    if options.is_timed and "latency" not in costs:
        raise MessError(
            f"{place.path} has no latency profile {DEFAULT_PROFILE!r}. Measure one with "
            f"{place.command('profile')}, name another with --profile, or use --target macs."
        )
    return costs


def _answer(
    question: _Question, reporter: Reporter, team: Team | None
) -> tuple[Answer | None, str | None]:
    """The answer, and the earlier search whose front proved it; None for who need not answer."""
    options, leads = question.options, not (team and team.rank)
    earlier = None
    if leads and not options.fresh and options.algorithm != OPTUNA:
        # Not for who asks to sample: an earlier front is an exhaustive search's answer.
        earlier = earlier_answer(question.place, question.depends, question.goal, reporter)
    known = earlier is not None
    if team:
        # The first process decides for all: a search may end between two looks at the disk.
        known = json.loads(team.gather(json.dumps(known).encode())[0])
    if known:
        return (earlier.answer, earlier.search_id) if earlier else (None, None)
    policy = f" {question.policy}" if question.policy else ""
    with reporter.task(f"searching{policy}", 1) as task:
        answer = search(
            question.tables,
            question.costs,
            question.goal.request,
            _progress(task),
            front=options.front and is_fast(options),
            team=team,
            **_sampling(question),
        )
    return answer, None


def _sampling(question: _Question) -> dict[str, Any]:
    """Options of `search`; the study is that of the same cache, costs, request and sampler."""
    options = question.options
    if options.algorithm != OPTUNA:
        return {}
    sampler = options.sampler or SAMPLERS[0]
    content = [dict(question.depends), asdict(question.goal.request), sampler]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "algorithm": OPTUNA,
        "trials": TRIALS if options.trials is None else options.trials,
        "sampler": sampler,
        "seed": question.place.config.seed,
        "storage": question.place.study(key),
    }


def _write(
    question: _Question,
    answer: Answer,
    source: str | None,
    promised: Promised,
    measured: Measured,
) -> FoundResult:
    """Write the search's folder; the front is that of the search without a promise."""
    place, options, depends = question.place, question.options, question.depends
    result = promised.answer.to_result() | promised.told
    result["search"]["space"]["excluded"] = depends["excluded"]
    result["search"]["source"] = source
    result |= {
        "intervals": _intervals(question, measured),
        "policy": question.policy,
        "cache": {
            "name": options.cache,
            **{name: depends[name] for name in ("weights", "data")},
            "labels": question.labels,
        },
        "costs": depends["costs"],
        "profile": (options.profile or DEFAULT_PROFILE) if "latency" in question.costs else None,
    }
    name = _name(question.goal.request, question.policy)
    if options.confidence is not None:
        name += f"-confidence-{options.confidence:g}"
    if options.max_lost is not None:
        result["constraints"]["max_lost"] = options.max_lost
        name += f"-max-lost-{options.max_lost:g}"
    folder = new_folder(place.path / "searches", name)
    rows = answer.front_rows()
    # The result last: a folder without one is no search.
    front = folder / "front.parquet"
    write_rows(front, rows, FRONT, sealed(depends, answer, rows))
    result = with_digest(result | {"front_sha256": sha256(front)})
    write_json(folder / "result.json", result)
    return cast(FoundResult, {"id": folder.name, "path": str(folder), **result})


def _intervals(question: _Question, measured: Measured) -> dict[str, Any]:
    """Of the answer on the images that chose it: that they did is not corrected for."""
    place, cache = question.place, question.place.open_cache(question.options.cache)
    groups = groups_or_reason(place, cache.image_fingerprints)
    return intervals_of(measured, groups, cache.manifest["classes"], place.config.seed, FEWER_DRAWS)


def _progress(task: Task) -> Callable[[int, int], None]:
    """A searcher's (done, total) as shares of a task whose total is 1."""
    reached = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reached
        share = done / total if total else 1.0
        task.advance(share - reached)
        reached = share

    return report


def _name(request: Request, policy: str | None) -> str:
    """A readable identifier, such as input-dependent-latency-max-error-0.01."""
    limits = {
        # g alone would write millions of MACs as 2e+06.
        name.replace("_", "-"): f"{value:g}" if value < 10_000 else f"{value:.0f}"
        for name, value in request.constraints().items()
        if name not in ("latency_stat", "max_exits", "checkpoints", "shared_threshold")
    }
    parts = [request.setting, request.target, *(f"{k}-{v}" for k, v in limits.items())]
    parts += ["p90"] * (request.latency_stat == "p90")
    if policy is not None and policy != PREFERRED[0]:
        parts.append(policy)
    return "-".join(parts + ["one-threshold"] * request.shared_threshold)
